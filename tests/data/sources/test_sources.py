"""Sources that are not Parquet: CSV, JSON Lines, data sets that `datasets` reads, MovieLens."""

from __future__ import annotations

import datetime
import json
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import EVENTS, SMALL, histories, write_table
from hydra.utils import instantiate
from omegaconf import OmegaConf

from recsys.core.errors import UserError
from recsys.data.dataset import PreparedDataset
from recsys.data.preparation.prepare import prepare
from recsys.data.preparation.settings import DataSettings
from recsys.data.preparation.splits import GivenSplit, LeaveLastOutSplit, Split
from recsys.data.sources import HubDataset, MovieLens, Source, TextFolder
from recsys.data.sources.files import find_tables

CONF = Path(__file__).parents[3] / "conf"


def prepared(source: Source, cache: Path, split: Split | None = None, **settings: Any) -> PreparedDataset:
    return prepare(source, split or LeaveLastOutSplit(), settings=DataSettings(**settings), cache=cache, engine=SMALL)


def write_text(root: Path, files: dict[str, str]) -> str:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return str(root)


def types(file: str) -> dict[str, pa.DataType]:
    return {field.name: field.type for field in pq.read_schema(file)}


def test_csv_is_typed_by_whole_columns(tmp_path: Path) -> None:
    files = {
        "interactions.csv/b.csv": "user_id,item_id,timestamp,rating,code\n1,c,2024-01-03,4.5,\n",
        "interactions.csv/a.csv": "user_id,item_id,timestamp,rating,code\n1,7,2024-01-01,3,007\n1,8,2024-01-02,,12\n",
        "items.csv": 'item_id,title,year\n"7","a ""red"", one",1999\nc,,\n',
    }
    source = TextFolder(write_text(tmp_path / "data", files), "csv")
    tables = source.tables(tmp_path / "cache/sources")
    found = types(tables.interactions[0])
    assert found["user_id"] == pa.int64()
    assert found["rating"] == pa.float64()
    assert pa.types.is_string(found["item_id"]) or pa.types.is_large_string(found["item_id"])
    assert [pq.read_table(file)["code"].to_pylist() for file in tables.interactions] == [["007", "12"], [None]]
    assert pq.read_table(tables.items[0]).to_pylist()[0] == {"item_id": "7", "title": 'a "red", one', "year": 1999}
    dataset = prepared(source, tmp_path / "cache")
    # Shards in name order.
    assert histories(dataset) == {1: (["7"], ["8"], ["c"])}
    assert dataset.time.tolist() == [1_704_067_200 + 86_400 * day for day in range(3)]
    stamp = Path(tables.interactions[0]).stat().st_mtime_ns
    assert Path(source.tables(tmp_path / "cache/sources").interactions[0]).stat().st_mtime_ns == stamp


def test_json_lines_keep_lists(tmp_path: Path) -> None:
    rows = [{"user_id": "u", "item_id": i, "timestamp": f"2024-01-0{i}T12:00:00+02:00"} for i in (3, 1, 2)]
    items = [{"item_id": 1, "tags": ["a", "b"]}, {"item_id": 2, "tags": []}]
    files = {
        "interactions.jsonl": "\n".join(json.dumps(row) for row in rows),
        "items.jsonl": "\n".join(json.dumps(row) for row in items) + "\n",
    }
    dataset = prepared(TextFolder(write_text(tmp_path / "data", files), "jsonl"), tmp_path / "cache")
    assert histories(dataset) == {"u": ([1], [2], [3])}
    assert dataset.time[0] == 1_704_067_200 + 10 * 3600
    assert [feature.kind for feature in dataset.schema.features] == ["multi_categorical"]


