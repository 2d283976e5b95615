"""Times of a request's events, and a release whose tower reads them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from worlds import write_run, write_world

from recsys.core.errors import UserError
from recsys.data.dataset import Requests
from recsys.experiments.trained_run import load_run
from recsys.index import Exact
from recsys.publishing.batch_recommend import choose_users
from recsys.publishing.promote import promote
from recsys.publishing.recommenders import RunRecommender, open_recommender
from recsys.release.runtime.retriever import Query, Retriever
from recsys.release.runtime.timestamps import event_seconds
from recsys.release.store import ReleaseStore

DAY = 86_400


def seconds(*timestamps: Any) -> list[int]:
    return event_seconds([[{"timestamp": value} for value in timestamps]]).tolist()


def test_forms_of_a_time() -> None:
    assert seconds(7, 8.9, -0.5, np.int64(9)) == [7, 8, -1, 9]
    assert seconds(date(1970, 1, 3), datetime(1970, 1, 3, 0, 0, 5, 900_000)) == [2 * DAY, 2 * DAY + 5]
    east = timezone(timedelta(hours=2))
    assert seconds(datetime(1970, 1, 3, 2, tzinfo=east), datetime(1970, 1, 3, tzinfo=UTC)) == [2 * DAY, 2 * DAY]
    assert seconds("1970-01-03", "1970-01-03T02:00:00+02:00", "1970-01-03T00:00:05Z") == [2 * DAY, 2 * DAY, 2 * DAY + 5]


def test_missing_times_are_those_of_a_neighbour() -> None:
    assert seconds(None, None, 40, None, 50, None) == [40, 40, 40, 40, 50, 50]
    assert seconds(None, None) == [0, 0]
    assert event_seconds([[{"item_id": 1}, {"item_id": 2, "timestamp": 3}], [], [{"item_id": 1}]]).tolist() == [3, 3, 0]
    assert event_seconds([]).tolist() == []


@pytest.mark.parametrize("value", ["yesterday", "", True, float("nan"), float("inf"), 2**70, [3]])
def test_invalid_times_are_refused(value: object) -> None:
    with pytest.raises(UserError, match="history.timestamp: found .*, expected (integer )?seconds"):
        seconds(value)


@pytest.fixture(scope="module", params=["seconds", "day"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Tables, run and store."""
    base = tmp_path_factory.mktemp("timed")
    root = write_world(base / "data")
    # An export takes longer with every feature, and these tests are about times.
    few = [f"~data.features.interactions.{name}" for name in ("dwell", "labels", "seen_vector", "query")]
    few.append("user_tower.encoder.num_blocks=1")
    run = write_run(base / "run", root, "user_tower=hstu", f"data.time={request.param}", *few)
    store = ReleaseStore(base / "store")
    store.set_alias("candidate", promote(load_run(run), Exact(), store=store, model="test").version, why="test")
    return root, run, store.root


@pytest.mark.slow
def test_raw_times_give_the_embeddings_of_training(published: tuple[Path, Path, Path]) -> None:
    root, path, store = published
    run, retriever = load_run(path), Retriever.load(store, "candidate")
    assert [spec.shape for spec in retriever.manifest.inputs if spec.name == "timestamp"] == [("B", "L")]
    users = {row.pop("user_id"): row for row in pq.read_table(root / "users.parquet").to_pylist()}
    histories: dict[str, list[dict[str, Any]]] = {user: [] for user in run.dataset.user_ids.to_pylist()}
    for row in sorted(pq.read_table(root / "interactions.parquet").to_pylist(), key=lambda row: row["timestamp"]):
        names = retriever.query_encoder.names["history"]
        histories[row.pop("user_id")].append({name: value for name, value in row.items() if name in names})
    ends = run.dataset.offsets[1:]
    batch = run.builder.requests(Requests(np.arange(run.dataset.num_users), ends))
    with torch.inference_mode():
        expected = run.model.encode_users(batch).numpy()

    def embed(change: Any) -> np.ndarray:
        queries = [
            Query([change(event) for event in events], user, users.get(user, {})) for user, events in histories.items()
        ]
        return retriever.embed(queries)

    # If only the day counts, events of a day keep the order of the file.
    histories_of_data = np.split(run.dataset.time, run.dataset.offsets[1:-1])
    same = [bool((np.diff(time) > 0).all()) for time in histories_of_data]
    assert sum(same) > 5
    as_trained = embed(lambda event: event)
    np.testing.assert_allclose(as_trained[same], expected[same], atol=1e-5)
    as_dates = embed(lambda event: event | {"timestamp": datetime.fromtimestamp(event["timestamp"], UTC)})
    np.testing.assert_allclose(as_dates, as_trained, atol=1e-6)
    without = embed(lambda event: {name: value for name, value in event.items() if name != "timestamp"})
    assert np.isfinite(without).all()
    simultaneous = embed(lambda event: event | {"timestamp": 5})
    np.testing.assert_allclose(without, simultaneous, atol=1e-6)
    assert np.abs(without - as_trained).max() > 1e-4
    with pytest.raises(UserError, match="history.timestamp: found 'soon'"):
        retriever.embed([Query([{"item_id": "i001", "timestamp": "soon"}])])


@pytest.mark.slow
@pytest.mark.parametrize("other_data", [False, True])
def test_batch_retrieval_reads_the_times_of_its_data(
    published: tuple[Path, Path, Path], other_data: bool, tmp_path: Path
) -> None:
    root, path, store = published
    data = None
    if other_data:
        # Another fingerprint, the same content.
        data = str(tmp_path / "data")
        write_world(Path(data))
        table = pq.read_table(root / "users.parquet")
        pq.write_table(table.append_column("note", table["country"]), f"{data}/users.parquet")
    release, run = open_recommender(None, "candidate", store=str(store), root=data), RunRecommender(load_run(path))
    assert (release.dataset.meta.fingerprint != run.dataset.meta.fingerprint) == other_data
    found, expected = (
        recommender.rank(choose_users("all", recommender.dataset).requests, 5, exclude_seen=True, request_features={})[
            0
        ]
        for recommender in (release, run)
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("value", "unit"), [(1_700_000_000_000, "milliseconds"), (1.7e15, "microseconds"), (17 * 10**17, "nanoseconds")]
)
def test_other_units_are_refused_by_name(value: float, unit: str) -> None:
    with pytest.raises(UserError, match=rf"expected seconds since 1970; as {unit} it is 2023-11-14T22:13:20"):
        seconds(value)
