"""Non-inferiority: margins, correction for several tests, and untested checks."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.operations.gates.non_inferiority import PairedMetric, non_inferiority, smallest_detectable_loss


def _status(pairs: dict[str, PairedMetric], level: float = 0.05, noticed: float = 0.5) -> dict[str, str]:
    return {row.check: row.status for row in non_inferiority(pairs, level, detectable_loss=noticed, num_samples=2_000)}


def test_a_loss_beyond_the_margin_fails_and_one_within_it_passes() -> None:
    reference = np.random.default_rng(0).random(200)
    pairs = {
        "lost": PairedMetric(0.9 * reference, reference, margin=0.05),
        "kept": PairedMetric(0.9 * reference, reference, margin=0.15),
        "gained": PairedMetric(1.2 * reference, reference, margin=0.0),
    }
    assert _status(pairs) == {"lost": "fail", "kept": "pass", "gained": "pass"}
    lost = non_inferiority(pairs, 0.05, detectable_loss=0.5)[0]
    assert lost.value == pytest.approx(0.9 * reference.mean())
    assert lost.threshold == pytest.approx(0.95 * reference.mean())
    assert lost.reason.startswith("-10.0% against")


def test_too_few_users_are_untested() -> None:
    rng = np.random.default_rng(0)
    few = PairedMetric((rng.random(8) < 0.5).astype(float), (rng.random(8) < 0.5).astype(float), margin=0.05)
    assert _status({"few": few}) == {"few": "untested"}
    one = PairedMetric(np.array([1.0]), np.array([1.0]), margin=0.05)
    assert _status({"one": one}) == {"one": "untested"}
    # Where everything is lost, eight users are enough.
    gone = PairedMetric(np.zeros(8), np.ones(8), margin=0.05)
    assert _status({"gone": gone}) == {"gone": "fail"}


def test_a_reference_of_zero_and_an_empty_slice_are_untested() -> None:
    outcomes = non_inferiority(
        {
            "zero": PairedMetric(np.ones(9), np.zeros(9), margin=0.1),
            "empty": PairedMetric(np.zeros(0), np.zeros(0), margin=0.1),
        },
        0.05,
        detectable_loss=0.5,
    )
    assert [row.status for row in outcomes] == ["untested", "untested"]
    assert "nothing can be lost" in outcomes[0].reason
    assert "no test user" in outcomes[1].reason


def test_smallest_detectable_loss_by_hand() -> None:
    # Excess of +1 and -1 in turns: standard deviation sqrt(100 / 99), so 0.1005 for the mean of 100; quantiles at
    # level .05 and power .8 add up to 2.486.
    candidate = np.tile([2.0, 0.0], 50)
    pair = PairedMetric(candidate, np.ones(100), margin=0.0)
    assert smallest_detectable_loss(pair, 0.05) == pytest.approx(2.4865 * np.sqrt(100 / 99) / 10, rel=1e-3)


def test_one_slice_among_many_is_found_and_chance_is_corrected_for() -> None:
    rng = np.random.default_rng(0)
    pairs = {
        f"slice {number}": PairedMetric(*(rng.binomial(10, 0.4, (2, 800)) / 10), margin=0.05) for number in range(12)
    }
    assert set(_status(pairs).values()) == {"pass"}
    broken = {
        **pairs,
        "broken": PairedMetric(rng.binomial(10, 0.3, 800) / 10, rng.binomial(10, 0.4, 800) / 10, margin=0.05),
    }
    status = _status(broken)
    assert status.pop("broken") == "fail"
    assert set(status.values()) == {"pass"}


def test_at_the_edge_of_the_margin_chance_stops_no_more_than_the_level() -> None:
    rng = np.random.default_rng(1)
    stopped = 0
    for _ in range(200):
        # Five checks, each of a candidate that has lost exactly its margin of a tenth.
        pairs = {}
        for number in range(5):
            reference = rng.binomial(10, 0.5, 120) / 10
            pairs[str(number)] = PairedMetric(rng.binomial(10, 0.45, 120) / 10, reference, margin=0.1)
        stopped += "fail" in {row.status for row in non_inferiority(pairs, 0.1, detectable_loss=1.0, num_samples=400)}
    # 20 expected at most; Holm is strict, the bootstrap is not quite: three deviations.
    assert stopped <= 20 + 3 * np.sqrt(200 * 0.1 * 0.9)
    assert stopped > 0
