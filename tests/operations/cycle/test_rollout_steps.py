"""A release is rolled out host by host, watched, and rolled back if it fails."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_host import TOKEN, FakeHost
from omegaconf import DictConfig
from worlds import compose

from recsys.core.errors import UserError
from recsys.operations.cycle.arrivals import FolderListing
from recsys.operations.cycle.plan import CyclePlan
from recsys.operations.cycle.rollout_steps import roll_back, roll_out, watch
from recsys.operations.cycle.state import Cycle
from recsys.operations.cycle.watch import WatchedServer, WatchSettings, watch_servers
from recsys.operations.rollout.state import RolloutStateFile
from recsys.release.store import ReleaseStore
from recsys.serving.gateway.remote_host import parse_address

OLD, NEW, OTHER = "a" * 16, "b" * 16, "c" * 16
QUICK = WatchSettings(seconds=0.3, every=0.02, most_errors=0.05, fewest_answers=20, unready=3, switch_seconds=1.0)
# Ends with the problem, however busy the machine is.
PATIENT = dataclasses.replace(QUICK, seconds=60.0)


@pytest.fixture
def hosts() -> Iterator[list[FakeHost]]:
    made = [FakeHost(OLD), FakeHost(OLD)]
    yield made
    for host in made:
        host.stop()


@pytest.fixture
def store(tmp_path: Path) -> ReleaseStore:
    store = ReleaseStore(tmp_path / "store")
    for version in (OLD, NEW, OTHER):
        (store.root / version).mkdir(parents=True)
    store.set_alias("production", OLD, why="test")
    return store


def plan_of(store: ReleaseStore, hosts: list[FakeHost], *overrides: str, **places: list[str]) -> CyclePlan:
    listed = {"hosts": [host.name for host in hosts]} | places
    given = [f"{name}=[{','.join(f'{chr(39)}{place}{chr(39)}' for place in names)}]" for name, names in listed.items()]
    quick = [f"watch.{name}={value}" for name, value in vars(QUICK).items()]
    settings = [f"store={store.root}", f"folder={store.root.parent}/retraining", f"admin_token={TOKEN}", *quick]
    config = compose("retrain", ["data.root=DATA", *settings, *given, *overrides])
    return CyclePlan(config, compose("train", ["data=parquet", "data.root=DATA"]), variants={})


def cycle_of(plan: CyclePlan, served: str | None = OLD) -> Cycle:
    cycle = Cycle(
        7,
        "2026-01-01T00:00:00+00:00",
        settings="",
        listing=FolderListing(),
        new_events=5,
        step="roll_out",
        served=served,
        version=NEW,
    )
    plan.cycle_folder(cycle).mkdir(parents=True)
    return cycle


def serving(hosts: list[FakeHost]) -> list[str]:
    return [host.serving for host in hosts]


def test_a_release_is_rolled_out_and_kept(store: ReleaseStore, hosts: list[FakeHost]) -> None:
    plan = plan_of(store, hosts)
    cycle = cycle_of(plan)
    hosts[0].answers = {("/v1/search", 500): 1000}
    hosts[0].at_look = lambda number: hosts[0].answers.update({("/v1/search", 200): 30 * number})
    assert roll_out(plan, cycle) == f"2 hosts serve {NEW}"
    assert (serving(hosts), cycle.step) == ([NEW, NEW], "watch")
    # Failures before it went out are not its own.
    watch(plan, cycle)
    assert (cycle.step, cycle.outcome) == ("end", "kept")
    assert store.aliases() == {"production": NEW, "previous": OLD}


def test_errors_bring_the_old_release_back(store: ReleaseStore, hosts: list[FakeHost]) -> None:
    plan = plan_of(store, hosts, "watch.seconds=60.0")
    cycle = cycle_of(plan)
    roll_out(plan, cycle)

    def fail(number: int) -> None:
        hosts[1].answers = {("/v1/search", 200): 100 * number, ("/v1/search", 503): 10 * number, ("/readyz", 503): 900}

    hosts[1].at_look = fail
    told = watch(plan, cycle)
    assert "10 of 110 answers failed, expected at most 5.00%" in told
    assert cycle.step == "roll_back"
    roll_back(plan, cycle)
    assert (cycle.outcome, cycle.why) == ("rolled_back", told)
    assert serving(hosts) == [OLD, OLD]
    assert store.aliases()["production"] == OLD
    # Killed before that was written down, it is done again.
    cycle.step = "roll_back"
    roll_back(plan, cycle)
    assert (serving(hosts), store.aliases()["production"]) == ([OLD, OLD], OLD)


def test_a_host_that_is_not_ready_brings_the_old_release_back(store: ReleaseStore, hosts: list[FakeHost]) -> None:
    plan = plan_of(store, hosts, "watch.seconds=60.0")
    cycle = cycle_of(plan)
    roll_out(plan, cycle)
    hosts[0].is_ready = False
    assert watch(plan, cycle) == f"{hosts[0].name}: /readyz answers 503, at 3 checks in a row"
    assert cycle.step == "roll_back"


def test_a_host_that_refuses_the_release_ends_the_rollout(store: ReleaseStore, hosts: list[FakeHost]) -> None:
    plan = plan_of(store, hosts)
    cycle = cycle_of(plan)
    hosts[1].refuses = "load"
    assert "its self-check fails" in roll_out(plan, cycle)
    assert cycle.step == "roll_back"
    roll_back(plan, cycle)
    assert cycle.outcome == "rolled_back"
    assert "its self-check fails" in cycle.why
    assert (serving(hosts), store.aliases()["production"]) == ([OLD, OLD], OLD)


def test_a_wrong_token_or_a_host_that_is_down_is_no_fault_of_the_release(
    store: ReleaseStore, hosts: list[FakeHost]
) -> None:
    wrong = plan_of(store, hosts, "admin_token=wrong")
    cycle = cycle_of(wrong)
    with pytest.raises(UserError, match="refused with status 401"):
        roll_out(wrong, cycle)
    assert cycle.step == "roll_out"
    # Mended, and with another host in the place of one: what is done is not done again.
    extra = FakeHost(OLD)
    plan = plan_of(store, [hosts[0], extra])
    assert roll_out(plan, cycle) == f"2 hosts serve {NEW}"
    assert (hosts[0].serving, hosts[1].serving, extra.serving) == (NEW, OLD, NEW)
    extra.stop()


def test_a_paused_rollout_waits(store: ReleaseStore, hosts: list[FakeHost]) -> None:
    plan = plan_of(store, hosts)
    cycle = cycle_of(plan)
    state = RolloutStateFile(plan.cycle_folder(cycle) / "rollout.json")
    state.pause()
    with pytest.raises(UserError, match="the rollout is paused"):
        roll_out(plan, cycle)
    assert serving(hosts) == [OLD, OLD]
    state.unpause()
    roll_out(plan, cycle)
    assert serving(hosts) == [NEW, NEW]


def test_servers_that_follow_the_alias_are_waited_for(store: ReleaseStore, hosts: list[FakeHost]) -> None:
    plan = plan_of(store, [], followers=[hosts[0].name])
    cycle = cycle_of(plan)
    assert roll_out(plan, cycle) == f"production is {NEW}"
    assert watch(plan, cycle) == f"{hosts[0].name}: serves {OLD}, expected {NEW} after 1 s"
    roll_back(plan, cycle)
    assert store.aliases()["production"] == OLD
    again = Cycle(8, "", settings="", listing=FolderListing(), new_events=5, step="roll_out", served=OLD, version=NEW)
    roll_out(plan, again)
    hosts[0].serving = NEW
    watch(plan, again)
    assert again.outcome == "kept"


def test_without_servers_or_a_previous_release_nothing_is_watched(store: ReleaseStore, hosts: list[FakeHost]) -> None:
    alone = plan_of(store, [])
    cycle = cycle_of(alone)
    roll_out(alone, cycle)
    assert watch(alone, cycle).startswith("no server is watched: hosts=, gateways= and followers= are empty")
    first = Cycle(8, "", settings="", listing=FolderListing(), new_events=5, step="watch", served=None, version=NEW)
    plan = plan_of(store, hosts)
    assert watch(plan, first) == "no server is watched: this is the first release"
    assert first.outcome == "kept"


def test_an_alias_that_somebody_else_moved_is_left_alone(store: ReleaseStore) -> None:
    plan = plan_of(store, [])
    cycle = cycle_of(plan)
    store.set_alias("production", OTHER, why="by hand")
    assert f"{OTHER} is served now" in roll_out(plan, cycle)
    assert cycle.step == "judge"
    for step in (watch, roll_back):
        cycle = Cycle(7, "", settings="", listing=FolderListing(), new_events=5, step="watch", served=OLD, version=NEW)
        step(plan, cycle)
        assert cycle.outcome == "rolled_back"
        assert "by somebody else" in cycle.why
        assert store.aliases()["production"] == OTHER


def test_a_host_that_was_started_again_counts_from_zero(hosts: list[FakeHost]) -> None:
    server = WatchedServer(parse_address(hosts[0].name), OLD)
    hosts[0].answers = {("/v1/search", 200): 1000}

    def answer(number: int) -> None:
        if number > 2:
            hosts[0].answers = {("/v1/search", 200): 10, ("/v1/search", 500): 15}

    hosts[0].at_look = answer
    assert watch_servers([server], [], settings=PATIENT) == "15 of 25 answers failed, expected at most 5.00%"


def test_a_restart_that_was_outgrown_since_is_seen_by_the_counter_that_fell(hosts: list[FakeHost]) -> None:
    hosts[0].answers = {("/v1/search", 200): 10, ("/v1/search", 500): 40}

    def answer(number: int) -> None:
        if number > 1:
            # More answers than before the restart, and fewer errors.
            hosts[0].answers = {("/v1/search", 200): 65, ("/v1/search", 500): 35}

    hosts[0].at_look = answer
    server = WatchedServer(parse_address(hosts[0].name), OLD)
    assert watch_servers([server], [], settings=PATIENT) == "35 of 100 answers failed, expected at most 5.00%"


def test_answers_before_the_first_reading_are_not_counted(hosts: list[FakeHost]) -> None:
    hosts[0].answers = {("/v1/search", 500): 1000}

    def answer(number: int) -> None:
        if number == 1:
            raise OSError("no answer at the first look")

    hosts[0].at_look = answer
    assert watch_servers([WatchedServer(parse_address(hosts[0].name), OLD)], [], settings=QUICK) is None


def test_the_share_of_few_answers_is_not_judged(hosts: list[FakeHost]) -> None:
    hosts[0].at_look = lambda number: hosts[0].answers.update({("/v1/search", 500): min(number, 19)})
    began = time.monotonic()
    assert watch_servers([WatchedServer(parse_address(hosts[0].name), OLD)], [], settings=QUICK) is None
    assert time.monotonic() - began >= QUICK.seconds


@pytest.mark.parametrize("wrong", ["watch.unready=0", "watch.every=0.0", "watch.seconds=-1.0"])
def test_wrong_settings_of_the_watch(store: ReleaseStore, hosts: list[FakeHost], wrong: str) -> None:
    plan = plan_of(store, hosts, wrong)
    cycle = cycle_of(plan)
    roll_out(plan, cycle)
    with pytest.raises(UserError, match=wrong.partition("=")[0]):
        watch(plan, cycle)


def test_settings_that_a_cycle_refuses() -> None:
    config = compose("retrain", ["data.root=DATA"])

    def plan(*overrides: str) -> Any:
        training: DictConfig = compose("train", [*overrides])
        return CyclePlan(config, training, variants={})

    with pytest.raises(UserError, match=r"data=synthetic, expected data=parquet"):
        plan()
    with pytest.raises(UserError, match=r"trainer\.devices=2, expected 1"):
        plan("data=parquet", "data.root=DATA", "trainer=ddp")
    with pytest.raises(UserError, match=r"test=false, expected true"):
        plan("data=parquet", "data.root=DATA", "test=false")
    with pytest.raises(UserError, match=r"warm_start=RUN; a cycle chooses"):
        plan("data=parquet", "data.root=DATA", "warm_start=RUN")
