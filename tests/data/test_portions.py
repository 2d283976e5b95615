"""Portions: processes that share the users of a data set, each with the events of its own."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from folders import prepared, write_folder

from recsys.core.columns import Column, Ragged
from recsys.core.errors import UserError
from recsys.core.schema import TimeResolution
from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.datamodule import RetrievalData
from recsys.data.batches.loaders import RequestLoader, TrainingLoader
from recsys.data.batches.targets import TargetSampling
from recsys.data.dataset import Part, PreparedDataset
from recsys.data.portions import LocalColumns, Portion
from recsys.data.preparation.array_writers import _blocks
from recsys.data.preparation.shard_writers import write_shards
from recsys.data.shards import FILE, ArrayFolder, Shard, Shards, open_address
from recsys.evaluation.relevance import relevant_items

EVERYTHING: dict[str, Any] = {
    "engaged": "engaged",
    "weight": "rating",
    "features": {
        "interactions": {
            "rating": {"role": "event"},
            "surface": {"role": "request"},
            "query": {"role": "request", "kind": "text"},
        }
    },
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """40 users with up to 30 events and exposures, words of queries among them."""
    draw, size = np.random.default_rng(0), 800
    table = {
        "user_id": (draw.random(size) ** 2 * 40).astype(int),
        "item_id": draw.integers(0, 30, size),
        "timestamp": draw.integers(0, 10**6, size),
        "rating": draw.random(size),
        "surface": draw.choice(["home", "search"], size),
        "query": draw.choice(["red shoe", "", "blue", "a b c"], size),
        "engaged": draw.random(size) < 0.8,
    }
    root = write_folder(tmp_path_factory.mktemp("portions") / "data", table, users={"user_id": [0, 50], "age": [1, 2]})
    return prepared(root, **EVERYTHING)


def in_shards(whole: PreparedDataset, folder: Path, cuts: list[int]) -> Path:
    """Write the data set again, with events and exposures in shards that begin at the users `cuts`."""
    shutil.copytree(whole.path, folder, ignore=shutil.ignore_patterns("events", "exposures"), dirs_exist_ok=True)
    assert whole.exposures is not None
    events = {"item_idx": whole.item_idx, "time": whole.time, "weight": whole.weight}
    columns: dict[str, Any] = {name: values for name, values in events.items() if values is not None}
    ragged: dict[str, Ragged] = {}
    for feature in whole.schema.owned_by("interactions"):
        column = whole.columns[feature.key]
        if isinstance(column, Ragged):
            ragged[f"feature.{feature.name}"] = column
        else:
            columns[f"feature.{feature.name}"] = column.values
    exposed = {"item_idx": whole.exposures.item_idx, "time": whole.exposures.time}
    for kind, offsets, arrays, bags in (
        ("events", whole.offsets, columns, ragged),
        ("exposures", whole.exposures.offsets, exposed, {}),
    ):
        shards = []
        for first, last in zip(cuts, [*cuts[1:], whole.num_users], strict=True):
            begin, end = int(offsets[first]), int(offsets[last])
            shards.append(Shard(f"{first}", first, end - begin))
            target = folder / "moved" / kind / f"{first}"
            target.mkdir(parents=True)
            for name, values in arrays.items():
                np.save(target / f"{name}.npy", values[begin:end])
            for name, bag in bags.items():
                own = bag.take(np.arange(begin, end))
                np.save(target / f"{name}.values.npy", own.values)
                np.save(target / f"{name}.offsets.npy", own.offsets)
        (folder / kind).mkdir()
        names = [*arrays, *(f"{name}.{part}" for name in bags for part in ("values", "offsets"))]
        Shards(str(folder / "moved" / kind), tuple(names), tuple(shards)).save(folder / kind / FILE)
    np.save(folder / "exposures/offsets.npy", whole.exposures.offsets)
    return folder


@pytest.fixture(scope="module")
def sharded(whole: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return in_shards(whole, tmp_path_factory.mktemp("shards"), [0, 3, 5, 9, 20, 31])


def rows_of(column: Column, rows: slice) -> list[Any]:
    taken = column.take(np.arange(rows.start, rows.stop))
    if isinstance(taken, Ragged):
        return [taken.values[a:b].tolist() for a, b in zip(taken.offsets[:-1], taken.offsets[1:], strict=True)]
    return taken.values.tolist()


def same_users(one: PreparedDataset, other: PreparedDataset, users: range) -> None:
    """Check that two data sets hold the same events, columns and exposures of some users."""
    assert one.exposures is not None
    assert other.exposures is not None
    for user in users:
        mine, yours = (slice(int(d.offsets[user]), int(d.offsets[user + 1])) for d in (one, other))
        for name in ("item_idx", "time", "weight"):
            assert np.array_equal(getattr(one, name)[mine], getattr(other, name)[yours]), name
        for feature in one.schema.owned_by("interactions"):
            assert rows_of(one.columns[feature.key], mine) == rows_of(other.columns[feature.key], yours)
        for name in ("train_end", "val_end"):
            assert getattr(one, name)[user] - mine.start == getattr(other, name)[user] - yours.start
        shown = [d.exposures.item_idx[d.exposures.offsets[user] : d.exposures.offsets[user + 1]] for d in (one, other)]  # type: ignore[union-attr]
        assert shown[0].tolist() == shown[1].tolist()


def test_shards_open_as_one(whole: PreparedDataset, sharded: Path) -> None:
    opened = PreparedDataset.open(sharded)
    same_users(whole, opened, range(whole.num_users))
    joined = next((sharded / "events").glob("joined-*"))
    files = sorted(file.name for file in (whole.path / "events").iterdir())
    assert sorted(file.name for file in joined.iterdir()) == files
    for name in files:
        assert (joined / name).read_bytes() == (whole.path / "events" / name).read_bytes(), name


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("in_one", [True, False])
def test_each_process_opens_the_events_of_its_users(
    whole: PreparedDataset, sharded: Path, in_one: bool, world_size: int
) -> None:
    seen: list[int] = []
    for rank in range(world_size):
        own = PreparedDataset.open(whole.path if in_one else sharded, rank=rank, world_size=world_size)
        assert isinstance(own.portion, Portion)
        first, last = own.portion.cuts[rank : rank + 2].tolist()
        same_users(whole, own, range(first, last))
        assert len(own.item_idx) == own.offsets[-1] == whole.offsets[last] - whole.offsets[first]
        assert 0.2 < len(own.item_idx) * world_size / len(whole.item_idx) < 2
        assert np.array_equal(own.trained_users, whole.trained_users)
        seen.extend(range(first, last))
        assert sorted(own.requests("val").user_idx.tolist()) == [
            u for u in whole.requests("val").user_idx if first <= u < last
        ]
    assert seen == list(range(whole.num_users))


def test_processes_train_on_their_own_users_in_as_many_steps(sharded: Path, whole: PreparedDataset) -> None:
    targets, lengths = [], set()
    for rank in range(2):
        own = PreparedDataset.open(sharded, rank=rank, world_size=2)
        loader = TrainingLoader(BatchBuilder(own, 4), 16, seed=1, rank=rank, world_size=2)
        lengths.add(len(loader))
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(len(batch.lengths) for batch in batches)
        targets += [item for batch in batches for item in batch.target_idx.tolist()]
    assert len(lengths) == 1
    assert np.array_equal(np.bincount(targets, minlength=whole.num_items + 1), whole.train_count)


def answers(loader: RequestLoader) -> list[tuple[Any, ...]]:
    """User, history and relevant items of each request."""
    found: list[tuple[Any, ...]] = []
    for batch, requests in loader:
        relevant = relevant_items(loader.builder.dataset, "test", requests=requests)
        histories = batch.item_idx.split(batch.lengths.tolist())
        for row, (user, history) in enumerate(zip(requests.user_idx.tolist(), histories, strict=True)):
            found.append((user, history.tolist(), relevant.take(np.array([row])).values.tolist()))
    return found


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("in_one", [True, False])
def test_a_training_reads_portions(whole: PreparedDataset, sharded: Path, in_one: bool, refit: bool) -> None:
    dataset = PreparedDataset.open(whole.path if in_one else sharded)
    dataset = dataset.refit() if refit else dataset
    sampling = TargetSampling(half_life_days=3)
    data = RetrievalData(dataset, max_history=4, batch_size=16, target_sampling=sampling, portions=True)
    weights: dict[tuple[int, int], float] = {}
    steps, counts = set(), np.zeros(dataset.num_items + 1, np.int64)
    asked: dict[Part, list[Any]] = {"val": [], "test": []}
    for rank in range(2):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        loader = data.train_dataloader()
        portion = loader.builder.dataset.portion
        assert portion is not None
        steps.add(len(loader))
        for batch in loader:
            assert {*batch.user_idx.tolist()} <= {*range(*portion.cuts[rank : rank + 2].tolist())}
            assert batch.weight is not None
            counts += np.bincount(batch.target_idx, minlength=len(counts))
            keys = zip(batch.target_idx.tolist(), batch.target_time.tolist(), strict=True)
            weights |= dict(zip(keys, batch.weight.tolist(), strict=True))
        for part, found in asked.items():
            requests = data.answer(dataset.requests(part))
            steps.add(f"{len(requests)} of {part}")
            found += answers(requests)
    assert len(steps) == 3
    for part, found in asked.items():
        requests = dataset.requests(part)
        assert found == answers(RequestLoader(data.builder, requests))
        assert bool(found) == (part == "test" or not refit)
    assert np.array_equal(counts, dataset.train_count)
    # Ages count from the newest event of all users.
    data.trainer = SimpleNamespace(global_rank=0, world_size=1)  # type: ignore[assignment]
    for batch in data.train_dataloader():
        assert batch.weight is not None
        keys = zip(batch.target_idx.tolist(), batch.target_time.tolist(), strict=True)
        assert [weights[key] for key in keys] == pytest.approx(batch.weight.tolist())


def test_requests_of_a_portion_all_belong_to_its_process(sharded: Path) -> None:
    own = PreparedDataset.open(sharded, rank=1, world_size=2)
    asked = [user for _, requests in RetrievalData(own).test_dataloader() for user in requests.user_idx.tolist()]
    assert asked == own.requests("test").user_idx.tolist()


def test_users_behind_the_last_shard_have_no_rows(tmp_path: Path) -> None:
    (tmp_path / "shard").mkdir()
    np.save(tmp_path / "shard/item_idx.npy", np.array([1, 2, 3]))
    Shards(str(tmp_path), ("item_idx",), (Shard("shard", 0, 3),)).save(tmp_path / FILE)
    for rank, expected in ((0, [1, 2, 3]), (1, [])):
        portion = Portion(rank=rank, cuts=np.array([0, 1, 2]), num_trained=np.array([3, 0]))
        columns = LocalColumns.of(tmp_path, np.array([0, 3, 3]), portion)
        assert columns.load("item_idx").tolist() == expected


def test_fewer_shards_than_processes_are_refused(whole: PreparedDataset, tmp_path: Path) -> None:
    folder = in_shards(whole, tmp_path, [0, 9])
    with pytest.raises(UserError, match=r"shards\.json: 2 shards for 4 processes"):
        PreparedDataset.open(folder, rank=1, world_size=4)


@pytest.mark.parametrize("place", ["local", "memory://growing"])
@pytest.mark.parametrize("width", [(), (3,)])
def test_arrays_that_grow_are_those_of_numpy(tmp_path: Path, place: str, width: tuple[int, ...]) -> None:
    address = place if "://" in place else f"{tmp_path}/{place}"
    parts = [np.ones((rows, *width), np.int64) * rows for rows in (0, 2, 11)]
    with ArrayFolder(address) as arrays:
        grown, empty = arrays.open("grown", np.int32, width), arrays.open("empty", np.bool_, width)
        for part in parts:
            grown.add(part)
        empty.add(parts[0])
    for name, expected in (("grown", np.concatenate(parts).astype(np.int32)), ("empty", np.zeros((0, *width), bool))):
        np.save(tmp_path / "expected.npy", expected)
        with open_address(f"{address}/{name}.npy") as file:
            assert file.read() == (tmp_path / "expected.npy").read_bytes()


def test_groups_of_rows_do_not_depend_on_the_batches_of_an_engine() -> None:
    rows = pa.record_batch({"n": np.arange(11)})
    for cuts in ([0, 11], [0, 1, 9, 9, 11], [0, 4, 8, 11]):
        batches = [rows.slice(begin, end - begin) for begin, end in pairwise(cuts)]
        found = list(_blocks(batches, 4))
        assert [len(block) for block in found] == [4, 4, 3]
        assert [block["n"].num_chunks for block in found] == [1, 1, 1]
        assert pa.concat_tables(found)["n"].to_pylist() == [*range(11)]


def test_machines_that_prepare_the_same_data_at_once_keep_their_shards_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = {"user_id_idx": [0, 1], "item_id_idx": [1, 2], "time": [3, 4]}
    batches = pa.table(rows).to_batches()
    # One worker gets all rows.
    session: Any = SimpleNamespace(
        output="out",
        for_each=map,
        write_ranges=lambda *_, write, schema, **__: pa.Table.from_batches(write(iter(batches)), schema),
    )
    job: Any = SimpleNamespace(fingerprint="f", time_resolution=TimeResolution.SECONDS)
    coded: Any = SimpleNamespace(columns=list(rows))
    written = []
    for machine in ("a", "b"):
        (folder := tmp_path / machine / "events").mkdir(parents=True)
        write_shards(job, session, coded=coded, drafts={}, num_rows=2, per_second=1, folder=folder)
        written.append(Shards.load(folder / FILE))
    monkeypatch.chdir("/")
    for shards in written:
        (shard,) = shards.shards
        assert np.load(shards.file(shard, "item_idx")).tolist() == [1, 2]
