"""Probabilities of targets equal what batches hold, event by event."""

from __future__ import annotations

import dataclasses
from math import log

import numpy as np
import pytest
import torch
from folders import events, prepared, write_folder
from handmade import training_only
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from worlds import compose, write_world

from recsys.core.errors import UserError
from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.loaders import TrainingLoader
from recsys.data.batches.targets import TargetSampling
from recsys.data.dataset import NO_BIRTH
from recsys.data.portions import Portion
from recsys.data.preparation.splits import GivenSplit
from recsys.experiments.assembly import open_data
from recsys.training.frequency import (
    EVIDENCE,
    SMOOTHING,
    CountMinFrequency,
    ExactFrequency,
    Frequency,
    RisenItems,
    StreamingFrequency,
    prior_shift,
    target_counts,
    target_probabilities,
)


def test_counts_by_hand() -> None:
    # The second user starts with a basket of two.
    dataset = training_only([[(1, 0), (2, 1), (1, 2)], [(2, 5), (3, 5), (3, 6)], [(1, 0)], []], num_items=4)
    assert target_counts(dataset, predict_first=True).tolist() == [0, 3, 2, 2, 0]
    assert target_counts(dataset, predict_first=False).tolist() == [0, 1, 1, 1, 0]
    assert target_probabilities(dataset, predict_first=True).tolist() == [0, 3 / 7, 2 / 7, 2 / 7, 0]


def test_a_portion_has_no_counts_of_all_users() -> None:
    whole = training_only([[(1, 0), (2, 1)], [(2, 5)]])
    cuts = np.array([0, 1, 2])
    own = dataclasses.replace(whole, portion=Portion(rank=0, cuts=cuts, num_trained=np.diff(whole.offsets)))
    for count in (lambda: target_counts(own, predict_first=False), lambda: prior_shift(own, half_life_days=1)):
        with pytest.raises(UserError, match="events of process 1 of 2, expected those of all users"):
            count()


def test_without_times_only_the_first_event_is_left_out() -> None:
    dataset = training_only([[(1, 0), (2, 0), (3, 0)]], time_resolution="none")
    assert target_counts(dataset, predict_first=False).tolist() == [0, 0, 1, 1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 1)), max_size=12), min_size=1, max_size=5),
    st.booleans(),
    st.sampled_from(["seconds", "none"]),
    st.integers(1, 5),
)
def test_counts_are_those_of_an_epoch(
    users: list[list[tuple[int, int]]], predict_first: bool, time_resolution: str, max_history: int
) -> None:
    timed = [[(item, sum(step for _, step in h[: k + 1])) for k, (item, _) in enumerate(h)] for h in users]
    dataset = training_only(timed, time_resolution, num_items=5)
    if np.diff(dataset.offsets).max() < 2:
        return
    loader = TrainingLoader(BatchBuilder(dataset, max_history, predict_first=predict_first), 3, seed=0)
    held = np.zeros(6)
    for batch in loader:
        held += np.bincount(batch.target_idx.numpy(), minlength=6)
    assert target_counts(dataset, predict_first).tolist() == held.tolist()


