"""A few days of `benchmarks/simulated_months.py`: arrivals, stopped candidates and measurements."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys.data.simulation.synthetic import WorldSettings
from recsys.experiments.assembly import open_data

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks/harms"))
sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks/months"))
import simulated_months
from arriving import DAY, EVENTS, Days, Incident
from beginning import Beginning, Beginnings, validations
from of_data import doubled_day, outage
from policies import POLICIES, Loop, Policy
from telling import DayRecord, Months
from worth import requests_since

WORLD = WorldSettings(
    num_users=400, num_items=200, num_events=12_000, num_categories=4, topics_per_category=3, days=12, vector_width=4
)
TWICE = Incident("export ran twice", 9, 10, doubled_day)


def events_of(root: Path) -> dict[int, int]:
    """Day -> events of its shard."""
    return {int(file.stem[4:]): pq.read_metadata(file).num_rows for file in (root / EVENTS).glob("*.parquet")}


def test_arrived_events_are_harmed_until_the_incident_is_fixed(tmp_path: Path) -> None:
    nobody = Incident("nobody could come", 10, 11, outage, happened=True)
    longer = Incident("two days twice", 8, 10, doubled_day, days=2)
    days = Days(tmp_path, WORLD, (longer, nobody))
    simulated = np.asarray(pq.read_table(tmp_path / "world" / EVENTS)["timestamp"]) - WORLD.start_seconds
    usual = np.bincount(simulated // DAY, minlength=WORLD.days)
    days.pass_by(7)
    assert events_of(days.arrived) == events_of(days.happened) == dict(enumerate(usual[:8]))
    for day in (8, 9):
        # Twice is the same: a killed process comes back.
        for _ in range(2):
            days.pass_by(day)
        happened, arrived = events_of(days.happened), events_of(days.arrived)
        assert {shard for shard in happened if arrived[shard] != happened[shard]} == {7, 8}
        assert (arrived[7], arrived[8]) == (2 * usual[7], 2 * usual[8])
    days.pass_by(10)
    hour = simulated[simulated // DAY == 10] % DAY // 3600
    assert events_of(days.arrived) == events_of(days.happened)
    assert events_of(days.arrived)[10] == np.sum((hour < 12) | (hour >= 21)) < usual[10]
    items = pq.read_table(days.arrived / "items.parquet")
    born = pq.read_table(tmp_path / "world/items.parquet")["born"]
    assert pc.max(items["born"]).as_py() < days.second(11)
    assert len(items) == np.sum(np.asarray(born) < days.second(11)) < len(born)


def test_each_user_of_a_day_is_a_request_for_unseen_items(tmp_path: Path) -> None:
    days = Days(tmp_path, WORLD, ())
    days.pass_by(6)
    dataset = open_data(Loop(tmp_path, POLICIES[0], days=days).training(days.happened, 6))
    asked = requests_since(dataset, days.second(6))
    table = pq.read_table(tmp_path / "world" / EVENTS).sort_by("timestamp").to_pandas()
    table = table[table.timestamp < days.second(7)]
    today = table[table.timestamp >= days.second(6)]
    before = table[table.timestamp < days.second(6)]
    assert sorted(dataset.user_ids.take(asked.requests.user_idx).to_pylist()) == sorted(today.user_id.unique())
    seen = before.groupby("user_id").item_id.agg(set)
    for row, user in enumerate(dataset.user_ids.take(asked.requests.user_idx).to_pylist()):
        wanted = set(today[today.user_id == user].item_id) - seen.get(user, set())
        assert set(dataset.item_ids.take(asked.relevant.take(np.array([row])).values - 1).to_pylist()) == wanted
        begin, end = dataset.offsets[asked.requests.user_idx[row]], asked.requests.end[row]
        assert end - begin == np.sum(before.user_id == user)


def test_policies_are_due_from_the_first_release_on() -> None:
    due = {policy.name: [day for day in range(3, 20) if policy.is_due(day, 3)] for policy in POLICIES[:3]}
    assert due == {"never": [], "weekly, cold": [10, 17], "weekly, warm": [10, 17]}


def test_a_gain_has_an_interval_from_a_bootstrap_of_weeks() -> None:
    rng = np.random.default_rng(0)
    never = 0.2 + 0.05 * rng.standard_normal(60)
    # Paired: the days' own ups and downs, much larger than the gain, are the same for both.
    values = {"never": never, "same": never + 0.01, "noisy": never + 0.05 * rng.standard_normal(60)}
    told = [
        DayRecord(29),
        *(DayRecord(day + 30, 9, {n: {"recall@10": v[day]} for n, v in values.items()}) for day in range(60)),
    ]
    months = Months(0, told, {}, ())
    assert months.gain("same", "never") == pytest.approx((0.01, 0.01, 0.01))
    mean, low, high = months.gain("noisy", "never")
    assert mean == pytest.approx((values["noisy"] - never).mean())
    assert low < 0 < high


def test_steps_until_the_recall_that_the_cold_run_ends_with(tmp_path: Path) -> None:
    (tmp_path / "logs/0").mkdir(parents=True)
    lines = ["step,train/loss,val/recall@100", "9,3.0,", "19,,0.2", "39,,0.31", "59,,0.3", "0,,0.31"]
    (tmp_path / "logs/0/metrics.csv").write_text("\n".join(lines) + "\n")
    assert validations(tmp_path) == {20: 0.2, 40: 0.31, 60: 0.3}
    told = str(Beginning(5, 0.31, 40, 0.308, None, 10))
    assert told.endswith("0.3100 after 40 steps cold; warm 0.3080: all never, 99% after 10 (25%)")


def test_steps_of_a_warm_run_are_read_from_its_validations(tmp_path: Path) -> None:
    for name, looked in (("cold", [0.1, 0.3, 0.4, 0.39]), ("warm", [0.38, 0.397, 0.398, 0.41])):
        folder = tmp_path / f"005-{name}/logs/0"
        folder.mkdir(parents=True)
        lines = [f"{20 * look + 19},,{value}" for look, value in enumerate(looked)]
        (folder / "metrics.csv").write_text("\n".join(["step,train/loss,val/recall@100", *lines]) + "\n")
    days: Any = None
    (found,) = Beginnings(tmp_path, days, days=days, chosen=(5,)).measured()
    assert found == Beginning(5, 0.4, 60, 0.41, 80, 40)


@pytest.mark.slow
def test_gates_stop_an_incident_and_finished_steps_are_not_repeated(tmp_path: Path) -> None:
    policies = (Policy("never", None), Policy("daily, warm", 1), Policy("daily, warm, no gates", 1, gated=False))
    world = dataclasses.replace(WORLD, days=11)

    def simulation() -> simulated_months.Simulation:
        return simulated_months.Simulation(
            tmp_path, world, first_day=8, incidents=(TWICE,), policies=policies, compared=()
        )

    months = simulation().run()
    assert months.num_events == world.num_events
    made = {name: {one.day: one for one in found} for name, found in months.retrained.items()}
    assert made["never"] == {}
    assert [*made["daily, warm"]] == [*made["daily, warm, no gates"]] == [9, 10]
    assert made["daily, warm"][9].outcome == "stopped"
    assert "duplicates" in made["daily, warm"][9].stopped_by
    assert {one.outcome for one in made["daily, warm, no gates"].values()} == {"kept"}
    # The export is mended, and its copies stop nobody any more.
    assert "duplicates" not in made["daily, warm"][10].stopped_by
    # All serve the same release on the first day, and what was stopped is not served on the next one.
    recalls = [told.recall for told in months.days if told.recall]
    assert recalls[0]["never"] == recalls[0]["daily, warm"] == recalls[0]["daily, warm, no gates"]
    assert recalls[1]["never"] == recalls[1]["daily, warm"] != recalls[1]["daily, warm, no gates"]
    assert all(0 < told["recall@10"] < told["recall@100"] <= 1 for day in recalls for told in day.values())

    # Killed behind the retraining of the last day, before that was noted.
    last = tmp_path / "days/010.json"
    noted = json.loads(last.read_text())
    last.write_text(json.dumps(noted | {"is_over": False}))
    again = simulation().run()
    assert again.retrained == months.retrained
    assert [told.recall for told in again.days if told.recall] == recalls
    months.draw(tmp_path / "picture.svg")
    picture = (tmp_path / "picture.svg").read_text()
    assert "daily, warm, no gates" in picture
    assert "export ran twice" in picture
