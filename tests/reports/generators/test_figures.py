"""Every figure of two generators and two users, worked out."""

from __future__ import annotations

import numpy as np
import pytest
from made import made

from recsys.evaluation.significance import paired_bootstrap
from recsys.reports.generators import figures as module
from recsys.reports.generators.blending import BlendPlan
from recsys.reports.generators.figures import BootstrapSamples, Figures, measure

# The first user goes on to 2, 3 and 9, the second to 5.
LISTS = made("ab", [[[1, 2], [2, 3], [9, 8]], [[4], [], [5, 6]]], [[2, 3, 9], [5]], 2)
PLAN = BlendPlan(
    everyone=(1, 1),
    equal=(1, 1),
    equal_without=((0, 2), (2, 0)),
    retired=(0,),
    stages=((0, 2),),
    without=({0: (0, 2), 1: (2, 0)}, {}),
)


@pytest.fixture(params=[1, 512], ids=["one user at a time", "all at once"])
def found(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Figures:
    monkeypatch.setattr(module, "_BLOCK", request.param)
    return measure(LISTS, PLAN, segments={"first": np.array([True, False])})


def test_each_alone(found: Figures) -> None:
    a, b = found.alone
    # Lists of two: one of each is full; the second user gets one item of a and none of b.
    assert (a.full.value, a.some.value, b.full.value, b.some.value) == (0.5, 1.0, 0.5, 0.5)
    # a: one hit (2) among three candidates; b: both of its two.
    assert (a.rate.value, b.rate.value) == (pytest.approx(1 / 3), 1.0)
    assert (a.recall.value, b.recall.value) == (pytest.approx(1 / 6), pytest.approx(1 / 3))
    # Two items are hit in all: 2 by both, 3 by b alone.
    assert (a.unique.value, b.unique.value) == (0.0, 0.5)
    assert found.union.value == pytest.approx(1 / 3)


def test_overlap_of_generators(found: Figures) -> None:
    # First user: 2 of 1, 2, 3; second: nothing of 4. Hits: 2 of 2 and 3.
    assert found.shared_lists[0, 1].value == pytest.approx(1 / 6)
    assert found.shared_hits[0, 1].value == pytest.approx(1 / 2)


def test_blends_and_what_is_lost(found: Figures) -> None:
    # One each: 1, 2 (a third), and 4 with the popular 5 (all). b alone: 2, 3 (two thirds), and 5, 6 (all).
    # a alone: 1, 2 and 4, 5.
    assert found.everyone.value == found.equal.value == pytest.approx(2 / 3)
    assert found.stages[0].value == pytest.approx(5 / 6)
    assert found.stage_gains[0].value == pytest.approx(1 / 6)
    assert found.budget_gain.value == 0
    assert {g: needed.value for g, needed in found.needed[0].items()} == {0: pytest.approx(-1 / 6), 1: pytest.approx(0)}
    assert found.needed[1] == {}
    for kind in ("lost", "last"):
        assert [getattr(alone, kind).value for alone in found.alone] == [pytest.approx(-1 / 6), pytest.approx(0)]


def test_segments(found: Figures) -> None:
    first = found.segments["first"]
    assert first.num_users == 1
    assert [recall.value for recall in first.recall] == [pytest.approx(1 / 3), pytest.approx(2 / 3)]
    assert first.blend.value == pytest.approx(1 / 3)
    assert [lost.value for lost in first.lost] == [pytest.approx(-1 / 3), pytest.approx(0)]
    # One user has no spread.
    assert first.blend.low == first.blend.high == pytest.approx(1 / 3)


def test_new_items() -> None:
    users = [[[1, 9], [2, 3], [9, 8]], [[4], [6, 7], [5, 6]], [[7, 9], [], [1, 2]]]
    lists = made("ab", users, [[2, 3, 9, 8], [5], [7]], 2, num_seen=5)
    new = measure(lists, PLAN, segments={}, among_new={1: np.array([0.5, 0.0, 1.0])}).new_items
    assert new is not None
    assert new.among[0] is None
    assert new.among[1] is not None
    assert new.among[1].value == 0.75
    # The first user wants 9 and 8, the third 7; six relevant items in all.
    assert (new.num_users, new.relevant.value) == (2, 0.5)
    assert [recall.value for recall in new.recall] == [(1 / 2 + 1) / 2, 0]
    # a: one of two, none of one, both; b: none, both, no list.
    assert [shown.value for shown in new.shown] == [pytest.approx((1 / 2 + 0 + 1) / 3), pytest.approx(1 / 3)]
    # Nobody wants a new item.
    assert measure(LISTS, PLAN, segments={}).new_items is None


def test_intervals_are_those_of_the_paired_bootstrap() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.random((2, 300))
    samples = BootstrapSamples({"gain": one - other})
    value, low, high, _ = paired_bootstrap((one - other)[:, None], module.NUM_SAMPLES)[0]
    assert samples.mean("gain") == pytest.approx((value, low, high))
    # A difference of columns is paired: the users drawn are the same ones.
    same = BootstrapSamples({"one": one, "more": one + 0.25})
    assert same.difference("more", "one") == pytest.approx((0.25, 0.25, 0.25))
    assert same.ratio("one", "one") == pytest.approx((1.0, 1.0, 1.0))
    assert BootstrapSamples({"none": np.zeros(3), "nothing": np.zeros(3)}).ratio("none", "nothing") == (0.0, 0.0, 0.0)


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng, inside = np.random.default_rng(1), 0
    for _ in range(60):
        estimate = BootstrapSamples({"hits": rng.binomial(20, 0.1, 200).astype(float), "shown": np.full(200, 20.0)})
        ratio = estimate.ratio("hits", "shown")
        inside += ratio.low <= 0.1 <= ratio.high
    assert 51 <= inside <= 60
