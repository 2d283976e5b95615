"""Settings that fit: with the printed overrides the same data pass the same gate."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from composing import composition_error
from days import NUM_ITEMS, days_of_events, evidence, of_columns
from worlds import compose

from recsys.core.columns import Dense
from recsys.core.schema import Feature, Schema
from recsys.data.dataset import PreparedDataset
from recsys.experiments.assembly import instantiate
from recsys.operations.gates.event_window import DAY, EventWindow
from recsys.operations.gates.non_inferiority import PairedMetric, non_inferiority
from recsys.operations.gates.verdict import Outcome, at_least, at_most, failed
from recsys.reports.cycles.fitting import fitting_settings

GATES = ["run=RUN", "against=RELEASE"]


@functools.cache
def gates() -> Any:
    return compose("gates", GATES).gates


def judged(name: str, given: Any, *settings: str) -> list[Outcome]:
    """Outcomes of a gate with its defaults and `gates.NAME.KEY=VALUE`."""
    changed = {word.split("=")[0].rpartition(".")[2]: yaml.safe_load(word.partition("=")[2]) for word in settings}
    days = {key: [str(day) for day in value] for key, value in changed.items() if isinstance(value, list)}
    gate = dataclasses.replace(instantiate(gates()[name]), **changed | days)
    return [outcome.of(name) for outcome in gate.judge(given)]


def events(days: list[int], users: int = 40) -> Any:
    return evidence(days_of_events([95, *days], num_users=users))


def _hot_item() -> Any:
    rng, time = np.random.default_rng(0), np.arange(2200) * DAY // 200
    user, item = rng.integers(0, 40, 2200), np.minimum(rng.geometric(0.5, 2200), NUM_ITEMS)
    last = time >= 10 * DAY
    return evidence(of_columns(user, np.where(last, NUM_ITEMS + 1 - item, item), time, 11))


def _copied_and_busy() -> Any:
    rng, time = np.random.default_rng(0), np.arange(1100) * DAY // 100
    user, item = rng.integers(0, 40, 1100), rng.integers(1, NUM_ITEMS + 1, 1100)
    last = time >= 10 * DAY
    user = np.where(last & (rng.random(1100) < 0.4), 7, user)
    twice = np.concatenate([np.arange(1100), np.flatnonzero(last)[:10]])
    return evidence(of_columns(user[twice], item[twice], time[twice], 11))


def _new_users() -> Any:
    rng, time = np.random.default_rng(0), np.arange(2200) * DAY // 200
    user, item = rng.integers(0, 40, 2200), rng.integers(1, NUM_ITEMS + 1, 2200)
    return evidence(of_columns(np.where(time >= 10 * DAY, user + 40, user), item, time, 11))


def _no_new_users() -> Any:
    time = np.arange(1100) * DAY // 100
    user = np.where(time < 10 * DAY, np.arange(1100) // 5, np.arange(1100) % 199)
    return evidence(of_columns(np.where(np.arange(1100) == 1099, 220, user), np.arange(1100) % 5 + 1, time, 11))


def _noon() -> Any:
    data = days_of_events([95] + [100] * 10)
    time = np.where(data.time < 10 * DAY + DAY // 2, data.time, 10 * DAY + DAY // 2)
    return evidence(_with(data, time=time))


def _with(data: PreparedDataset, **columns: Any) -> PreparedDataset:
    return dataclasses.replace(data, **columns)


def _actions() -> Any:
    data = days_of_events([95] + [400] * 10)
    rng = np.random.default_rng(0)
    before, after = rng.choice([2, 3], len(data.time)), rng.choice([0, 2, 3], len(data.time), p=[0.4, 0.1, 0.5])
    codes = np.where(data.time >= 10 * DAY, after, before).astype(np.int32)
    schema = Schema((Feature("action", "interactions", "categorical", "event", 4),))
    data = _with(data, schema=schema, columns={"interactions.action": Dense(codes)})
    items = pa.table({"item_id": [1], "item_idx": [1]})
    side = SimpleNamespace(retriever=SimpleNamespace(items=items, schema=schema))
    return SimpleNamespace(window=EventWindow(data), now=0, candidate=side, served=side)


CASES: dict[str, tuple[str, Callable[[], Any]]] = {
    "a small day": ("volume", lambda: events([100] * 9 + [30])),
    "a large day": ("volume", lambda: events([100] * 9 + [320])),
    "two days, of which the worse is not the smaller": (
        "volume",
        lambda: _since(days_of_events([95, *[60, 160] * 5, 160, 1, *[100] * 9, 40]), 11),
    ),
    "no events": ("volume", lambda: evidence(days_of_events([95] + [100] * 10), end=12 * DAY)),
    "active users": ("activity", lambda: events([100] * 9 + [300], users=30)),
    "passive users": ("activity", lambda: evidence(days_of_events([395, *[400] * 9, 60], num_users=40))),
    "a gap": ("gaps", _noon),
    "the future": ("clock", lambda: evidence(days_of_events([95] + [100] * 10), now=8 * DAY)),
    "copies": ("duplicates", _copied_and_busy),
    "new users": ("unseen", _new_users),
    "no new users": ("unseen", _no_new_users),
    "actions": ("labels", _actions),
    "nulls": ("nulls", _actions),
    "items": ("items", _hot_item),
}


def _since(data: PreparedDataset, day: int) -> Any:
    given = evidence(data)
    given.window = EventWindow(data, begin=day * DAY)
    return given


@pytest.mark.parametrize("case", CASES)
def test_data_that_fail_pass_with_the_settings_that_fit(case: str) -> None:
    name, make = CASES[case]
    given = make()
    failures = [row for row in judged(name, given) if row.status == "fail"]
    assert failures
    for names_days in (False, True):
        settings = fitting_settings(failures, names_days=names_days)
        if case == "no events" and not names_days:
            # No factor of nothing is enough: the day has to be named.
            assert settings == ["gates.volume.min_ratio=0"]
        assert settings
        assert {row.status for row in judged(name, given, *settings)} <= {"pass", "untested"}, settings


def test_a_margin_that_fits() -> None:
    rng = np.random.default_rng(0)
    served = rng.random(400)
    for setting, value in (("non_inferiority_margin", 0.03), ("min_ratio", 0.97)):
        pair = PairedMetric(served * 0.8, served, margin=0.03, setting=setting)
        (row,) = non_inferiority({"recall@10": pair}, 0.05, detectable_loss=0.5)
        assert row.status == "fail"
        (word,) = fitting_settings([row.of("not_worse")])
        key, _, text = word.partition("=")
        assert key == f"gates.not_worse.{setting}"
        assert abs(float(text) - value) == pytest.approx(0.17, abs=0.002)
        margin = float(text) if setting != "min_ratio" else 1 - float(text)
        wider = PairedMetric(served * 0.8, served, margin=margin, setting=setting)
        assert non_inferiority({"x": wider}, 0.05, detectable_loss=0.5)[0].status == "pass"


def test_settings_of_several_checks_are_joined_and_rounded_to_the_safe_side() -> None:
    rows = [
        at_most("x", 3.1412, threshold=1.0, reason="", fits={"max_ratio": 3.1412, "known_days": ["2026-11-24"]}),
        at_most("y", 2.0, threshold=1.0, reason="", fits={"max_ratio": 2.0, "known_days": ["2026-11-20"]}),
        at_least("z", 0.12349, threshold=0.5, reason="", fits={"min_ratio": 0.12349}),
        at_least("f", 0.0876, threshold=0.1, reason="", fits={"floors": {"recall@10": 0.0876}}),
    ]
    rows = [row.of("volume" if row.check in "xyz" else "absolute") for row in rows]
    floors = "++gates.absolute.floors={recall@10: 0.0875}"
    assert fitting_settings(rows) == ["gates.volume.max_ratio=3.15", "gates.volume.min_ratio=0.123", floors]
    named = ["gates.volume.known_days=[2026-11-20,2026-11-24]", "gates.volume.min_ratio=0.123", floors]
    assert fitting_settings(rows, names_days=True) == named
    # Settings that are whole numbers by default take others.
    others = ["clock.max_ahead_hours", "gaps.max_gap_days", "border.max_overlap_days", "fresh.max_days_behind"]
    words = [f"gates.{key}=2.5" for key in others]
    assert composition_error("gates", [*GATES, *fitting_settings(rows), *words]) is None
    # No setting fits if one check has none, or no finite one.
    assert fitting_settings([*rows, failed("finite", 0.5, threshold=1.0, reason="").of("embeddings")]) == []
    endless = at_most("x", np.inf, threshold=1.0, reason="", fits={"max_gain": np.inf}).of("too_good")
    assert fitting_settings([endless]) == []
