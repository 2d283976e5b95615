"""Portions: processes that share the users of a data set, each with the events of its own."""

from __future__ import annotations

import shutil
import threading
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from folders import prepared, write_folder
from sharded import in_shards

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
    copied = {file.name: file.read_bytes() for file in (sharded / "events/copied").glob("*.npy")}
    assert copied == {file.name: file.read_bytes() for file in (whole.path / "events").iterdir()}
    late = opened.time
    assert (late + 1 > 1).all()
    assert (len(late), late.dtype, int(late.max())) == (len(whole.time), np.int64, int(whole.time.max()))


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files of shards whose content is read, in order."""
    found: list[str] = []

    def opened(address: str, mode: str = "rb") -> Any:
        file = open_address(address, mode)
        if "moved" in address:
            read = file.read

            def counted(size: int = -1) -> bytes:
                found.extend([address.rpartition("moved/")[2]] * (size > 1 << 20))
                return bytes(read(size))

            file.read = counted
        return file

    monkeypatch.setattr("recsys.data.shards.open_address", opened)
    return found


def run_of(folder: Path, rank: int) -> RetrievalData:
    data = RetrievalData(PreparedDataset.open(folder), max_history=4, batch_size=16, max_exposures=2, portions=True)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=3, state=SimpleNamespace(fn="fit"))  # type: ignore[assignment]
    return data


def test_a_machine_copies_the_shards_of_its_users(whole: PreparedDataset, tmp_path: Path, fetched: list[str]) -> None:
    cuts = [0, 3, 5, 9, 20, 31]
    place = in_shards(whole, tmp_path / "output", cuts)
    columns = Shards.load(place / "events" / FILE).columns
    for ranks in ((0, 1), (2,)):
        machine = tmp_path / f"machine-{ranks[0]}"
        shutil.copytree(place, machine, ignore=shutil.ignore_patterns("moved"))
        fetched.clear()
        for rank in ranks:
            data = run_of(machine, rank)
            for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
                assert list(loader)
        events = [name for name in fetched if name.startswith("events")]
        bounds = data.train_dataloader().builder.dataset.portion.cuts.tolist()  # type: ignore[union-attr]
        own = [cut for cut in cuts if bounds[ranks[0]] <= cut < bounds[ranks[-1] + 1]]
        assert 0 < len(own) < len(cuts)
        blocks = {f"events/{cut}/{column}.npy" for cut in own for column in columns}
        # The mean weight is that of all events.
        assert set(events) == blocks | {f"events/{cut}/weight.npy" for cut in cuts}
        # A block, and the end of the file: another process of the machine copies nothing again.
        assert max(map(fetched.count, fetched)) <= 2
        fetched.clear()
        again = run_of(machine, ranks[-1])
        assert list(again.train_dataloader())
        assert not fetched
        # Opened as one, it copies what is missing of a column that is used.
        again.dataset.time.max()
        assert {*fetched} == {f"events/{cut}/time.npy" for cut in cuts if cut not in own}


def test_processes_of_a_machine_wait_for_a_shard_that_one_copies(
    whole: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetched: list[str]
) -> None:
    place = in_shards(whole, tmp_path, [0, 20])
    copied = Shards._copy

    def slow(self: Shards, *args: Any) -> None:
        started.set()
        copied(self, *args)
        assert not finished.wait(0.2)

    monkeypatch.setattr(Shards, "_copy", slow)
    started, finished = threading.Event(), threading.Event()

    def open_all() -> None:
        np.asarray(PreparedDataset.open(place).item_idx)

    first = threading.Thread(target=open_all)
    first.start()
    started.wait()
    monkeypatch.setattr(Shards, "_copy", copied)
    assert np.array_equal(PreparedDataset.open(place).item_idx, whole.item_idx)
    finished.set()
    first.join()
    assert sorted({*fetched}) == ["events/0/item_idx.npy", "events/20/item_idx.npy"]
    assert max(map(fetched.count, fetched)) == 2


def test_a_missing_shard_is_named(whole: PreparedDataset, tmp_path: Path) -> None:
    place = in_shards(whole, tmp_path, [0, 20])
    shutil.rmtree(place / "moved/events/20")
    opened = PreparedDataset.open(place)
    with pytest.raises(UserError, match=r"events/20/time\.npy: this shard .* is missing"):
        opened.time.max()


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


def test_processes_that_open_portions_have_as_many_batches(
    whole: PreparedDataset, sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process without further requests would leave the others in a look-up of rows that all share."""
    monkeypatch.setattr("recsys.data.batches.datamodule.RequestLoader", partial(RequestLoader, batch_size=1))
    opened = [PreparedDataset.open(sharded, rank=rank, world_size=3) for rank in range(3)]
    sizes = [len(own.requests("val").user_idx) for own in opened]
    monkeypatch.setattr("recsys.core.distributed.share", lambda _: sizes)
    assert len({*sizes}) > 1
    sample, lengths = [], set()
    for rank, own in enumerate(opened):
        data = RetrievalData(own, val_users=sum(sizes) // 2, seed=3)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=3, state=SimpleNamespace(fn="fit"))  # type: ignore[assignment]
        lengths.add(len(data.answer(own.requests("val"))))
        sample += data.val_dataloader().requests.user_idx.tolist()
    assert lengths == {max(sizes)}
    # The sample is the one of a process that has all users.
    alone = RetrievalData(whole, val_users=sum(sizes) // 2, seed=3)
    alone.trainer = SimpleNamespace(global_rank=0, world_size=1, state=SimpleNamespace(fn="fit"))  # type: ignore[assignment]
    assert sample == alone.val_dataloader().requests.user_idx.tolist()
    with pytest.raises(UserError, match="found events of process 1 of 3, expected those of all users"):
        opened[0].part_times("val")


def test_users_behind_the_last_shard_have_no_rows(tmp_path: Path) -> None:
    (tmp_path / "shard").mkdir()
    np.save(tmp_path / "shard/item_idx.npy", np.array([1, 2, 3]))
    Shards(str(tmp_path), ("item_idx",), (Shard("shard", 0, 3),)).save(tmp_path / FILE)
    for rank, expected in ((0, [1, 2, 3]), (1, [])):
        portion = Portion(rank=rank, cuts=np.array([0, 1, 2]), num_trained=np.array([3, 0]))
        columns = LocalColumns.of(tmp_path, np.array([0, 3, 3]), portion)
        assert columns.load("item_idx").tolist() == expected


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_empty_list_of_shards_is_refused(whole: PreparedDataset, tmp_path: Path, world_size: int) -> None:
    file = in_shards(whole, tmp_path, [0, 20]) / "events" / FILE
    Shards(str(tmp_path), ("item_idx", "time"), ()).save(file)
    with pytest.raises(UserError, match=rf"{file}: found no shards, expected at least one .* prepare the data again"):
        PreparedDataset.open(tmp_path, world_size=world_size)


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
