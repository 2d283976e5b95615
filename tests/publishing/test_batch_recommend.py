"""Batch retrieval from runs and releases, and the promotion of a run."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from commands import run_all
from publishing import Published
from worlds import FEW, write_blend, write_run

from recsys.core.errors import UserError
from recsys.data.dataset import Requests
from recsys.evaluation.relevance import seen_items
from recsys.experiments.trained_run import load_run
from recsys.index import Exact, IVFPQFastScan
from recsys.publishing.batch_recommend import Recommender, choose_users, write_recommendations
from recsys.publishing.promote import promote
from recsys.publishing.recommenders import ReleaseRecommender, RunRecommender, open_recommender
from recsys.publishing.release_writer import real_requests
from recsys.publishing.run_choice import best_run, choose_run
from recsys.publishing.table_files import read_table
from recsys.release.store import ReleaseStore


@pytest.fixture(scope="module")
def run(published: Published) -> RunRecommender:
    return RunRecommender(load_run(published.runs[0]))


@pytest.fixture(scope="module")
def release(published: Published) -> Recommender:
    return open_recommender(None, "candidate", store=str(published.store), root=None)


def _rows(path: Path) -> dict[object, dict[str, list[object]]]:
    return {row.pop("user_id"): row for row in pq.read_table(path).to_pylist()}


def _recommend(recommender: Recommender, users: str, out: Path, k: int = 10, exclude_seen: bool = True) -> dict:
    write_recommendations(
        recommender, choose_users(users, recommender.dataset), k=k, exclude_seen=exclude_seen, out=out
    )
    return _rows(out)


def _assert_same(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for user, row in expected.items():
        np.testing.assert_allclose(found[user]["scores"], row["scores"], atol=1e-4)
        # Equal scores may come in either order.
        if np.diff(row["scores"], prepend=9.0).max() < -1e-4:
            assert found[user]["item_ids"] == row["item_ids"]


def test_everyone_of_the_test_part_gets_unseen_items(run: RunRecommender, tmp_path: Path) -> None:
    rows = _recommend(run, "test", tmp_path / "out.parquet")
    dataset = run.dataset
    requests = dataset.requests("test")
    assert list(rows) == dataset.user_ids.take(pa.array(requests.user_idx)).to_pylist()
    seen = seen_items(dataset, requests)
    for number, row in enumerate(rows.values()):
        items = seen.values[seen.offsets[number] : seen.offsets[number + 1]]
        assert not set(row["item_ids"]) & set(dataset.item_ids.take(pa.array(items - 1)).to_pylist())
        assert len(set(row["item_ids"])) == 10
        assert row["scores"] == sorted(row["scores"], reverse=True)
    with_seen = _recommend(run, "test", tmp_path / "seen.parquet", k=90, exclude_seen=False)
    assert all(len(row["item_ids"]) == 90 for row in with_seen.values())


def test_file_has_outside_ids_and_lists(run: RunRecommender, tmp_path: Path) -> None:
    _recommend(run, "test", tmp_path / "out.parquet")
    schema = pq.read_schema(tmp_path / "out.parquet")
    assert schema.names == ["user_id", "item_ids", "scores"]
    assert [str(t) for t in schema.types] == ["string", "list<element: string>", "list<element: float>"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet"]


def test_release_and_run_agree(run: RunRecommender, release: Recommender, tmp_path: Path) -> None:
    for users in ("test", "all"):
        expected = _recommend(run, users, tmp_path / "run.parquet", k=20)
        _assert_same(_recommend(release, users, tmp_path / "release.parquet", k=20), expected)


def test_all_means_everyone_with_the_whole_history(run: RunRecommender, tmp_path: Path) -> None:
    dataset = run.dataset
    rows = _recommend(run, "all", tmp_path / "out.parquet")
    assert list(rows) == dataset.user_ids.to_pylist()
    # The test event is history now.
    last = dataset.item_ids.take(pa.array(np.asarray(dataset.item_idx)[dataset.offsets[1:] - 1] - 1)).to_pylist()
    assert not any(item in row["item_ids"] for item, row in zip(last, rows.values(), strict=True))


@pytest.mark.parametrize("source", ["run", "release"])
def test_users_of_a_file_known_or_not(source: str, run: RunRecommender, release: Recommender, tmp_path: Path) -> None:
    recommender = run if source == "run" else release
    everyone = _recommend(recommender, "all", tmp_path / "all.parquet")
    asked = ["u005", "stranger", "u001"]
    pq.write_table(pa.table({"user_id": asked, "note": [1, 2, 3]}), tmp_path / "users.parquet")
    rows = _recommend(recommender, str(tmp_path / "users.parquet"), tmp_path / "out.parquet")
    assert list(rows) == asked
    for user in ("u005", "u001"):
        np.testing.assert_allclose(rows[user]["scores"], everyone[user]["scores"], atol=1e-6)
    assert len(rows["stranger"]["item_ids"]) == 10


@pytest.mark.parametrize("source", ["run", "release"])
def test_columns_of_a_file_are_request_features(
    source: str, run: RunRecommender, release: Recommender, tmp_path: Path
) -> None:
    """Asked with the request of the test event, the answer is that of `users=test`."""
    recommender = run if source == "run" else release
    dataset = run.dataset
    by_hand = choose_users("test", dataset)
    queries = ["red garden", None, "old house blue"]
    table = pa.table({"user_id": ["u001", "u002", "x"], "query": queries, "surface": ["home", "search", None]})
    pq.write_table(table, tmp_path / "users.parquet")
    audience = choose_users(str(tmp_path / "users.parquet"), dataset)
    assert set(audience.request_features) == {"query", "surface"}
    scores, _ = recommender.rank(audience.requests, 5, exclude_seen=True, request_features=audience.request_features)
    without, _ = recommender.rank(audience.requests, 5, exclude_seen=True, request_features={})
    assert (np.abs(scores - without).max(1) > 1e-4).all()
    other, _ = run.rank(audience.requests, 5, exclude_seen=True, request_features=audience.request_features)
    np.testing.assert_allclose(scores, other, atol=1e-4)
    assert by_hand.request_features == {}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"userid": ["u001"]}, "column 'user_id' is missing; did you mean 'userid'"),
        ({"user_id": ["u001", "u002", "u001"]}, "user 'u001' occurs more than once"),
        ({"user_id": ["u001", None]}, "column 'user_id' is null in row 1"),
        ({"user_id": [1, 2]}, "found ids of type int64, expected string"),
        ({"user_id": pa.array([], pa.string())}, "no rows"),
    ],
)
def test_files_of_users_that_are_none(
    run: RunRecommender, tmp_path: Path, table: dict[str, object], message: str
) -> None:
    path = tmp_path / "users.parquet"
    pq.write_table(pa.table(table), path)
    with pytest.raises(UserError, match=message):
        choose_users(str(path), run.dataset)


def test_files_that_cannot_be_read(run: RunRecommender, tmp_path: Path) -> None:
    (tmp_path / "users.parquet").write_text("no parquet")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        choose_users(str(tmp_path / "users.parquet"), run.dataset)
    with pytest.raises(UserError, match="no such file; expected test, all or a file with a column of users"):
        choose_users("tset", run.dataset)
    audience = choose_users("test", run.dataset)
    with pytest.raises(UserError, match="k: found 0"):
        write_recommendations(run, audience, k=0, exclude_seen=True, out=tmp_path / "out.parquet")
    with pytest.raises(UserError, match="is a folder"):
        write_recommendations(run, audience, k=5, exclude_seen=True, out=tmp_path)
    with pytest.raises(UserError, match=r"out.xlsx: expected a name that ends in .parquet, .csv, .jsonl, .csv.gz"):
        write_recommendations(run, audience, k=5, exclude_seen=True, out=tmp_path / "out.xlsx")


def test_the_name_of_the_file_says_its_format(run: RunRecommender, tmp_path: Path) -> None:
    expected = _recommend(run, "test", tmp_path / "out.parquet", k=5)
    for name in ("out.jsonl", "out.jsonl.gz", "out.csv", "out.csv.gz"):
        out = tmp_path / name
        write_recommendations(run, choose_users("test", run.dataset), k=5, exclude_seen=True, out=out)
        text = gzip.decompress(out.read_bytes()).decode() if name.endswith("gz") else out.read_text()
        if ".jsonl" in name:
            found = {row["user_id"]: row["item_ids"] for row in map(json.loads, text.splitlines())}
            assert found == {user: row["item_ids"] for user, row in expected.items()}
            continue
        rows = list(csv.DictReader(io.StringIO(text)))
        flat = [(u, str(n), i) for u, row in expected.items() for n, i in enumerate(row["item_ids"], 1)]
        assert [(row["user_id"], row["rank"], row["item_id"]) for row in rows] == flat
        assert float(rows[0]["score"]) == pytest.approx(next(iter(expected.values()))["scores"][0])


FILES = {
    "users.csv": "visitor;surface\nu001;home\n007;\n",
    "users.tsv": "user_id\tsurface\nu001\thome\n007\t\n",
    "users.jsonl": '{"visitor": "u001", "surface": "home"}\n{"visitor": "007"}\n',
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_users_are_read_as_the_training_data(name: str, run: RunRecommender, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FILES[name])
    data = {"columns": {"user_id": "visitor"}, "encoding": "utf-8", "delimiter": None, "decimal": "point"}
    audience = choose_users(str(tmp_path / name), run.dataset, data=data)
    assert audience.user_ids.to_pylist() == ["u001", "007"]
    assert {key: values.to_pylist() for key, values in audience.request_features.items()} == {"surface": ["home", None]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("u.csv", "visitr\n1\n", "column 'visitor' is missing; did you mean 'visitr'.*; data.columns.user_id names it"),
        ("u.csv", "visitor\n12\nB7\n", "column 'visitor' holds 'B7' in row 1, but the ids of the data are int64"),
        ("u.csv", "visitor,x\n007,1\n", "column 'visitor' holds '007' in row 0"),
        ("u.csv", "visitor,x\n,1\n", "column 'visitor' is null in row 0"),
        ("u.csv", "visitor,visitor\n1,2\n", "u.csv: found two columns 'visitor', expected one"),
        ("u.csv", "visitor,x,x\n1,2,3\n", "u.csv: found two columns 'x', expected one"),
        ("u.csv", "visitor,x\n1,NA\n2,1\n", r"column 'x' holds numbers, but 'NA' in row 0; .* as missing$"),
        ("u.csv", "visitor,x\n1,1e400\n", r"column 'x' holds '1e400', which is no finite number, in row 0; expected"),
        ("u.jsonl", '{"visitor": "12"}\n', "column 'visitor': found ids of type string, expected int64"),
    ],
)
def test_ids_of_another_type(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_table(tmp_path / name, "users", id_type=pa.int64(), data={"columns": {"user_id": "visitor"}})


def test_a_release_remembers_the_names_of_columns(published: Published, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", published.root, "data.columns.users.user_id=user_id")
    assert RunRecommender(load_run(path)).data.columns.users.user_id == "user_id"
    assert open_recommender(None, "candidate", store=str(published.store), root=None).data.columns.item_id == "item_id"


class Counting:
    """A recommender that fails at its n-th call."""

    def __init__(self, inner: Recommender, fail_at: int) -> None:
        self.identity, self.dataset, self.item_ids = inner.identity, inner.dataset, inner.item_ids
        self.inner, self.fail_at, self.users = inner, fail_at, 0

    def rank(self, requests: Requests, k: int, *, exclude_seen: bool, request_features: dict) -> tuple:
        self.fail_at -= 1
        if self.fail_at == 0:
            raise KeyboardInterrupt
        self.users += len(requests.user_idx)
        return self.inner.rank(requests, k, exclude_seen=exclude_seen, request_features=request_features)


def test_an_interrupted_command_continues(run: RunRecommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.publishing.batch_recommend.PART", 20)
    monkeypatch.setattr("recsys.publishing.batch_recommend.BATCH", 8)
    out = tmp_path / "out.parquet"
    out.write_text("an older file")
    audience = choose_users("all", run.dataset)
    # 60 users: three parts of 8 + 8 + 4. The fifth batch is in the second part.
    with pytest.raises(KeyboardInterrupt):
        write_recommendations(Counting(run, 5), audience, k=10, exclude_seen=True, out=out)
    assert out.read_text() == "an older file"
    again = Counting(run, 0)
    write_recommendations(again, audience, k=10, exclude_seen=True, out=out)
    assert again.users == 40
    assert pq.ParquetFile(out).num_row_groups == 3
    assert not out.with_name("out.parquet.parts").exists()
    found = _rows(out)
    monkeypatch.undo()
    expected = _recommend(run, "all", tmp_path / "whole.parquet")
    _assert_same(found, expected)


@pytest.mark.parametrize("change", ["k", "exclude_seen", "users", "model"])
def test_parts_of_other_settings_are_not_reused(
    run: RunRecommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr("recsys.publishing.batch_recommend.PART", 20)
    out = tmp_path / "out.parquet"
    audience = choose_users("all", run.dataset)
    with pytest.raises(KeyboardInterrupt):
        write_recommendations(Counting(run, 3), audience, k=10, exclude_seen=True, out=out)
    again = Counting(run, 0)
    if change == "model":
        again.identity = "another"
    if change == "users":
        requests = Requests(audience.requests.user_idx, audience.requests.end - 1)
        audience = type(audience)(audience.user_ids, requests)
    write_recommendations(again, audience, k=9 if change == "k" else 10, exclude_seen=change != "exclude_seen", out=out)
    assert again.users == 60


def test_a_killed_command_leaves_no_file_and_continues(published: Published, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    command = [
        "recsys",
        "recommend",
        "release=candidate",
        f"store={published.store}",
        "users=all",
        "k=10",
        f"out={out}",
    ]
    job = {"args": command, "set": {"recsys.publishing.batch_recommend:PART": 20}}
    rank = "recsys.publishing.recommenders:ReleaseRecommender.rank"
    ((code, log),) = run_all([{**job, "kill": [rank, 3]}], tmp_path)
    assert code == -signal.SIGKILL, log
    assert not out.exists()
    parts = sorted(path.name for path in out.with_name("out.parquet.parts").glob("part-*"))
    assert parts == ["part-000000.parquet", "part-000001.parquet"]
    # Two parts are done, so one is left.
    ((code, log),) = run_all([{**job, "kill": [rank, 2]}], tmp_path)
    assert code == 0, log
    assert pq.read_metadata(out).num_rows == 60


def test_release_with_other_data_translates_ids_and_codes(
    published: Published,
    release: Recommender,
    tmp_path: Path,
) -> None:
    """Fewer users and items in another order: other indices, codes, means; the same answers."""
    root = tmp_path / "data"
    root.mkdir()
    kept = [f"u{number:03d}" for number in range(59, 14, -1)]
    for name in ("interactions", "users"):
        table = pq.read_table(published.root / f"{name}.parquet")
        table = table.filter(pc.is_in(table["user_id"], value_set=pa.array(kept)))
        pq.write_table(table, root / f"{name}.parquet")
    shutil.copyfile(published.root / "items.parquet", root / "items.parquet")
    other = open_recommender(None, "candidate", store=str(published.store), root=str(root))
    assert isinstance(other, ReleaseRecommender)
    assert other.dataset.meta.fingerprint != release.dataset.meta.fingerprint
    expected = _recommend(release, "all", tmp_path / "own.parquet", k=20)
    found = _recommend(other, "all", tmp_path / "other.parquet", k=20)
    assert set(found) == set(kept)
    _assert_same(found, {user: expected[user] for user in sorted(kept)})


def test_release_with_data_that_lacks_features(published: Published, tmp_path: Path) -> None:
    """Neither items nor users: what is missing is missing for everyone."""
    root = tmp_path / "data"
    root.mkdir()
    shutil.copyfile(published.root / "interactions.parquet", root / "interactions.parquet")
    rows = _recommend(
        open_recommender(None, "candidate", store=str(published.store), root=str(root)), "test", tmp_path / "o.parquet"
    )
    assert all(len(row["item_ids"]) == 10 for row in rows.values())


def test_commands_that_name_no_model(published: Published, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected one of run=RUN"):
        open_recommender(None, None, store="releases", root=None)
    with pytest.raises(UserError, match="expected one of run=RUN"):
        open_recommender("a", "b", store="releases", root=None)
    with pytest.raises(UserError, match="data.root: valid only with release="):
        open_recommender(str(published.runs[0]), None, store="releases", root="somewhere")
    with pytest.raises(UserError, match="not a folder"):
        open_recommender(str(tmp_path / "none"), None, store="releases", root=None)


def test_release_carries_what_filters_and_pages_need(published: Published) -> None:
    items = pq.read_table(published.store / published.versions[0] / "items.parquet")
    assert items.column_names == ["item_id", "item_idx", "title", "category", "tags", "price"]
    source = {row["item_id"]: row for row in pq.read_table(published.root / "items.parquet").to_pylist()}
    for row in items.to_pylist():
        for name in ("title", "category", "tags", "price"):
            assert row[name] == source.get(row["item_id"], {}).get(name)


def test_index_below_its_target_is_not_published(published: Published, tmp_path: Path) -> None:
    class Poor(IVFPQFastScan):
        """Finds nothing."""

        is_exact = False

        def search(self, queries, k, allow=None, exclude=None):  # noqa: ARG002
            return np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1)

    with pytest.raises(UserError, match="index: finds 0.0000 of the exact top 9"):
        promote(load_run(published.runs[0]), Poor(), store=ReleaseStore(tmp_path / "store"), model="test")
    assert not (tmp_path / "store").exists()


def test_tuning_asks_with_validation_histories(published: Published) -> None:
    trained = load_run(published.runs[0])
    requests = real_requests(trained)
    assert (requests.end < trained.dataset.offsets[requests.user_idx + 1]).all()
    assert len(requests.user_idx) == len(trained.dataset.requests("val").user_idx)


def _finished(path: Path, status: str = "finished", **metrics: float) -> Path:
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps({"status": status}))
    (path / "metrics.json").write_text(json.dumps(metrics))
    return path


def test_the_best_run_of_a_sweep(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match="holds no finished run"):
        best_run(tmp_path, "val/recall@100")
    _finished(tmp_path / "0", **{"val/recall@100": 0.2, "val/loss": 0.7})
    _finished(tmp_path / "deep/1", **{"val/recall@100": 0.3})
    _finished(tmp_path / "deep/2", "selected", **{"val/recall@100": 0.3, "val/loss": 0.9})
    _finished(tmp_path / "3", "running", **{"val/recall@100": 0.9})
    _finished(tmp_path / "3a", "stopped", **{"val/recall@100": 0.9})
    _finished(tmp_path / "4", **{"val/recall@100": float("nan"), "val/recall@10": 0.1})
    # What a run chose from is no run of its own.
    _finished(tmp_path / "4/variants/mean", "selected", **{"val/recall@100": 0.9})
    # Baselines beside the runs are no candidates.
    baseline = _finished(tmp_path / "baselines/ease", **{"val/recall@100": 0.9})
    (baseline / "run.json").write_text(json.dumps({"status": "finished", "generator": "ease"}))
    with caplog.at_level("INFO", logger="recsys"):
        assert best_run(tmp_path, "val/recall@100").path == tmp_path / "deep/1"
    assert caplog.messages == [f"{tmp_path}/deep/1: best of 4 runs, val/recall@100 0.3000; as good: deep/2"]
    assert best_run(tmp_path, "val/recall@10").path == tmp_path / "4"
    # Less is better by the name of the metric, and by what the sweep's own file says.
    assert best_run(tmp_path, "val/loss").path == tmp_path / "0"
    (tmp_path / "sweep.yaml").write_text("metric: {name: val/recall@100, goal: minimize}")
    assert best_run(tmp_path, "val/recall@100").path == tmp_path / "0"
    (tmp_path / "sweep.yaml").unlink()
    with pytest.raises(UserError, match="none of 4 runs has 'val/recal@100'; did you mean 'val/recall@100'"):
        best_run(tmp_path, "val/recal@100")
    with pytest.raises(UserError, match="found 'test/recall@10', expected one of validation"):
        best_run(tmp_path, "test/recall@10")
    with pytest.raises(UserError, match="not a folder"):
        best_run(tmp_path / "none", "val/recall@100")
    for both in ((None, None), ("run", "sweep")):
        with pytest.raises(UserError, match="expected one of run=RUN"):
            choose_run(*both, metric="val/recall@100")


@pytest.mark.slow
def test_commands(published: Published, tmp_path: Path) -> None:
    store, sweep, out = tmp_path / "store", published.runs[0].parent, tmp_path / "out.parquet"
    jobs = [
        {"args": ["index.py", f"sweep={sweep}", "metric=val/recall@100", f"store={store}", "index=hnsw"]},
        {"args": ["recommend.py", "release=candidate", f"store={store}", "k=7", f"out={out}"]},
        {"args": ["recommend.py", "relaese=candidate", f"out={out}"]},
        {"args": ["index.py", f"run={tmp_path}", f"store={store}"]},
    ]
    (code, log), (code_2, log_2), (code_3, log_3), (code_4, log_4) = run_all(jobs, tmp_path)
    assert (code, code_2, code_3, code_4) == (0, 0, 1, 1), (log, log_2, log_3, log_4)
    # The second run has the better metric.
    version = log.splitlines()[-1]
    assert json.loads((store / version / "manifest.json").read_text())["run"] == str(published.runs[1])
    assert log_2.splitlines()[-1] == str(out)
    assert all(len(row["item_ids"]) == 7 for row in _rows(out).values())
    assert "error: unknown configuration key 'relaese'; did you mean 'release'?" in log_3
    assert "is not a run; it has no run.json" in log_4


@pytest.mark.slow
def test_a_blend_is_promoted_and_recommends_like_its_run(published: Published, tmp_path: Path) -> None:
    mean = ["user_tower=mean", "user_tower.use_user_id=true"]
    long = write_run(tmp_path / "long", published.root, *FEW, *mean)
    short = write_run(tmp_path / "short", published.root, *FEW, "history.max_events=3", seed=2)
    blend = write_blend(tmp_path / "blend", {"long": (long, 0.7), "short": (short, 0.3)})
    version = promote(load_run(blend), Exact(), store=ReleaseStore(tmp_path / "store"), model="test").version
    by_run = _recommend(RunRecommender(load_run(blend)), "all", tmp_path / "run.parquet")
    by_release = _recommend(
        open_recommender(None, version, store=str(tmp_path / "store"), root=None), "all", tmp_path / "r.parquet"
    )
    _assert_same(by_release, by_run)
