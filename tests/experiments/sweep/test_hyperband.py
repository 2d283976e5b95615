"""Early stopping by hand: the runs of the example in W&B's engine, and the arithmetic of bands and thresholds."""

from __future__ import annotations

import pytest

from recsys.experiments.sweep.hyperband import Hyperband

# Losses of the example of `sweeps.hyperband_stopping`, which stops run b: max_iter 5, eta 2, s 2.
EXAMPLE = {"a": [10, 9], "b": [10, 10], "c": [10, 8, 8], "d": [10, 7, 7], "e": [10, 6, 6]}


def test_bands() -> None:
    assert Hyperband(min_iter=4, eta=3).bands(40) == [4, 12, 36]
    assert Hyperband(min_iter=4, eta=3).bands(11) == [4]
    assert Hyperband(min_iter=4, eta=3).bands(3) == []
    # 1, 1.5 and 2.25 iterations lie at 1, 1 and 2.
    assert Hyperband(min_iter=1, eta=1.5).bands(2) == [1, 1, 2]
    # 27 / 3, 9 / 3 and 3 / 3; 1 / 3 is none.
    assert Hyperband(max_iter=27, s=4, eta=3).bands(27) == [1, 3, 9]
    assert Hyperband(max_iter=5, s=2, eta=2).bands(5) == [1, 2]


def test_the_example_of_wandb() -> None:
    hyperband = Hyperband(max_iter=5, s=2, eta=2)
    # At band 2: 6, 7, 8, 9, 10; place int(5 / 2) = 2 is 8, so that a and b are worse, c, d and e go on.
    runs = list(EXAMPLE.values())
    assert [name for name, run in EXAMPLE.items() if hyperband.stops(run, runs, maximize=False)] == ["a", "b"]
    negated = [[-value for value in run] for run in runs]
    assert [hyperband.stops(run, negated, maximize=True) for run in negated] == [True, True, False, False, False]


def test_strict_looks_at_the_band_alone() -> None:
    runs = [[0.5, 0.1, 0.1], [0.1, 0.4, 0.4], [0.1, 0.3, 0.3]]
    # At band 2: 0.4, 0.3, 0.1; place int(3 / 3) = 1 is 0.3. The first run has 0.1 there, but was at 0.5 before.
    assert not Hyperband(min_iter=2, eta=3).stops(runs[0], runs, maximize=True)
    assert Hyperband(min_iter=2, eta=3, strict=True).stops(runs[0], runs, maximize=True)


def test_a_single_run_or_one_before_the_first_band_continues() -> None:
    assert not Hyperband(min_iter=2, eta=3).stops([0.1], [[0.1], [0.9], [0.9]], maximize=True)
    assert not Hyperband(min_iter=2, eta=3, strict=True).stops([0.1, 0.1], [[0.1, 0.1]], maximize=True)
    # Runs that have not come so far have no say.
    assert not Hyperband(min_iter=2, eta=3).stops([0.1, 0.1], [[0.1, 0.1], [0.9]], maximize=True)


@pytest.mark.parametrize("runs", [2, 3, 4, 9])
def test_one_run_in_eta_continues(runs: int) -> None:
    histories = [[float(number)] for number in range(runs)]
    stopped = [Hyperband(min_iter=1, eta=3).stops(run, histories, maximize=True) for run in histories]
    # Counted from 0, the run in place int(runs / 3) is as good as the threshold.
    assert stopped.count(False) == runs // 3 + 1
    assert stopped == sorted(stopped, reverse=True)