def test_other_parts_do_not_count(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = write_world(tmp_path_factory.mktemp("world") / "data")
    config = compose(
        "train", ["data=parquet", f"data.root={root}", f"data.cache={root.parent}/cache", "split=leave_last_out"]
    )
    prepared = open_data(config)
    for dataset in (prepared, prepared.refit()):
        bounds = zip(dataset.offsets, dataset.train_end, strict=False)
        items = np.concatenate([dataset.item_idx[begin:end] for begin, end in bounds])
        expected = np.bincount(items, minlength=dataset.num_items + 1)
        assert target_counts(dataset, predict_first=True).tolist() == expected.tolist()


def test_the_prior_shifts_to_what_is_recent() -> None:
    day = 86_400
    # Of four events two are a day old: item 1 has all of its three, item 2 the newest one.
    dataset = training_only([[(1, 0), (1, 0)], [(1, day), (2, day)]], num_items=3)
    shift = prior_shift(dataset, half_life_days=1).tolist()
    recent = [2 / 3, 1 / 3]
    trained = [3 / 4, 1 / 4]
    expected = [log((1 - SMOOTHING) * now / then + SMOOTHING) for now, then in zip(recent, trained, strict=True)]
    # The unknown item, and one without events, stay where they are.
    assert shift == pytest.approx([0, *expected, 0])
    # A power leans further to what is popular now; what has no events is treated like the item of an average event.
    smoothed = [(1 - SMOOTHING) * now + SMOOTHING * then for now, then in zip(recent, trained, strict=True)]
    leaning = [log(now**3 / then) for now, then in zip(smoothed, trained, strict=True)]
    average = 2 * sum(now * log(now) for now in smoothed)
    assert prior_shift(dataset, 1, power=3).tolist() == pytest.approx([average, *leaning, average])
    # Where training decayed alike, nothing moved.
    assert prior_shift(dataset, 1, target_sampling=TargetSampling(half_life_days=1)).abs().max() < 1e-12


def test_an_item_that_rose_after_training_is_as_popular_as_in_its_life() -> None:
    day = 86_400
    # Item 1 has two training events of day 0. On day 1 it has one event, and the new item 2 has one.
    data = training_only([[(1, 0), (1, 0)], [(1, day), (2, day)]], num_items=3)
    towers = dataclasses.replace(data, train_end=np.array([1, 2]))
    # An event counts half after a day, so day 0 has a weight of 1, and day 1, the life of item 2, a weight of 2.
    risen = RisenItems(np.array([2]), torch.tensor([0.125], dtype=torch.float64))
    share = 1 / 3 * (1 + EVIDENCE) / (2 / 3 + EVIDENCE)
    shift = prior_shift(towers, 1, recent=data, risen=risen)
    assert shift.tolist() == pytest.approx([0, log((1 - SMOOTHING) * 2 / 3 + SMOOTHING), log(0.98 * share / 0.125), 0])
    # Without a share of the towers it is treated like an item without events.
    assert prior_shift(towers, 1, recent=data)[2] == 0
    # With a birth its life is longer than its events: an item of the first day has its plain share.
    born = dataclasses.replace(towers, born=np.array([NO_BIRTH, NO_BIRTH, 0, NO_BIRTH]))
    recent = dataclasses.replace(data, born=born.born)
    expected = log(0.98 / 3 / 0.125)
    assert float(prior_shift(born, 1, recent=recent, risen=risen)[2]) == pytest.approx(expected)


def test_the_prior_uses_the_weights_of_targets(tmp_path_factory: pytest.TempPathFactory) -> None:
    day = 86_400
    table = events([(1, 10, 0), (1, 10, day), (2, 11, day), (2, 11, day)]) | {
        "split": ["train"] * 4,
        "action": ["save", "click", "click", "hide"],
    }
    table = {name: [*values, *values[-1:], *values[-1:]] for name, values in table.items()}
    table["split"][-2:] = ["val", "test"]
    root = write_folder(tmp_path_factory.mktemp("prior") / "data", table)
    dataset = prepared(root, GivenSplit(), features={"interactions": {"action": {"role": "event"}}})
    target_sampling = TargetSampling(action_weights={"action": {"save": 2.0, "hide": 0.0}})
    # Item 10 counts 2 and 1 of 4; a half-life of a day makes that 1 and 1 of 3.
    expected = [
        log((1 - SMOOTHING) * (2 / 3) / (3 / 4) + SMOOTHING),
        log((1 - SMOOTHING) * (1 / 3) / (1 / 4) + SMOOTHING),
    ]
    shift = prior_shift(dataset, 1, target_sampling=target_sampling).tolist()
    assert [shift[dataset.item_ids.to_pylist().index(item) + 1] for item in (10, 11)] == pytest.approx(expected)


@pytest.mark.parametrize("time_resolution", ["order", "none"])
def test_the_prior_needs_days(time_resolution: str) -> None:
    with pytest.raises(UserError, match=f"data.time={time_resolution}"):
        prior_shift(training_only([[(1, 0)]], time_resolution=time_resolution), 1)


def test_exact_probabilities_are_those_of_the_data() -> None:
    probabilities = torch.tensor([0.0, 0.75, 0.25], dtype=torch.float64)
    frequency = ExactFrequency(probabilities)
    frequency.update(torch.tensor([2, 2]))
    assert frequency.probability(torch.tensor([[2, 1], [0, 2]])).tolist() == [[0.25, 0.75], [0.0, 0.25]]
    assert not frequency.state_dict()


def per_target(held: float, mean_targets: float) -> float:
    """Probability of one target of an item that a step of so many targets holds with the probability `held`."""
    return 1 - (1 - held) ** (1 / mean_targets)


def test_streaming_by_hand() -> None:
    frequency = StreamingFrequency(num_buckets=1 << 16, rate=0.5, initial_gap=8.0)
    items = torch.tensor([1, 2, 3])
    # Nothing is known: a gap of 8, and as if a step had one target.
    assert frequency.probability(items).tolist() == pytest.approx([per_target(1 / 8, 1)] * 3)
    # Steps 1 to 4; twice in a step is once.
    for step in ([1, 1, 2], [1], [3, 1, 1, 1], [1, 2]):
        frequency.update(torch.tensor(step))
    # Item 1: 8, then (8 + 1) / 2, (4.5 + 1) / 2, (2.75 + 1) / 2, (1.875 + 1) / 2.
    # Item 2: (8 + 1) / 2 at step 1, (4.5 + 3) / 2 at step 4. Item 3: (8 + 3) / 2 at step 3.
    # Ten targets in four steps. Item 1 is held too often to tell: with the probability 1 - rate.
    expected = [per_target(min(1 / 1.4375, 0.5), 2.5), per_target(1 / 3.75, 2.5), per_target(1 / 5.5, 2.5)]
    assert frequency.probability(items).tolist() == pytest.approx(expected, rel=1e-5)


def test_the_largest_gap_of_several_hashes_counts() -> None:
    frequency = StreamingFrequency(num_buckets=1 << 16, num_hashes=2, rate=0.5, initial_gap=8.0)
    frequency.update(torch.tensor([1]))
    frequency.gaps[0, frequency.gaps[0].argmin()] = 2.0
    # Gaps 2 and 4.5.
    assert frequency.probability(torch.tensor([1])).item() == pytest.approx(1 / 4.5)


def test_count_min_by_hand() -> None:
    frequency = CountMinFrequency(width=1 << 16, depth=3)
    assert frequency.probability(torch.tensor([1])).tolist() == [0.0]
    frequency.update(torch.tensor([1, 2, 1]))
    frequency.update(torch.tensor([2, 1, 5, 5]))
    assert frequency.probability(torch.tensor([[1, 2], [5, 9]])).tolist() == [
        pytest.approx([3 / 7, 2 / 7]),
        pytest.approx([2 / 7, 0]),
    ]
    # In rows of one cell each everything is one item.
    crowded = CountMinFrequency(width=1, depth=2)
    crowded.update(torch.tensor([1, 2, 3, 4]))
    assert crowded.probability(torch.tensor([1, 9])).tolist() == [1.0, 1.0]


def test_count_min_never_tells_less_than_the_count() -> None:
    frequency = CountMinFrequency(width=40, depth=2)
    stream = torch.randint(1, 200, (30, 50), generator=torch.Generator().manual_seed(0))
    for targets in stream:
        frequency.update(targets)
    told = frequency.probability(torch.arange(200)) * stream.numel()
    true = stream.flatten().bincount(minlength=200)
    assert bool((told >= true - 1e-3).all())
    # A second row helps.
    single = CountMinFrequency(width=40, depth=1)
    for targets in stream:
        single.update(targets)
    assert float(told.sum()) < float(single.probability(torch.arange(200)).sum()) * stream.numel()


def zipf_stream(num_items: int, num_steps: int, num_targets: int) -> tuple[Tensor, Tensor]:
    q = 1.0 / torch.arange(1, num_items + 1, dtype=torch.float64)
    q = torch.cat([torch.zeros(1, dtype=torch.float64), q / q.sum()])
    draws = torch.multinomial(q, num_steps * num_targets, True, generator=torch.Generator().manual_seed(0))
    return q, draws.view(num_steps, num_targets)


@pytest.mark.parametrize("num_hashes", [1, 2])
def test_streaming_converges_on_a_stationary_stream(num_hashes: int) -> None:
    q, stream = zipf_stream(200, 4000, 20)
    frequency = StreamingFrequency(num_buckets=1 << 16, num_hashes=num_hashes, rate=0.02, initial_gap=30.0)
    for targets in stream:
        frequency.update(targets)
    # Item 1 is in 19 of 20 steps, item 100 in one of 30. Gaps are geometric, so the mean of the last 1 / rate of them
    # has a deviation of sqrt(rate / (2 - rate)), a tenth, of itself.
    found = frequency.probability(torch.arange(1, 101)).double()
    error = (found / q[1:101]).log()
    assert float(error.square().mean().sqrt()) < 0.15
    assert float(error.mean().abs()) < 0.03
    # As 1 / E alone it would be 1 / 20 at most for each target.
    assert float(found[0]) == pytest.approx(float(q[1]), rel=0.25)
    assert float(q[1]) > 3 / 20


def test_count_min_converges_on_a_stationary_stream() -> None:
    q, stream = zipf_stream(200, 4000, 20)
    frequency = CountMinFrequency(width=1 << 16)
    for targets in stream:
        frequency.update(targets)
    # 65 events of item 200, 650 of item 20: their number deviates by its root.
    error = (frequency.probability(torch.arange(1, 201)) / q[1:]).log().abs()
    assert float(error[:20].mean()) < 0.04
    assert float(error.max()) < 0.4


@pytest.mark.parametrize("make", [lambda: StreamingFrequency(64, 2), lambda: CountMinFrequency(64)])
def test_a_restored_estimator_continues(make: type[nn.Module]) -> None:
    _, stream = zipf_stream(30, 20, 5)
    whole, first, second = make(), make(), make()
    for estimators, steps in (((whole,), stream), ((first,), stream[:9])):
        for targets in steps:
            for estimator in estimators:
                estimator.update(targets)  # type: ignore[operator]
    second.load_state_dict(first.state_dict())
    for targets in stream[9:]:
        second.update(targets)  # type: ignore[operator]
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: StreamingFrequency(num_buckets=0), "num_buckets: found 0"),
        (lambda: StreamingFrequency(num_hashes=0), "num_hashes: found 0"),
        (lambda: StreamingFrequency(rate=1.0), "rate: found 1.0"),
        (lambda: StreamingFrequency(initial_gap=0.5), "initial_gap: found 0.5"),
        (lambda: CountMinFrequency(width=0), "width: found 0"),
        (lambda: CountMinFrequency(depth=0), "depth: found 0"),
    ],
)
def test_sizes_that_cannot_be_are_refused(build: type[Frequency], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
