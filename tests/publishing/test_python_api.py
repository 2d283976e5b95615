"""The public Python API gives what the commands give, for frames of pandas, Polars and Arrow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from publishing import Published

import recsys
from recsys.cli import recommend
from recsys.cli.main import main
from recsys.core.errors import UserError
from recsys.experiments.compose import compose_command
from recsys.experiments.run_table import read_runs

K = 20


@pytest.fixture(scope="module")
def run(published: Published) -> recsys.OpenedRun:
    return recsys.load_run(published.runs[0])


@pytest.fixture(scope="module")
def release(published: Published) -> recsys.OpenedRelease:
    return recsys.load_release("candidate", store=published.store, data="own")


@pytest.fixture(scope="module")
def bare(published: Published) -> recsys.OpenedRelease:
    return recsys.load_release("candidate", store=published.store)


@pytest.fixture(scope="module")
def events(published: Published) -> pa.Table:
    return pq.read_table(published.root / "interactions.parquet")


def same(found: pa.Table, expected: pa.Table) -> None:
    assert found["user_id"].to_pylist() == expected["user_id"].to_pylist()
    assert found["item_ids"].to_pylist() == expected["item_ids"].to_pylist()
    for one, other in zip(found["scores"].to_pylist(), expected["scores"].to_pylist(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_importing_it_loads_no_torch() -> None:
    program = (
        "import sys, recsys; recsys.__version__; recsys.UserError; dir(recsys)\n"
        "assert not {'torch', 'numpy', 'hydra'} & {*sys.modules}\n"
        "recsys.load_release\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_name_is_there() -> None:
    for name in recsys.__all__:
        assert getattr(recsys, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        recsys.trian  # noqa: B018


@pytest.mark.parametrize("users", ["test", "all"])
def test_lists_are_those_of_the_command(
    published: Published, run: recsys.OpenedRun, release: recsys.OpenedRelease, users: str, tmp_path: Path
) -> None:
    for opened, words in (
        (run, [f"run={published.runs[0]}"]),
        (release, ["release=candidate", f"store={published.store}"]),
    ):
        out = tmp_path / f"{words[0][:3]}.parquet"
        recommend.main(compose_command("recommend", [*words, f"users={users}", f"k={K}", f"out={out}"]))
        same(opened.recommend(users, k=K), pq.read_table(out))


def test_events_in_a_frame_are_histories(
    bare: recsys.OpenedRelease, release: recsys.OpenedRelease, events: pa.Table, published: Published
) -> None:
    """The release answers alike from its own data and from the same events, in any order of rows."""
    users = pq.read_table(published.root / "users.parquet")
    shuffled = events.take(pa.array(np.random.default_rng(0).permutation(len(events))))
    known = users.filter(pc.is_in(users["user_id"], value_set=pc.unique(events["user_id"])))
    expected = release.recommend(known.select(["user_id"]), k=K)
    # Events of the same time stay in the order of the frame: only distinct times can be shuffled.
    assert len(events.group_by(["user_id", "timestamp"]).aggregate([])) == len(events)
    same(bare.recommend(known, k=K, histories=shuffled), expected)
    everyone = bare.recommend(None, k=3, histories=events)
    assert sorted(everyone["user_id"].to_pylist()) == sorted(pc.unique(events["user_id"]).to_pylist())
    embedded = bare.user_embeddings(known, histories=events)
    own = release.user_embeddings(known["user_id"])
    np.testing.assert_allclose(
        np.array(embedded["embedding"].to_pylist()), np.array(own["embedding"].to_pylist()), atol=1e-5
    )


def test_frames_come_back_as_they_came(bare: recsys.OpenedRelease, run: recsys.OpenedRun, events: pa.Table) -> None:
    ids = pc.unique(events["user_id"]).to_pylist()[:4]
    expected = run.recommend(ids, k=5)
    assert isinstance(expected, pa.Table)
    frame = run.recommend(pd.DataFrame({"user_id": ids}, index=[7, 3, 2, 9]), k=5)
    assert isinstance(frame, pd.DataFrame)
    assert frame["item_ids"].map(list).tolist() == expected["item_ids"].to_pylist()
    assert isinstance(run.recommend(pd.Series(ids), k=5), pd.DataFrame)
    polar = run.recommend(pl.DataFrame({"user_id": ids}), k=5)
    assert isinstance(polar, pl.DataFrame)
    assert polar["item_ids"].to_list() == expected["item_ids"].to_pylist()
    assert isinstance(run.recommend(pl.Series(ids), k=5), pl.DataFrame)
    for given in (np.array(ids), pa.array(ids), pa.chunked_array([ids[:2], ids[2:]]), tuple(ids), pd.Index(ids)):
        assert run.recommend(given, k=5).equals(expected)
    small = events.filter(pc.is_in(events["user_id"], value_set=pa.array(ids))).select(
        ["user_id", "item_id", "timestamp"]
    )
    lists = bare.recommend(None, k=5, histories=small)
    for converted, kind in ((small.to_pandas(), pd.DataFrame), (pl.from_arrow(small), pl.DataFrame)):
        found = bare.recommend(None, k=5, histories=converted)
        assert isinstance(found, kind)
        assert [list(row) for row in found["item_ids"]] == lists["item_ids"].to_pylist()
    moments = small.to_pandas().assign(timestamp=lambda table: pd.to_datetime(table["timestamp"], unit="s"))
    found = bare.recommend(None, k=5, histories=moments)
    assert [list(row) for row in found["item_ids"]] == lists["item_ids"].to_pylist()


@pytest.mark.parametrize("kind", ["run", "release"])
def test_unknown_users(kind: str, run: recsys.OpenedRun, release: recsys.OpenedRelease) -> None:
    opened: Any = run if kind == "run" else release
    with pytest.raises(UserError, match=r"users: 'nobody' and 1 more unknown: .*; unknown='empty' ranks"):
        opened.recommend(["u001", "nobody", "noone"], k=5)
    rows = opened.recommend(["nobody", "u001"], k=5, unknown="empty").to_pylist()
    assert [row["user_id"] for row in rows] == ["nobody", "u001"]
    assert len(rows[0]["item_ids"]) == 5
    assert rows[1]["item_ids"] == opened.recommend(["u001"], k=5).to_pylist()[0]["item_ids"]
    for call in (opened.recommend, opened.user_embeddings):
        with pytest.raises(UserError, match="unknown: found 'ignore', expected 'error' or 'empty'"):
            call(["u001"], unknown="ignore")


def test_an_error_explains_that_a_release_has_no_histories(bare: recsys.OpenedRelease, events: pa.Table) -> None:
    with pytest.raises(UserError, match=r"histories: a release has none.*data='own'.*histories=EVENTS"):
        bare.recommend(["u001"], k=5)
    with pytest.raises(UserError, match="evaluate: needs histories; open the release with data='own'"):
        bare.evaluate()
    with pytest.raises(UserError, match="users='test': needs the data"):
        bare.recommend("test")
    with pytest.raises(UserError, match="unknown: found 'ignore'"):
        bare.recommend(["u001"], unknown="ignore")  # type: ignore[arg-type]
    (row,) = bare.recommend(["u001"], k=5, unknown="empty").to_pylist()
    assert len(row["item_ids"]) == 5
    with pytest.raises(UserError, match="users: 'nobody' unknown"):
        bare.recommend(["nobody"], k=5, histories=events)


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ([1, 2], "users: found ids of type int64, expected string"),
        (["u001", None], "users: id 1 is null"),
        (["u001", "u001"], "users: 'u001' occurs more than once"),
        ("tset", "users: found 'tset', expected ids, a data frame, 'test' or 'all'"),
        (pd.DataFrame({"user": ["u001"]}), "users: column 'user_id' is missing; did you mean 'user'?"),
        (pd.DataFrame({"user_id": ["u001"], "surfcae": ["home"]}), "'surfcae' is not a request feature; did you mean"),
    ],
)
def test_wrong_users(users: Any, message: str, run: recsys.OpenedRun) -> None:
    with pytest.raises(UserError) as error:
        run.recommend(users, k=5)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"user_id": ["u1"], "itm_id": ["i1"]},
            "histories: column 'itm_id' is not a feature of events; did you mean 'item_id'",
        ),
        ({"user_id": ["u1"]}, "histories: column 'item_id' is missing"),
        ({"user_id": [None], "item_id": ["i1"]}, "histories: column 'user_id' is null in row 0"),
        ({"user_id": [1], "item_id": ["i1"]}, "histories: found ids of type int64, expected string"),
        ({"user_id": ["u1"], "item_id": ["i1"], "timestamp": ["now"]}, "column 'timestamp' holds string, expected"),
    ],
)
def test_wrong_histories(columns: dict[str, list[Any]], message: str, bare: recsys.OpenedRelease) -> None:
    with pytest.raises(UserError) as error:
        bare.recommend(None, k=5, histories=pa.table(columns))
    assert message in str(error.value)


def test_request_features_reach_the_query(run: recsys.OpenedRun) -> None:
    tables = [pa.table({"user_id": ["u001"], "surface": [surface]}) for surface in ("home", "search")]
    one, other = (np.array(run.user_embeddings(table)["embedding"].to_pylist()) for table in tables)
    assert np.abs(one - other).max() > 1e-4


def test_similar_items(run: recsys.OpenedRun, bare: recsys.OpenedRelease) -> None:
    for opened in (run, bare):
        table = opened.item_embeddings()
        ids, vectors = table["item_id"].to_pylist(), np.array(table["embedding"].to_pylist())
        directions = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        (row,) = opened.similar([ids[3]], k=4).to_pylist()
        cosines = directions @ directions[3]
        expected = [at for at in np.argsort(-cosines) if at != 3][:4]
        assert row["item_id"] == ids[3]
        assert row["item_ids"] == [ids[at] for at in expected]
        np.testing.assert_allclose(row["scores"], cosines[expected], atol=1e-5)
        with pytest.raises(UserError, match="item_ids: 'nothing' unknown: not in the corpus"):
            opened.similar(["nothing"])
        with pytest.raises(UserError, match="k: found 0, expected at least 1"):
            opened.similar([ids[0]], k=0)
        with pytest.raises(UserError, match=f"item_ids: found '{ids[0]}', expected several ids"):
            opened.similar(ids[0])


def test_embeddings_score_the_lists(run: recsys.OpenedRun, release: recsys.OpenedRelease) -> None:
    for opened in (run, release):
        table = opened.item_embeddings()
        vector_of = dict(zip(table["item_id"].to_pylist(), table["embedding"].to_pylist(), strict=True))
        user = np.array(opened.user_embeddings(["u001"])["embedding"].to_pylist()[0])
        (row,) = opened.recommend(["u001"], k=5).to_pylist()
        np.testing.assert_allclose([user @ vector_of[item] for item in row["item_ids"]], row["scores"], atol=1e-4)


def test_metrics(run: recsys.OpenedRun, release: recsys.OpenedRelease) -> None:
    ours, theirs = run.evaluate(), release.evaluate()
    assert 0 < ours["test/recall@100"] <= 1
    # The index of this release is exact.
    assert ours.keys() == theirs.keys()
    for name in ("test/recall@10", "test/ndcg@10", "test/mrr@5", "test/coverage@10"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-9)
    assert "val/recall@10" in run.evaluate("val")
    with pytest.raises(UserError, match="part: found 'tset'"):
        run.evaluate("tset")  # type: ignore[arg-type]


@pytest.mark.slow
def test_from_a_frame_to_a_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    monkeypatch.chdir(tmp_path)
    users, items = rng.integers(0, 40, 800), (rng.random(800) ** 2 * 30).astype(int)
    events = pd.DataFrame({"user_id": users, "item_id": items, "timestamp": rng.integers(0, 10**6, 800)})
    events.to_parquet("interactions.parquet")
    overrides = ["data=parquet", "data.root=.", "user_tower=mean", "model.dim=8", "logger=csv", "trainer.max_epochs=2"]
    overrides += ["data.cache=cache", "+trainer.enable_progress_bar=false"]
    run = recsys.train(overrides, path="run one")
    assert run.path == Path("run one")
    # The comparison of runs shows them as those of a command.
    (row,) = read_runs("run one")
    assert (row.overrides["user_tower"], row.overrides["data.cache"]) == ("mean", "cache")
    assert "hydra.run.dir" not in row.overrides
    assert run.metrics["test/recall@10"] == pytest.approx(np.float32(run.evaluate()["test/recall@10"]), abs=1e-9)
    lists = run.recommend(pd.DataFrame({"user_id": events["user_id"].unique()}), k=5)
    assert lists["user_id"].tolist() == events["user_id"].unique().tolist()
    release = recsys.promote(run, store="store", alias="production", overrides=["index=exact"])
    same(release.recommend("test", k=5), run.recommend("test", k=5))
    assert recsys.load_release("production", store="store").version == release.version
    with pytest.raises(UserError, match="did you mean 'model.dim'"):
        recsys.train(["modle.dim=8"])
    # The command opens what Python published.
    main(["releases", "show", "version=production", "store=store"])


def test_a_missing_extra_is_named() -> None:
    script = (
        "import sys; sys.modules['lightning'] = None; import recsys\n"
        "try: recsys.train([])\n"
        "except recsys.UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    expected = "recsys.train needs the package 'lightning', which is not installed: pip install 'recsys[train]'"
    assert done.stdout.strip() == expected
