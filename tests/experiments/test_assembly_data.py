"""Loaders from a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
from handmade import training_only
from worlds import compose

from recsys.experiments.assembly import build_data

# Users with one window each: the largest of 128, 64, 32, 16 and 8 that gives 12 steps, or 8.
CASES = [(10, 8), (95, 8), (192, 16), (200, 16), (384, 32), (1407, 64), (1409, 128), (3000, 128)]


@pytest.mark.parametrize(("num_users", "expected"), CASES)
def test_a_batch_leaves_an_epoch_twelve_steps(num_users: int, expected: int) -> None:
    dataset = training_only([[(1, 0), (2, 1)]] * num_users)
    data = build_data(compose("train", ["data.cache=unused"]), dataset)
    assert (data.batch_size, len(data.train_dataloader())) == (expected, -(-num_users // expected))


def test_the_largest_batch_is_a_setting_and_a_number_is_kept(tmp_path: Path) -> None:
    dataset = training_only([[(1, 0), (2, 1)]] * 200)
    assert build_data(compose("train", ["max_batch_size=10"]), dataset).batch_size == 10
    assert build_data(compose("train", ["max_batch_size=4"]), dataset).batch_size == 4
    assert build_data(compose("train", ["batch_size=128"]), dataset).batch_size == 128
    assert build_data(compose("train", [f"data.root={tmp_path}", "+experiment=recommended"]), dataset).batch_size == 16
