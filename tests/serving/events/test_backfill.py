"""A store that was filled from a data folder serves the histories of batch retrieval."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from publishing import Published
from servers import needs_server
from worlds import MAX_HISTORY, compose

from recsys.core.columns import Column, Dense
from recsys.core.errors import UserError
from recsys.core.schema import Schema
from recsys.core.stored_config import load_config
from recsys.data.batches.builder import BatchBuilder
from recsys.data.dataset import PreparedDataset
from recsys.experiments.assembly import open_data
from recsys.publishing.batch_recommend import choose_users
from recsys.publishing.recommenders import open_recommender
from recsys.publishing.release_writer import to_histories
from recsys.release.runtime.retriever import Query, Retriever
from recsys.serving.events import Event, EventStore, Restored, SQLiteEvents, UserId, open_store
from recsys.serving.events.backfill import backfill


def write_release(folder: Path, *overrides: str) -> tuple[Path, PreparedDataset]:
    """Write the parts of a release that a backfill reads, and return its folder with the prepared data set."""
    config = compose(
        "train", ["data=parquet", f"data.root={folder}", f"data.cache={folder.parent / 'cache'}", *overrides]
    )
    dataset = open_data(config)
    release = folder.parent / "release"
    release.mkdir(exist_ok=True)
    (release / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True).replace("???", "null"))
    dataset.schema.save(release / "schema.json")
    return release, dataset


def write_tables(folder: Path, **interactions: Sequence[Any]) -> Path:
    folder.mkdir(parents=True)
    pq.write_table(pa.table(interactions), folder / "interactions.parquet")
    return folder


@pytest.fixture
def store(fast_folder: Path) -> Iterator[SQLiteEvents]:
    opened = SQLiteEvents(fast_folder / "events.db")
    yield opened
    opened.close()


def fill_from(store: EventStore, release: Path, root: str | None = None) -> int:
    return backfill(store, load_config(release / "config.yaml"), Schema.load(release / "schema.json"), root=root)


def assert_histories_of(store: EventStore, dataset: PreparedDataset, longest: int = 200) -> None:
    users, items = dataset.user_ids.to_pylist(), dataset.item_ids.to_pylist()
    for user_id, history, begin, end in zip(
        users, store.histories(users), dataset.offsets[:-1], dataset.offsets[1:], strict=True
    ):
        begin = max(begin, end - longest)
        expected = [(items[idx - 1], seconds) for idx, seconds in _rows(dataset, begin, end)]
        assert [(event.item_id, event.timestamp) for event in history] == expected, user_id


def _rows(dataset: PreparedDataset, begin: int, end: int) -> list[tuple[int, int]]:
    return list(zip(dataset.item_idx[begin:end].tolist(), dataset.time[begin:end].tolist(), strict=True))


@pytest.mark.parametrize("place", ["events.db", pytest.param("server", marks=needs_server)])
def test_requests_from_the_store_are_those_of_batch_retrieval(
    published: Published, fast_folder: Path, place: str, request: pytest.FixtureRequest
) -> None:
    retriever = Retriever.load(published.store, published.versions[0])
    url = request.getfixturevalue("server").url if place == "server" else str(fast_folder / place)
    store = open_store(url)
    assert fill_from(store, retriever.folder) > 60
    recommender = open_recommender(None, published.versions[0], store=str(published.store), root=None)
    dataset = recommender.dataset
    assert_histories_of(store, dataset)

    audience = choose_users("all", dataset)
    batch = BatchBuilder(dataset, MAX_HISTORY).requests(audience.requests)
    expected = to_histories(batch, len(retriever.known_items))
    queries = [
        Query([_posted(event) for event in history], user_id, store.profile(user_id))
        for user_id, history in zip(
            audience.user_ids.to_pylist(), store.histories(audience.user_ids.to_pylist()), strict=True
        )
    ]
    found, unknown = retriever.query_encoder.encode(queries)
    assert not any(unknown)
    np.testing.assert_array_equal(found.item_idx, expected.item_idx)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    np.testing.assert_array_equal(found.user_idx, expected.user_idx)
    assert set(found.events) == {"action", "dwell", "labels", "seen_vector", "surface", "query"}
    assert set(found.users) == {"country", "age", "likes", "taste"}
    for name, column in found.events.items():
        assert_same(column, expected.events[name])
    for name, column in found.users.items():
        assert_same(column, expected.users[name])

    scores, rows = recommender.rank(audience.requests, 10, exclude_seen=True, request_features={})
    for number, answer in enumerate(retriever.retrieve(queries, k=10)):
        real = rows[number] >= 0
        assert answer.item_ids == recommender.item_ids.take(pa.array(rows[number][real])).to_pylist()
        np.testing.assert_allclose(answer.scores, scores[number][real], rtol=1e-5)
    store.close()


def _posted(event: Event) -> dict[str, Any]:
    return {"item_id": event.item_id, "timestamp": event.timestamp, **event.features}


def assert_same(one: Column, other: Column) -> None:
    np.testing.assert_array_equal(one.values, other.values)
    if not isinstance(one, Dense):
        assert not isinstance(other, Dense)
        np.testing.assert_array_equal(one.offsets, other.offsets)


def _events(rng: np.random.Generator, num_events: int) -> dict[str, Sequence[Any]]:
    return {
        "user_id": rng.integers(0, 40, num_events),
        "item_id": [f"i{number}" for number in rng.integers(0, 15, num_events)],
        # Many ties and repeats.
        "timestamp": rng.integers(0, 12, num_events) * 50_000 + 7,
    }


@pytest.mark.parametrize(("time_resolution", "core"), [("seconds", 4), ("day", 0), ("order", 0), ("none", 0)])
def test_order_repeats_and_dropped_events_are_those_of_the_prepared_data(
    tmp_path: Path, store: SQLiteEvents, time_resolution: str, core: int
) -> None:
    events = _events(np.random.default_rng(0), 600)
    split = "leave_last_out"
    if time_resolution == "none":
        split = "given"
        events["split"] = np.random.default_rng(1).choice(["train", "val", "test"], 600)
    if time_resolution == "order":
        events["engaged"] = np.random.default_rng(2).random(600) < 0.7
    overrides = [f"split={split}", f"data.time={time_resolution}", f"data.min_user_events={core}"]
    overrides += ["data.engaged=engaged"] if time_resolution == "order" else []
    release, dataset = write_release(write_tables(tmp_path / "data", **events), *overrides)
    assert fill_from(store, release) == dataset.num_users
    assert_histories_of(store, dataset)
    assert sum(len(store.history(user)) for user in range(40)) == dataset.meta.num_events


def test_users_that_cross_the_batches_of_the_engine(
    tmp_path: Path, store: SQLiteEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.data.preparation.engines.BATCH_ROWS", 7)
    release, dataset = write_release(write_tables(tmp_path / "data", **_events(np.random.default_rng(0), 300)))
    store.max_events = 5
    fill_from(store, release)
    assert_histories_of(store, dataset, longest=5)


def test_values_keep_their_meaning(tmp_path: Path, store: SQLiteEvents) -> None:
    root = write_tables(
        tmp_path / "data",
        user_id=[5, 5, 6, 6, 7],
        item_id=["a", "b", "a", "b", "c"],
        timestamp=pa.array([10_500_000, 20_000_000, 3, 4, 5], pa.timestamp("us")),
        price=pa.array([Decimal("1.50"), None, Decimal("2.25"), None, None], pa.decimal128(6, 2)),
        seen=pa.array([86_400_000, None, 0, 1, 2], pa.timestamp("ms")),
        rating=pa.array([4.5, 1.0, None, 0.1, 0.2], pa.float32()),
    )
    pq.write_table(
        pa.table(
            {"user_id": [9, 5], "since": pa.array([3, None], pa.date32()), "name": ["x", None], "tags": [[1], []]}
        ),
        root / "users.parquet",
    )
    release, _ = write_release(
        root,
        "split.train=0.3",
        "split.val=0.3",
        "+data.features.interactions.price.role=event",
        "+data.features.interactions.seen={role: request, kind: numeric}",
        "+data.features.interactions.rating.role=event",
        "+data.features.users.since.kind=numeric",
        "+data.features.users.name.ignore=true",
    )
    assert fill_from(store, release) == 5
    assert store.history(5) == [
        Event("a", 10, {"price": 1.5, "seen": 86_400.0, "rating": 4.5}),
        Event("b", 20, {"rating": 1.0}),
    ]
    assert store.history(6)[1].features == {"seen": 0.001, "rating": float(np.float32(0.1))}
    # Known from the table of users alone; what is no feature of the release is not stored.
    assert store.history(9) == []
    assert store.profile(9) == {"since": 3 * 86_400.0, "tags": [1]}
    assert store.profile(5) == {"tags": []}


class Interrupted(SQLiteEvents):
    """A store that fails at its third write, once."""

    writes = 0

    def restore(self, users: Sequence[Restored], source: str, *, done: int) -> None:
        self.writes += 1
        if self.writes == 3:
            raise KeyboardInterrupt
        super().restore(users, source, done=done)


def test_an_interrupted_backfill_continues_after_its_last_write(
    tmp_path: Path, fast_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.serving.events.backfill.USERS_PER_WRITE", 7)
    root = write_tables(tmp_path / "data", **_events(np.random.default_rng(0), 600))
    release, dataset = write_release(root)
    store = Interrupted(fast_folder / "events.db")
    with pytest.raises(KeyboardInterrupt):
        fill_from(store, release)
    live: tuple[UserId, Event] = (3, Event("live", 2_000_000_000, {}))
    store.append([live])
    assert fill_from(store, release) == dataset.num_users - 14
    assert fill_from(store, release) == 0
    before = store.histories(range(40))
    assert before[3][-1] == live[1]
    assert sum(map(len, before)) == dataset.meta.num_events + 1

    # The folder grows by what was posted and by what is new: nothing is there twice.
    table = pq.read_table(root / "interactions.parquet")
    more = pa.table({"user_id": [3, 4], "item_id": ["live", "new"], "timestamp": [2_000_000_000, 2_000_000_001]})
    pq.write_table(pa.concat_tables([table, more.cast(table.schema)]), root / "interactions.parquet")
    assert fill_from(store, release) == dataset.num_users
    after = store.histories(range(40))
    assert after[4] == [*before[4], Event("new", 2_000_000_001)]
    assert after[:4] + after[5:] == before[:4] + before[5:]
    store.close()


def test_another_folder_without_users(published: Published, store: SQLiteEvents, tmp_path: Path) -> None:
    folder = published.store / published.versions[0]
    rows = pq.read_table(published.root / "interactions.parquet").slice(0, 100)
    root = write_tables(tmp_path / "later", **{name: rows[name] for name in rows.column_names})
    assert fill_from(store, folder, root=str(root)) == len(rows["user_id"].unique())
    assert sum(len(store.history(user)) for user in rows["user_id"].unique().to_pylist()) == 100
    with pytest.raises(UserError, match="no such folder"):
        fill_from(store, folder, root=str(tmp_path / "nowhere"))


def test_imports_no_torch() -> None:
    code = "import recsys.serving.events.backfill, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False).returncode == 0
