"""Events that a query of a batch may see, against plain Python."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from batch_checks import check_targets, own_items, users_strategy, visible, with_times
from handmade import training_only
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.core.columns import Column, Dense, Ragged
from recsys.core.errors import UserError
from recsys.data.batches import builder
from recsys.data.batches.batch import RaggedTensor, Windows, take_or_missing
from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.targets import TargetSampling
from recsys.data.dataset import Requests


@settings(max_examples=60, deadline=None)
@given(users_strategy, st.booleans(), st.sampled_from(["seconds", "none"]))
def test_whole_histories(users: list[list[tuple[int, int]]], predict_first: bool, time_resolution: str) -> None:
    dataset = training_only(with_times(users), time_resolution)
    chosen = np.flatnonzero(np.diff(dataset.offsets) > 0)
    if not len(chosen):
        return
    builder = BatchBuilder(dataset, 20, predict_first=predict_first)
    begin, end = dataset.offsets[:-1][chosen], dataset.offsets[1:][chosen]
    batch = builder.training(Windows(chosen, begin, end - 1, np.ones(len(chosen), bool)))
    check_targets(dataset, [batch], 20, predict_first)
    for row, user in enumerate(chosen):
        assert own_items(batch, row).tolist() == sorted({item for item, _ in users[user]})


def test_many_windows_of_a_long_history_share_its_distinct_items(monkeypatch: pytest.MonkeyPatch) -> None:
    history = [(1 + step * step % 7, step) for step in range(40)]
    dataset = training_only([history, [(3, 0), (1, 1), (3, 2)], history])
    order = np.array([2, 0, 2, 1, 0, 2])
    begin = dataset.offsets[order] + np.array([0, 4, 20, 0, 8, 30])
    windows = Windows(order, begin, begin + 2, np.ones(6, bool))
    usual = BatchBuilder(dataset, 3).training(windows)
    monkeypatch.setattr(builder, "LONG", 10)
    several = BatchBuilder(dataset, 3)
    kept = [several.training(windows), several.training(windows)]
    # Room for the four items of one of the two long histories alone.
    monkeypatch.setattr(builder, "MOST_KEPT", 5)
    bounded = BatchBuilder(dataset, 3)
    kept += [bounded.training(windows), bounded.training(windows)]
    assert (len(several._items_of_long), len(bounded._items_of_long)) == (2, 1)
    for batch in (usual, *kept):
        items = {0: [1, 2, 3, 5], 1: [1, 3], 2: [1, 2, 3, 5]}
        assert [own_items(batch, row).tolist() for row in range(6)] == [items[user] for user in order]
        # Memory grows with users, not with windows.
        assert len(batch.positives.values) == 10


def test_a_basket_that_a_window_cuts_through_is_predicted_by_it() -> None:
    # Positions 0 | 1 2 3 | 4; the window reads 0 and 1.
    dataset = training_only([[(1, 0), (2, 5), (3, 5), (4, 5), (5, 9)]])
    builder = BatchBuilder(dataset, 2, predict_first=False)
    first = Windows(np.array([0]), np.array([0]), np.array([2]), np.array([True]))
    assert visible(builder.training(first)) == [(1, 2, [0]), (2, 3, [0]), (3, 4, [0])]
    second = Windows(np.array([0]), np.array([2]), np.array([4]), np.array([False]))
    assert visible(builder.training(second)) == [(4, 5, [2, 3])]


def test_a_window_within_one_basket_predicts_nothing() -> None:
    dataset = training_only([[(item, 0) for item in range(1, 8)]])
    windows = Windows(np.array([0]), np.array([2]), np.array([4]), np.array([False]))
    assert visible(BatchBuilder(dataset, 2, predict_first=False).training(windows)) == []


def test_the_outcome_of_a_target_is_not_in_its_query() -> None:
    users = [[(1, 0), (2, 1), (3, 2), (4, 3)]]
    dataset = training_only(users)
    window = Windows(np.array([0]), np.array([0]), np.array([3]), np.array([True]))
    batch = BatchBuilder(dataset, 10).training(window)
    # The last event is predicted and not read: its outcome is nowhere in the batch.
    outcomes = batch.events["outcome"]
    assert isinstance(outcomes, torch.Tensor)
    assert outcomes.tolist() == [0.0, 1.0, 2.0]
    assert [row[2] for row in visible(batch)] == [[], [0], [0, 1], [0, 1, 2]]
    # Request features are those of the target itself; of past events they are in the history too.
    assert batch.requests["context"].tolist() == [2, 3, 4, 5]  # type: ignore[union-attr]
    assert batch.events["context"].tolist() == [2, 3, 4]  # type: ignore[union-attr]
    assert "outcome" not in batch.requests


def test_requests_read_the_last_events_and_the_request_features_of_the_next() -> None:
    dataset = training_only([[(1, 0), (2, 1), (3, 2)], [(4, 0)]])
    requests = Requests(np.array([0, 0, 1, -1]), np.array([2, 3, 3, 0]))
    batch = BatchBuilder(dataset, 2).requests(requests)
    assert batch.lengths.tolist() == [2, 2, 0, 0]
    assert batch.item_idx.tolist() == [1, 2, 2, 3]
    # 0 (missing) where no event follows.
    assert batch.requests["context"].tolist() == [4, 0, 5, 0]  # type: ignore[union-attr]
    assert batch.query.tolist() == [2, 5, 6, 7]
    given_columns: dict[str, Column] = {"context": Dense(np.array([7, 8, 9, 7], np.int32))}
    batch = BatchBuilder(dataset, 2).requests(requests, given_columns)
    assert batch.requests["context"].tolist() == [7, 8, 9, 7]  # type: ignore[union-attr]


@pytest.mark.parametrize("rows", [[0, -1, 2, 0], [-1], [1, 2], []])
def test_row_minus_one_is_missing(rows: list[int]) -> None:
    chosen = np.array(rows, np.int64)
    codes = take_or_missing(Dense(np.array([5, 6, 7], np.int32)), chosen)
    assert isinstance(codes, Dense)
    assert codes.values.tolist() == [0 if row < 0 else 5 + row for row in rows]
    numbers = take_or_missing(Dense(np.array([0.5, 1.5, 2.5], np.float32)), chosen)
    assert isinstance(numbers, Dense)
    assert np.isnan(numbers.values).tolist() == [row < 0 for row in rows]
    bags = take_or_missing(Ragged(np.array([3, 4, 5], np.int32), np.array([0, 2, 2, 3])), chosen)
    assert isinstance(bags, Ragged)
    expected: list[list[int]] = [[] if row < 0 else [[3, 4], [], [5]][row] for row in rows]
    assert [bags.values[a:b].tolist() for a, b in zip(bags.offsets[:-1], bags.offsets[1:], strict=True)] == expected


def test_to_moves_every_tensor() -> None:
    dataset = training_only([[(1, 0), (2, 1)]])
    batch = BatchBuilder(dataset, 2).requests(Requests(np.array([0]), np.array([2])))
    exposures = RaggedTensor(torch.ones(1), torch.ones(2))
    batch = dataclasses.replace(batch, weight=torch.ones(1), exposures=exposures).to("meta")
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        tensors = list(value.values()) if isinstance(value, dict) else [value]
        for tensor in tensors:
            for part in tensor if isinstance(tensor, RaggedTensor) else [tensor]:
                assert isinstance(part, np.ndarray) or part.device.type == "meta", field.name


@pytest.mark.parametrize("predict_first", [False, True])
def test_a_horizon_only_moves_queries_back(predict_first: bool) -> None:
    dataset = training_only([[(1, time) for time in range(40)]])
    window = Windows(np.array([0]), np.array([0]), np.array([39]), np.array([True]))
    near = visible(BatchBuilder(dataset, 40, predict_first=predict_first).training(window))
    far = visible(
        BatchBuilder(dataset, 40, predict_first=predict_first, target_sampling=TargetSampling(horizon=5)).training(
            window, np.random.default_rng(0)
        )
    )
    assert [(position, item) for position, item, _ in far] == [(position, item) for position, item, _ in near]
    steps = [len(just) - len(seen) for (_, _, just), (_, _, seen) in zip(near, far, strict=True)]
    assert set(steps) == {0, 1, 2, 3, 4}
    assert all(seen == list(range(len(seen))) for _, _, seen in far)
    assert predict_first or all(seen for _, _, seen in far)


@pytest.mark.parametrize("predict_first", [False, True])
@pytest.mark.parametrize("time_resolution", ["none", "seconds"])
def test_without_time_the_order_of_the_file_is_not_learned(predict_first: bool, time_resolution: str) -> None:
    dataset = training_only([[(1, 86_400 * time) for time in range(30)]], time_resolution=time_resolution)
    window = Windows(np.array([0]), np.array([0]), np.array([29]), np.array([True]))
    builder = BatchBuilder(
        dataset,
        40,
        predict_first=predict_first,
        target_sampling=TargetSampling(order="time" if time_resolution == "none" else "random"),
    )
    orders = []
    for seed in range(3):
        rows = visible(builder.training(window, np.random.default_rng(seed)))
        order = [position for position, _, _ in rows]
        assert sorted(order) == list(range(0 if predict_first else 1, 30))
        shown = rows[-1][2]
        assert all(seen == shown[: len(seen)] for _, _, seen in rows)
        assert predict_first or shown[0] == 0
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 20), min_size=2, max_size=12), min_size=1, max_size=4), st.integers(1, 9))
def test_a_gap_hides_recent_events(days: list[list[int]], gap: int) -> None:
    dataset = training_only([[(1, day * 86_400) for day in sorted(of_user)] for of_user in days])
    begin = dataset.offsets[:-1]
    windows = Windows(np.arange(len(days)), begin, dataset.train_end - 1, np.ones(len(days), bool))
    for position, _, seen in visible(
        BatchBuilder(dataset, 40, target_sampling=TargetSampling(gap_days=gap)).training(windows)
    ):
        first = begin[np.searchsorted(begin, position, side="right") - 1]
        expected = [p for p in range(first, position) if dataset.time[p] <= dataset.time[position] - gap * 86_400]
        assert seen == expected


def test_a_target_counts_half_when_it_is_older_by_the_half_life() -> None:
    dataset = training_only([[(1, 0), (1, 86_400)], [(1, 2 * 86_400), (1, 2 * 86_400)]])
    windows = Windows(np.array([0, 1]), np.array([0, 2]), np.array([1, 3]), np.array([True, True]))
    weight = BatchBuilder(dataset, 40, target_sampling=TargetSampling(half_life_days=1)).training(windows).weight
    assert weight is not None
    assert weight.tolist() == [0.25, 0.5, 1, 1]
    assert BatchBuilder(dataset, 40).training(windows).weight is None


@pytest.mark.parametrize("given_settings", [{"gap_days": 1}, {"half_life_days": 7}])
@pytest.mark.parametrize("time_resolution", ["order", "none"])
def test_days_need_a_clock(time_resolution: str, given_settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"data.time={time_resolution}"):
        BatchBuilder(
            training_only([[(1, 0), (1, 1)]], time_resolution=time_resolution),
            40,
            target_sampling=TargetSampling(**given_settings),
        )


def test_a_gap_needs_time_in_order() -> None:
    with pytest.raises(UserError, match=r"history.order=time with it, found random"):
        BatchBuilder(training_only([[(1, 0), (1, 1)]]), 40, target_sampling=TargetSampling(gap_days=1, order="random"))


def test_a_target_read_in_random_order_keeps_its_own_weight() -> None:
    dataset = training_only([[(time, 86_400 * time) for time in range(1, 9)]])
    windows = Windows(np.array([0]), np.array([0]), np.array([7]), np.array([True]))
    builder = BatchBuilder(dataset, 40, target_sampling=TargetSampling(half_life_days=1, order="random"))
    batch = builder.training(windows, np.random.default_rng(0))
    assert batch.weight is not None
    assert batch.weight.tolist() == [2.0 ** (item - 8) for item in batch.target_idx.tolist()]
    assert batch.target_idx.tolist() != sorted(batch.target_idx.tolist())


def test_a_gap_needs_the_empty_history() -> None:
    with pytest.raises(UserError, match="predict_first"):
        BatchBuilder(
            training_only([[(1, 0), (1, 1)]]), 40, predict_first=False, target_sampling=TargetSampling(gap_days=1)
        )
