"""Probabilities of targets equal what batches hold, event by event."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from histories import training_only
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import compose, write_world

from recsys.build import open_data
from recsys.data.builder import BatchBuilder
from recsys.data.loader import TrainingLoader
from recsys.errors import UserError
from recsys.frequency import SMOOTHING, prior_shift, target_counts, target_probabilities


def test_counts_by_hand() -> None:
    # The second user starts with a basket of two.
    dataset = training_only([[(1, 0), (2, 1), (1, 2)], [(2, 5), (3, 5), (3, 6)], [(1, 0)], []], num_items=4)
    assert target_counts(dataset, predict_first=True).tolist() == [0, 3, 2, 2, 0]
    assert target_counts(dataset, predict_first=False).tolist() == [0, 1, 1, 1, 0]
    assert target_probabilities(dataset, predict_first=True).tolist() == [0, 3 / 7, 2 / 7, 2 / 7, 0]


def test_without_times_only_the_first_event_is_left_out() -> None:
    dataset = training_only([[(1, 0), (2, 0), (3, 0)]], worth="none")
    assert target_counts(dataset, predict_first=False).tolist() == [0, 0, 1, 1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 1)), max_size=12), min_size=1, max_size=5),
    st.booleans(),
    st.sampled_from(["seconds", "none"]),
    st.integers(1, 5),
)
def test_counts_are_those_of_an_epoch(
    users: list[list[tuple[int, int]]], predict_first: bool, worth: str, max_history: int
) -> None:
    timed = [[(item, sum(step for _, step in h[: k + 1])) for k, (item, _) in enumerate(h)] for h in users]
    dataset = training_only(timed, worth, num_items=5)
    if np.diff(dataset.offsets).max() < 2:
        return
    loader = TrainingLoader(BatchBuilder(dataset, max_history, predict_first), 3, seed=0)
    held = np.zeros(6)
    for batch in loader:
        held += np.bincount(batch.target_idx.numpy(), minlength=6)
    assert target_counts(dataset, predict_first).tolist() == held.tolist()


@pytest.mark.parametrize("refit", [False, True])
def test_other_parts_do_not_count(tmp_path_factory: pytest.TempPathFactory, refit: bool) -> None:
    root = write_world(tmp_path_factory.mktemp("world") / "data")
    config = compose(
        "train", ["data=parquet", f"data.root={root}", f"data.cache={root.parent}/cache", "split=leave_last_out"]
    )
    dataset = open_data(config)
    dataset = dataset.refit() if refit else dataset
    assert target_counts(dataset, predict_first=True).tolist() == dataset.train_count.tolist()


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
    # Where training decayed alike, nothing moved.
    assert prior_shift(dataset, 1, 1).abs().max() < 1e-12


@pytest.mark.parametrize("worth", ["order", "none"])
def test_the_prior_needs_days(worth: str) -> None:
    with pytest.raises(UserError, match=f"data.time={worth}"):
        prior_shift(training_only([[(1, 0)]], worth=worth), 1)