def test_text_that_cannot_be_read(tmp_path: Path) -> None:
    head = "user_id,item_id,timestamp\n"
    cases = {
        "a": ({"interactions.csv": ""}, r"interactions\.csv: no rows"),
        "b": ({"interactions.csv/1.csv": head + "1,2,3\n", "interactions.csv/2.csv": head + '1,"2,3\n'}, "2.csv"),
        "d": ({"items.csv": head}, r"no interactions\.csv; found items\.csv"),
    }
    for name, (files, message) in cases.items():
        root = write_text(tmp_path / name, files)
        with pytest.raises(UserError, match=message):
            TextFolder(root, "csv").tables(tmp_path / "cache")
    root = write_text(tmp_path / "e", {"interactions.jsonl": '{"user_id": 1\n'})
    with pytest.raises(UserError, match=r"interactions\.jsonl: line 1: not a JSON object"):
        TextFolder(root, "jsonl").tables(tmp_path / "cache")
    with pytest.raises(UserError, match="format=tsv: expected csv or jsonl"):
        TextFolder(root, "tsv")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("others", "advice"),
    [
        ("interactions/1.csv", "; data.files.interactions=interactions reads that one"),
        ("sales.csv", "; data.files.interactions=sales.csv reads that one"),
        ("notes.txt", "of that name"),
    ],
)
def test_a_folder_without_events_names_what_could_be_them(tmp_path: Path, others: str, advice: str) -> None:
    head = "user_id,item_id,timestamp\n"
    root = write_text(tmp_path / "data", {others: head, "items.csv": "item_id\n", "users.csv.gz": "user_id\n"})
    with pytest.raises(UserError) as error:
        find_tables(str(root), (".csv",))
    assert str(error.value).endswith(advice)


def test_a_local_copy_of_a_hub_data_set(tmp_path: Path) -> None:
    rows = {"user_id": [1, 1, 2, 2], "item_id": [1, 2, 1, 2], "timestamp": [1, 2, 1, 2]}
    write_table(tmp_path / "pins/data/train-00000-of-00001.parquet", rows)
    write_table(tmp_path / "pins/data/test-00000-of-00001.parquet", {**rows, "timestamp": [7, 8, 9, 9]})
    source = HubDataset(str(tmp_path / "pins"), interactions="train+test")
    dataset = prepared(source, tmp_path / "cache", GivenSplit())
    assert histories(dataset) == {1: ([1], [2], [1, 2]), 2: ([1], [2], [1, 2])}
    again = prepared(HubDataset(str(tmp_path / "pins"), interactions="train+test"), tmp_path / "cache", GivenSplit())
    assert again.path == dataset.path


def test_configurations_of_a_hub_data_set(tmp_path: Path) -> None:
    write_table(tmp_path / "pins/events/all.parquet", EVENTS)
    write_table(tmp_path / "pins/things/all.parquet", {"item_id": [10], "color": ["a"]})
    (tmp_path / "pins/README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: events\n  data_files: events/*.parquet\n"
        "- config_name: things\n  data_files: things/*.parquet\n---\n"
    )
    source = HubDataset(str(tmp_path / "pins"), interactions="events/train", items="things/train")
    dataset = prepared(source, tmp_path / "cache")
    assert dataset.meta.num_events == 6
    assert [feature.key for feature in dataset.schema.features] == ["items.color"]
    with pytest.raises(UserError, match="'events/dev' cannot be loaded"):
        HubDataset(str(tmp_path / "pins"), interactions="events/dev").tables(tmp_path / "cache")


def test_a_hub_data_set_out_of_reach(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="nowhere: 'train' cannot be loaded .* expected a reachable data set of the Hub"
    ):
        HubDataset(str(tmp_path / "nowhere")).tables(tmp_path / "cache")


ML_1M = {
    "ratings.dat": "1::10::5::978300760\n1::20::3::978300761\n1::30::4::978300762\n1::10::4::978300763\n",
    "movies.dat": '10::Café, "The" (1995)::Animation|Children\'s\n20::Heat (1995)::Crime\n30::X (2000)::Drama\n',
    "users.dat": "1::F::1::10::48067-1234\n",
}
FLAGS = "|".join("1" if i in (1, 18) else "0" for i in range(19))
ML_100K = {
    "u.data": "1\t10\t5\t881250949\n1\t20\t3\t881250950\n1\t30\t4\t881250951\n",
    "u.item": f"10|Toy Story (1995)|01-Jan-1995||http://x|{FLAGS}\n20|unknown||||{FLAGS}\n",
    "u.user": "1|24|M|technician|85711\n",
}


