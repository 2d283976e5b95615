"""Place of a history that predicts a target, and weight of the target. Hand-computed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from batch_checks import visible
from folders import prepared, write_folder
from handmade import training_only

from recsys.core.errors import UserError
from recsys.data.batches.batch import Windows
from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.targets import DAY, TargetSampling
from recsys.data.dataset import PreparedDataset
from recsys.data.preparation.splits import GivenSplit


def whole(dataset: PreparedDataset) -> Windows:
    users = np.arange(dataset.num_users)
    return Windows(users, dataset.offsets[:-1], dataset.train_end - 1, np.ones(len(users), bool))


@pytest.mark.parametrize("predict_first", [True, False])
def test_a_window_of_days_by_hand(predict_first: bool) -> None:
    dataset = training_only([[(1, day * DAY) for day in (0, 1, 5, 6, 6, 40)], [(1, 0), (1, DAY)]])
    builder = BatchBuilder(dataset, 10, predict_first=predict_first, target_sampling=TargetSampling(window_days=5))
    seen: dict[int, Counter[int]] = {}
    for seed in range(600):
        batch = builder.training(whole(dataset), np.random.default_rng(seed))
        for position, _, events in visible(batch):
            assert events == list(range(events[0], events[0] + len(events))) if events else True
            seen.setdefault(position, Counter())[len(events)] += 1
    assert seen.keys() == ({*range(8)} if predict_first else {1, 2, 3, 4, 5, 7})
    # The target of day 5 is predicted after the event of day 0 or that of day 1; those of day 6, a basket, after day 1
    # or day 5; what comes 34 days later, after all there is.
    places = {2: [1, 2], 3: [2, 3], 4: [2, 3], 1: [1], 5: [5], 7: [1], 0: [0], 6: [0]}
    for position, counts in seen.items():
        assert sorted(counts) == places[position]
        for count in counts.values():
            assert count == pytest.approx(600 / len(counts), rel=0.15)


def test_a_window_keeps_its_distance_from_a_gap() -> None:
    dataset = training_only([[(1, day * DAY) for day in (0, 1, 2, 3, 4)]])
    builder = BatchBuilder(dataset, 10, target_sampling=TargetSampling(window_days=3, gap_days=2))
    seen: dict[int, set[int]] = {}
    for seed in range(100):
        for position, _, events in visible(builder.training(whole(dataset), np.random.default_rng(seed))):
            seen.setdefault(position, set()).add(len(events))
    # The last event seen is 2 or 3 days before the target.
    assert seen == {0: {0}, 1: {0}, 2: {1}, 3: {1, 2}, 4: {2, 3}}


def test_a_window_changes_no_target() -> None:
    dataset = training_only([[(item, item * DAY) for item in range(1, 30)], [(3, 0)]])
    plain = BatchBuilder(dataset, 40).training(whole(dataset))
    batch = BatchBuilder(dataset, 40, target_sampling=TargetSampling(window_days=28)).training(
        whole(dataset), np.random.default_rng(0)
    )
    assert batch.target_idx.tolist() == plain.target_idx.tolist()
    assert batch.query.tolist() != plain.query.tolist()


ACTIONS = {
    "user_id": [1, 1, 1, 2, 2, 2],
    "item_id": [10, 11, 12, 10, 13, 11],
    "timestamp": [0, DAY, 2 * DAY, 0, 2 * DAY, 3 * DAY],
    "split": ["train", "train", "train", "train", "val", "test"],
    "action": ["click", "save", None, "hide", "send", "click"],
    "bought": [True, False, True, True, False, False],
    "stars": [5, 4, 5, 3, 1, 1],
    "dwell": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    "tags": [["a"], [], ["b"], ["a"], [], []],
}
DECLARED = {"interactions": {name: {"role": "event"} for name in ("action", "bought", "stars", "dwell", "tags")}}


@pytest.fixture(scope="module")
def actions(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    root = write_folder(tmp_path_factory.mktemp("actions") / "data", ACTIONS)
    return prepared(root, GivenSplit(), features=DECLARED)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"action": {"save": 2.0, "hide": 0}}, [1, 2, 1, 0]),
        # Integers and booleans as configurations write them, or as they are.
        ({"stars": {5: 3.0}}, [3, 1, 3, 1]),
        ({"stars": {"5": 3.0}}, [3, 1, 3, 1]),
        ({"bought": {"false": 0.5}}, [1, 0.5, 1, 1]),
        ({"bought": {False: 0.5}}, [1, 0.5, 1, 1]),
        ({"action": {"save": 2.0}, "stars": {4: 5.0}}, [1, 10, 1, 1]),
    ],
)
def test_weights_of_actions_by_hand(actions: PreparedDataset, weights: Any, expected: list[float]) -> None:
    batch = BatchBuilder(actions, 10, target_sampling=TargetSampling(action_weights=weights)).training(whole(actions))
    assert batch.target_idx.tolist() == actions.item_idx[[0, 1, 2, 3]].tolist()
    assert batch.weight is not None
    assert batch.weight.tolist() == expected


def test_actions_and_age_weigh_together(actions: PreparedDataset) -> None:
    target_sampling = TargetSampling(half_life_days=1, action_weights={"action": {"save": 3.0}})
    batch = BatchBuilder(actions, 10, target_sampling=target_sampling).training(whole(actions))
    assert batch.weight is not None
    assert batch.weight.tolist() == [0.25, 1.5, 1, 0.25]


def test_old_events_have_no_weight_as_targets() -> None:
    # Times 0, 1, 2, 3, 4 and 6 days: the median is 2.5.
    dataset = training_only([[(1, 0), (2, DAY), (3, 4 * DAY)], [(1, 2 * DAY), (2, 3 * DAY), (3, 6 * DAY)]])
    assert dataset.training_time(0.5) == 2.5 * DAY
    batch = BatchBuilder(dataset, 10, target_sampling=TargetSampling(targets_since=0.5)).training(whole(dataset))
    assert batch.weight is not None
    # They are read all the same.
    assert batch.item_idx.tolist() == [1, 2, 1, 2]
    assert dict(zip(batch.target_idx.tolist()[:3], batch.weight.tolist()[:3], strict=True)) == {1: 0, 2: 0, 3: 1}
    assert batch.weight.tolist()[3:] == [0, 1, 1]
    both = BatchBuilder(dataset, 10, target_sampling=TargetSampling(targets_since=0.5, half_life_days=1)).training(
        whole(dataset)
    )
    assert both.weight is not None
    assert both.weight.tolist() == [0, 0, 0.25, 0, 0.125, 1]
    assert BatchBuilder(dataset, 10).training(whole(dataset)).weight is None


def test_old_events_need_time() -> None:
    with pytest.raises(UserError, match="history.targets_since=0.5 with data.time=none"):
        BatchBuilder(training_only([[(1, 0)]], "none"), 10, target_sampling=TargetSampling(targets_since=0.5))


def test_weights_follow_their_targets_in_random_order(actions: PreparedDataset) -> None:
    target_sampling = TargetSampling(order="random", action_weights={"action": {"click": 2.0, "save": 3.0}})
    builder = BatchBuilder(actions, 10, target_sampling=target_sampling)
    of_item = dict(zip(actions.item_idx[:3].tolist(), [2.0, 3.0, 1.0], strict=True))
    orders = set()
    for seed in range(5):
        first = Windows(*(column[:1] for column in whole(actions)))
        batch = builder.training(first, np.random.default_rng(seed))
        assert batch.weight is not None
        assert batch.weight.tolist() == [of_item[item] for item in batch.target_idx.tolist()]
        orders.add(tuple(batch.target_idx.tolist()))
    assert len(orders) > 1


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"acton": {"save": 2.0}}, r"history.action_weights.acton: no such column.*did you mean 'action'"),
        ({"action": {"sav": 2.0}}, r"history.action_weights.action.sav: no training event has it.*'save'"),
        # Only validation has it.
        ({"action": {"send": 2.0}}, r"action_weights.action.send: no training event has it"),
        ({"action": {"save": -1.0}}, r"action.save: found -1.0, expected a number of 0 or more"),
        ({"action": {"save": "much"}}, r"action.save: found much, expected a number"),
        ({"action": 2.0}, r"action_weights.action=2.0: expected \{value: weight\}"),
        ({"dwell": {"1.0": 2.0}}, r"action_weights.dwell: the column is numeric, expected categorical"),
        ({"tags": {"a": 2.0}}, r"action_weights.tags: the column is multi_categorical, expected categorical"),
    ],
)
def test_weights_of_missing_columns_or_values_are_refused(actions: PreparedDataset, weights: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        BatchBuilder(actions, 10, target_sampling=TargetSampling(action_weights=weights))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 0}, "history.horizon: found 0, expected at least 1"),
        ({"gap_days": -1}, "history.gap_days: found -1, expected 0 or more"),
        ({"window_days": 0}, "history.window_days: found 0, expected a positive number"),
        ({"window_days": "week"}, "history.window_days: found week, expected a positive number"),
        ({"targets_since": 1}, "history.targets_since: found 1, expected a share of 0 to below 1"),
        ({"half_life_days": -2}, "history.half_life_days: found -2, expected a positive number"),
        ({"order": "file"}, "history.order: found 'file', expected 'time' or 'random'"),
        ({"horizon": 3, "window_days": 7}, "history.window_days=7 with history.horizon=3: expected one of them"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TargetSampling(**settings)


@pytest.mark.parametrize("time_resolution", ["order", "none"])
def test_a_window_needs_a_clock(time_resolution: str) -> None:
    with pytest.raises(UserError, match=f"history.window_days=7 with data.time={time_resolution}"):
        BatchBuilder(
            training_only([[(1, 0), (1, 1)]], time_resolution=time_resolution),
            40,
            target_sampling=TargetSampling(window_days=7),
        )


def test_a_window_needs_time_in_order() -> None:
    with pytest.raises(UserError, match=r"history.order=time with it, found random"):
        BatchBuilder(training_only([[(1, 0)]]), 40, target_sampling=TargetSampling(window_days=7, order="random"))
