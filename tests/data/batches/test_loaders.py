"""Epochs: every event once, in an order that a checkpoint can go on with, shared out between processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from batch_checks import check_targets, users_strategy, visible, with_times
from handmade import training_only
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.core.errors import UserError
from recsys.data.batches import loaders
from recsys.data.batches.batch import Batch, Windows
from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.datamodule import RetrievalData
from recsys.data.batches.loaders import RequestLoader, TrainingLoader
from recsys.data.batches.targets import TargetSampling
from recsys.data.dataset import Requests

# Lengths below, at and above a history of 4.
LENGTHS = (1, 2, 4, 5, 6, 9, 23)
USERS = [[(1 + (step * 7 + user) % 5, step) for step in range(length)] for user, length in enumerate(LENGTHS)]


def builder(max_history: int = 4, predict_first: bool = True) -> BatchBuilder:
    return BatchBuilder(training_only(USERS), max_history, predict_first=predict_first)


def positions(batch: Batch) -> list[int]:
    return [position for position, _, _ in visible(batch)]


@settings(max_examples=80, deadline=None)
@given(
    users_strategy,
    st.integers(1, 6),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from(["seconds", "none"]),
    st.sampled_from([1, 1, 3]),
    st.integers(0, 3),
)
def test_every_event_is_a_target_once_an_epoch(
    users: list[list[tuple[int, int]]],
    max_history: int,
    batch_size: int,
    predict_first: bool,
    time_resolution: str,
    horizon: int,
    seed: int,
) -> None:
    dataset = training_only(with_times(users), time_resolution)
    builder = BatchBuilder(
        dataset, max_history, predict_first=predict_first, target_sampling=TargetSampling(horizon=horizon)
    )
    if max(np.diff(dataset.offsets)) < (1 if predict_first else 2):
        with pytest.raises(UserError, match="found no user with the . training events that a target needs"):
            TrainingLoader(builder, batch_size, seed=seed)
        return
    loader = TrainingLoader(builder, batch_size, seed=seed)
    for _ in range(3):
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(1 <= len(batch.lengths) <= 2 * batch_size for batch in batches)
        check_targets(dataset, batches, max_history, predict_first, horizon)


def test_epochs_differ_and_repeat_with_the_seed() -> None:
    def epochs(seed: int) -> list[list[list[int]]]:
        loader = TrainingLoader(builder(), 3, seed=seed)
        return [[positions(batch) for batch in loader] for _ in range(2)]

    first, second = epochs(0)
    assert first != second
    assert epochs(0) == [first, second]
    assert epochs(1)[0] != first


def test_cuts_move_from_epoch_to_epoch() -> None:
    loader = TrainingLoader(builder(), 100, seed=0)
    contexts = [{position: len(seen) for batch in loader for position, _, seen in visible(batch)} for _ in range(8)]
    last = training_only(USERS).meta.num_events - 1
    assert len({context[last] for context in contexts}) > 1


@pytest.mark.parametrize("stop", [1, 3, 5, 7])
def test_a_loader_continues_from_a_saved_state(stop: int) -> None:
    def forever(loader: TrainingLoader) -> Iterator[list[int]]:
        while True:
            for batch in loader:
                yield positions(batch)

    whole = forever(TrainingLoader(builder(), 3, seed=5))
    loader = TrainingLoader(builder(), 3, seed=5)
    stopped = forever(loader)
    for _ in range(stop):
        assert next(stopped) == next(whole)
    other = TrainingLoader(builder(), 3, seed=5)
    other.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    resumed = forever(other)
    for _ in range(2 * len(loader)):
        assert next(resumed) == next(whole)


def test_the_last_batch_ends_the_epoch_without_another_request() -> None:
    loader = TrainingLoader(builder(), 3, seed=0)
    stream = iter(loader)
    for _ in range(len(loader)):
        next(stream)
    assert loader.state_dict() == {"epoch": 1, "next_batch": 0}
    assert len(list(loader)) == len(loader)
    assert loader.state_dict() == {"epoch": 2, "next_batch": 0}


def test_datamodule_hands_its_place_to_the_next_loader() -> None:
    data = RetrievalData(training_only(USERS), max_history=4, batch_size=3)
    loader = data.train_dataloader()
    next(iter(loader))
    state = data.state_dict()
    other = RetrievalData(training_only(USERS), max_history=4, batch_size=3)
    other.load_state_dict(state)
    assert [positions(b) for b in other.train_dataloader()] == [positions(b) for b in loader]


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_each_batch(world_size: int) -> None:
    single = TrainingLoader(builder(), 7, seed=0)
    ranks = [TrainingLoader(builder(), 7, seed=0, rank=rank, world_size=world_size) for rank in range(world_size)]
    for batch, *parts in zip(single, *ranks, strict=True):
        assert sorted(positions(batch)) == sorted(p for part in parts for p in positions(part))
        assert all(len(part.lengths) for part in parts)


def test_more_processes_than_windows_are_refused() -> None:
    with pytest.raises(UserError, match="found 8 processes for 7 training histories with targets"):
        TrainingLoader(builder(50), 1, seed=0, world_size=8)


def test_a_user_with_one_event_is_a_target_of_the_empty_history_only() -> None:
    dataset = training_only([[(1, 0)], [(2, 0), (1, 1)]])
    with_first = TrainingLoader(BatchBuilder(dataset, 4, predict_first=True), 8, seed=0)
    assert sorted(p for batch in with_first for p in positions(batch)) == [0, 1, 2]
    without = TrainingLoader(BatchBuilder(dataset, 4, predict_first=False), 8, seed=0)
    assert [p for batch in without for p in positions(batch)] == [2]


def test_every_request_is_given_to_one_process() -> None:
    requests = Requests(np.arange(7), np.array([1, 2, 3, 4, 5, 6, 7]))
    requests = Requests(requests.user_idx, builder().dataset.offsets[1:])
    seen: list[int] = []
    for rank in range(2):
        loader = RequestLoader(builder(), requests, batch_size=2, rank=rank, world_size=2)
        batches = list(loader)
        assert len(batches) == len(loader)
        for batch, chosen in batches:
            assert torch.equal(batch.user_idx, torch.from_numpy(chosen.user_idx))
            seen.extend(chosen.user_idx.tolist())
    assert sorted(seen) == list(range(7))


def windows_at_once(loader: TrainingLoader, epoch: int) -> list[list[list[int]]]:
    """Windows of each batch, all cut at once and permuted: the reference for cuts in blocks."""
    data, length, shared = loader.builder.dataset, loader.builder.max_history, 0 if loader.builder.predict_first else 1
    stride, rng = length + 1 - shared, np.random.default_rng([loader.seed, epoch])
    num_events = data.train_end - data.offsets[:-1]
    users = np.flatnonzero(num_events >= 1 + shared)
    windows = []
    random = rng.integers(1, stride + 1, len(users))
    for user, second in zip(users.tolist(), random.tolist(), strict=True):
        begin, size = int(data.offsets[user]), int(num_events[user])
        second = second if size > length + 1 else size
        windows.append([user, begin, begin + min(second - 1 + shared, size - 1)])
        for first in range(second, size - shared, stride):
            windows.append([user, begin + first, begin + min(first + length, size - 1)])
    order = rng.permutation(len(windows))
    bounds = np.arange(len(loader) + 1) * len(order) // len(loader)
    return [[windows[w] for w in order[first:last]] for first, last in pairwise(bounds)]


@pytest.mark.parametrize("predict_first", [True, False])
@pytest.mark.parametrize("block", [1, 3, 1000])
def test_cuts_in_blocks_give_the_windows_of_cuts_at_once(
    monkeypatch: pytest.MonkeyPatch, predict_first: bool, block: int
) -> None:
    monkeypatch.setattr(loaders, "BLOCK", block)
    dataset = training_only([*USERS, [(1, 0)], *USERS])
    loader = TrainingLoader(BatchBuilder(dataset, 4, predict_first=predict_first), 5, seed=3)
    for epoch in range(2):
        taken: list[list[list[int]]] = []

        def keep(windows: Windows, _: object, taken: list[list[list[int]]] = taken) -> Windows:
            taken.append(np.stack([windows.user_idx, windows.begin, windows.end], axis=1).tolist())
            return windows

        monkeypatch.setattr(loader.builder, "training", keep)
        assert len(list(loader)) == len(taken)
        assert taken == windows_at_once(loader, epoch)