def packed(root: Path, variant: str, files: dict[str, str]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(root / f"{variant}.zip", "w") as opened:
        for name, content in files.items():
            opened.writestr(f"{variant}/{name}", content.encode("latin-1"))
    return root / f"{variant}.zip"


def test_movielens_1m_from_a_zip(tmp_path: Path) -> None:
    file = packed(tmp_path, "ml-1m", ML_1M)
    tables = MovieLens("ml-1m", str(file)).tables(tmp_path / "cache")
    assert tables == MovieLens("ml-1m", str(tmp_path)).tables(tmp_path / "cache")
    items = pq.read_table(tables.items[0]).to_pylist()
    assert items[0] == {
        "item_id": 10,
        "title": 'Café, "The" (1995)',
        "year": 1995,
        "genres": ["Animation", "Children's"],
    }
    users = pq.read_table(tables.users[0]).to_pylist()
    assert users == [{"user_id": 1, "gender": "F", "age": 1, "occupation": "10", "zip_code": "48067-1234"}]
    liked = MovieLens("ml-1m", str(file), min_rating=4)
    assert histories(prepared(liked, tmp_path / "cache")) == {1: ([10], [30], [10])}


def test_movielens_100k_from_a_folder(tmp_path: Path) -> None:
    for name, content in ML_100K.items():
        (tmp_path / name).write_bytes(content.encode("latin-1"))
    tables = MovieLens("ml-100k", str(tmp_path)).tables(tmp_path / "cache")
    items = pq.read_table(tables.items[0]).to_pylist()
    assert items[0] == {"item_id": 10, "title": "Toy Story (1995)", "year": 1995, "genres": ["Action", "Western"]}
    assert items[1]["year"] is None
    assert pq.read_table(tables.users[0]).to_pylist()[0]["occupation"] == "technician"


def test_movielens_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = packed(tmp_path / "server", "ml-100k", ML_100K)
    asked = []

    def answer(address: str, timeout: float) -> Any:
        assert timeout > 0
        asked.append(address)
        return file.open("rb")

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    one = MovieLens("ml-100k").tables(tmp_path / "cache")
    assert MovieLens("ml-100k").tables(tmp_path / "cache") == one
    assert asked == ["https://files.grouplens.org/datasets/movielens/ml-100k.zip"]


def test_movielens_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(address: str, timeout: float) -> Any:
        raise urllib.error.URLError(f"no route to {address} in {timeout} s")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(UserError, match=r"ml-1m\.zip: cannot be downloaded \(.*data\.root=PATH reads a local copy"):
        MovieLens("ml-1m").tables(tmp_path / "cache")
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))
    with pytest.raises(UserError, match="no copy of ml-1m"):
        MovieLens("ml-1m", str(tmp_path)).tables(tmp_path / "cache")
    with pytest.raises(UserError, match=r"data\.variant=ml-10m: .*ml-1m"):
        MovieLens("ml-10m")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["parquet", "csv", "jsonl", "hub", "movielens"])
def test_configurations_build(name: str) -> None:
    config = OmegaConf.load(CONF / f"data/{name}.yaml")
    assert config.name == name
    root = OmegaConf.create({"data": config})
    root.data.root = "somewhere"
    resolved = OmegaConf.to_container(root, resolve=True)["data"]  # type: ignore[index, call-overload]
    assert instantiate(resolved["source"]).tables
    settings = {key: config[key] for key in ("columns", "features", "min_user_events", "min_item_events")}
    DataSettings(time_resolution=config.time, **settings)


@pytest.mark.parametrize("name", ["temporal", "leave_last_out", "random", "given"])
def test_split_configurations_build(name: str) -> None:
    assert instantiate(OmegaConf.load(CONF / f"split/{name}.yaml")).needs in ("timestamp", "order", None, "split")


def test_dates_in_parquet_and_csv_agree(tmp_path: Path) -> None:
    days = [datetime.date(2024, 1, day) for day in (1, 2, 3)]
    lines = "".join(f"1,{i},{day}\n" for i, day in enumerate(days))
    text = write_text(tmp_path / "data", {"interactions.csv": "user_id,item_id,timestamp\n" + lines})
    dataset = prepared(TextFolder(text, "csv"), tmp_path / "cache")
    assert dataset.time.tolist() == [1_704_067_200, 1_704_153_600, 1_704_240_000]
