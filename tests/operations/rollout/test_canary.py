"""A canary is judged by the outcomes of its users: text, JSON, page, and what happens to the rollout."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rollouts import NEW, OLD, World

from recsys.core.errors import UserError
from recsys.operations.rollout.canary_verdict import CanarySettings
from recsys.operations.rollout.engagement import EngagementReader
from recsys.operations.rollout.sequential import SequentialTest, Sums
from recsys.reports.rollouts import write_canary_page
from recsys.serving.impressions import open_impressions
from recsys.serving.impressions.impression_store import StoredOutcome
from recsys.serving.impressions.records import SIMILAR, Impression, OpenBatch, encode_batch, parse_id

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for server in (*made.hosts, *made.gateways):
        server.stop()


def log_answers(place: Path, rates: dict[str, float], *, users: int = 600, answers: int = 4) -> None:
    """Each user of each version gets answers; a share of them is saved, one more is clicked."""
    rng = np.random.default_rng(1)
    store = open_impressions(str(place))
    # Later than the begin of the test, however slow the machine is.
    now = int(time.time()) + 100_000
    for version, rate in rates.items():
        for begin in range(0, users, 50):
            made, outcomes = OpenBatch(256), []
            for user in range(begin, begin + 50):
                for number in range(answers):
                    key = parse_id(made.add(Impression(now, f"{version}{user}", version, "m", [1, 2, 3 + number % 2])))
                    assert key is not None
                    if rng.random() < rate:
                        outcomes.append(StoredOutcome(key.batch, key.place, 1, "save", now))
                    if number == 0:
                        outcomes.append(StoredOutcome(key.batch, key.place, 2, "click", now))
            made.add(Impression(now, None, version, SIMILAR, [9]))
            made.add(Impression(1000, "early", version, "m", [9]))
            store.add(made.name, encode_batch(made.batch), now)
            store.add_outcomes(outcomes)
    store.close()


def run(world: World, *more: str) -> int:
    events = world.state.path.with_name("events.sqlite")
    return world.run("canary", f"version='{NEW}'", f"events={events}", "judge.action=save", *more)


@pytest.mark.parametrize(
    ("rates", "more", "decision", "serving", "canary"),
    [
        ({OLD: 0.5, NEW: 0.3}, [], "roll_back", OLD, (OLD, 0.0)),
        ({OLD: 0.3, NEW: 0.5}, [], "promote", OLD, (NEW, 0.05)),
        ({OLD: 0.3, NEW: 0.5}, ["judge.finish=true"], "promote", NEW, (NEW, 0.0)),
        ({OLD: 0.4, NEW: 0.4}, ["judge.max_requests=100"], "keep_on", OLD, (NEW, 0.05)),
    ],
)
def test_the_verdict_decides(
    world: World, rates: dict[str, float], more: list[str], decision: str, serving: str, canary: Any
) -> None:
    log_answers(world.state.path.with_name("events.sqlite"), rates)
    assert run(world, *more) == 0
    assert world.serving() == [serving] * 3
    assert [gateway.canary for gateway in world.gateways] == [canary] * 2
    verdict = json.loads(world.state.path.with_name("canary-verdict.json").read_text())
    assert verdict["decision"] == decision
    assert [row["answers"] for row in verdict["versions"]] == [2400, 2400]
    for row in verdict["generators"]:
        assert (row["generator"], row["answers"], row["items"], row["rates"]["click"]) == ("m", 2400, 4, 0.25)
        assert row["rates"]["save"] == pytest.approx(rates[row["version"]], abs=0.05)
    shown = world.screen.getvalue()
    assert f"{decision.replace('_', ' ')}: engagement" in shown
    assert f"canary {NEW}: " in shown


def test_a_canary_without_impressions_is_not_judged(world: World) -> None:
    assert run(world) == 0
    assert "no impressions, so the canary is not judged" in world.screen.getvalue()
    assert [gateway.canary for gateway in world.gateways] == [(NEW, 0.05)] * 2


def test_a_canary_is_paused_and_resumed(world: World) -> None:
    place = world.state.path.with_name("events.sqlite")
    log_answers(place, {OLD: 0.4, NEW: 0.4}, users=50)
    world.at_call = lambda _: world.state.pause() if world.gateways[1].canary[0] == NEW else None
    assert run(world, "judge.every=100") == 0
    assert "paused; `resume` continues" in world.screen.getvalue()
    log_answers(place, {OLD: 0.5, NEW: 0.3})
    world.at_call = lambda _: None
    assert world.run("resume", f"events={place}", "judge.action=save") == 0
    assert world.serving() == [OLD] * 3
    assert world.state.read().goal == "back"


@pytest.mark.parametrize("change", [{"margin": 0}, {"margin": 1}, {"alpha": 0.6}, {"every": 0}, {"max_requests": -1}])
def test_impossible_settings_are_refused(change: dict[str, float]) -> None:
    given: dict[str, Any] = {"enabled": True, "action": None, "margin": 0.05, "alpha": 0.05, "max_requests": 9}
    given |= {"max_hours": 1, "every": 1, "finish": False}
    with pytest.raises(UserError, match=rf"judge.{next(iter(change))}: found"):
        CanarySettings(**{**given, **change})


def test_sums_by_hand_and_bounds_that_need_data() -> None:
    sums = Sums.of(np.array([2.0, 3.0, 0.0]), np.array([1.0, 2.0, 0.0]))
    assert tuple(sums) == (2, 5, 3, 13, 5, 8)
    test = SequentialTest(margin=0.05, alpha=0.05)
    bounds = test.bounds(sums, sums)
    assert (float(bounds.lower), float(bounds.upper)) == (-1.0, np.inf)
    assert (float(bounds.p_worse), float(bounds.p_better)) == (1.0, 1.0)
    rng = np.random.default_rng(0)
    n = rng.integers(1, 5, 20_000).astype(float)
    canary, control = (Sums.of(n, rng.binomial(n.astype(int), rate).astype(float)) for rate in (0.3, 0.36))
    found = test.bounds(canary, control)
    assert found.lower < found.difference < found.upper < 0
    # A bound beyond its limit and a p-value below alpha are the same decision.
    assert found.p_worse < 0.05 < found.p_better
    assert test.bounds(control, canary).p_better < 0.05 < test.bounds(control, canary).p_worse
    edge = SequentialTest(margin=0.05, alpha=float(found.p_worse)).bounds(canary, control)
    assert edge.upper == pytest.approx(0, abs=2e-2)


def test_anonymous_requests_are_users_of_their_own_and_actions_can_be_any(tmp_path: Path) -> None:
    store = open_impressions(str(tmp_path / "events.sqlite"))
    made = OpenBatch(9)
    for user in (None, None, 5, "5", 5):
        made.add(Impression(100, user, "a", "m", [1]))
    store.add(made.name, encode_batch(made.batch), 100)
    store.add_outcomes([StoredOutcome(made.name, 2, 1, action, 100) for action in ("save", "click")])
    reader = EngagementReader(store, ("b", "a"), 100)
    assert tuple(reader.read().sums["a"]) == (4, 5, 1, 7, 1, 2)
    assert tuple(reader.read().sums["b"]) == (0, 0, 0, 0, 0, 0)
    store.close()


def test_simulated_users_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark with fewer users and a larger loss; `benchmarks/canary.py` has the published figures."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import canary

    world = canary.World(requests=15_000, users=4_000, share=0.5, rate=0.4)
    test = SequentialTest(margin=0.15, alpha=0.05)
    equal = canary.experiments(world, 40, loss=0.0, test=test)
    worse = canary.experiments(world, 20, loss=0.15, test=test)
    assert np.isfinite(equal.alarm).mean() <= 0.1
    assert np.isfinite(worse.alarm).mean() >= 0.9


def test_the_page_shows_the_course(world: World, tmp_path: Path) -> None:
    import msgspec

    from recsys.operations.rollout.canary_verdict import CanaryVerdict

    log_answers(world.state.path.with_name("events.sqlite"), {OLD: 0.5, NEW: 0.3}, users=100)
    run(world)
    content = world.state.path.with_name("canary-verdict.json").read_bytes()
    page = write_canary_page(msgspec.json.decode(content, type=CanaryVerdict), tmp_path / "page.html").read_text()
    assert "roll back" in page.lower()
    assert "Engagement of the canary: -" in page
    assert "with click" in page
