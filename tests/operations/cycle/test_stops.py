"""A stopped cycle stays visible until it is accepted, judged again, or a release goes out. Steps are fakes."""

from __future__ import annotations

import dataclasses
import io
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from worlds import compose

from recsys.core.errors import UserError
from recsys.operations.cycle import build_steps
from recsys.operations.cycle import cycle as machine
from recsys.operations.cycle.cycle import run_cycle
from recsys.operations.cycle.plan import CyclePlan
from recsys.operations.cycle.pruning import prune
from recsys.operations.cycle.state import Cycle, CycleStateFile
from recsys.operations.cycle.stops import AcceptRequest
from recsys.operations.gates.verdict import Verdict, at_most
from recsys.reports.cycles.stop_advice import print_stops

VERSION = "0123456789abcde{}"


@pytest.fixture(scope="module")
def configs() -> tuple[DictConfig, DictConfig]:
    config = compose("retrain", ["data.root=DATA", "admin_token=TOKEN"])
    return config, compose("train", ["data=parquet", "data.root=DATA"])


@dataclasses.dataclass
class World:
    """One model whose days have three times the usual events."""

    root: Path
    config: DictConfig
    training: DictConfig
    done: list[str] = dataclasses.field(default_factory=list)
    fails: dict[str, BaseException] = dataclasses.field(default_factory=dict)

    def plan(self, **changes: Any) -> CyclePlan:
        config = OmegaConf.merge(self.config, {"data": {"root": str(self.root / "data")}})
        config.folder, config.store = str(self.root / "retraining"), str(self.root / "store")
        for key, value in changes.items():
            OmegaConf.update(config, key.replace("__", "."), value)
        words = [f"data.root={self.root}/data", f"store={self.root}/store", "gates.volume.max_ratio=1.5"]
        return CyclePlan(config, self.training, variants={}, command=words)  # type: ignore[arg-type]

    def run(self, request: AcceptRequest | None = None, **changes: Any) -> tuple[Cycle | None, str]:
        screen = io.StringIO()
        plan, console = self.plan(**changes), Console(file=screen, width=200)
        cycle = run_cycle(plan, console=console, request=request)
        print_stops(plan, console)
        return cycle, screen.getvalue()

    def accept(self, number: object, why: str = "the sale", **changes: Any) -> tuple[Cycle | None, str]:
        return self.run(AcceptRequest(cycle=str(number), why=why, who="ann"), **changes)

    def arrives(self, name: str, size: int = 3) -> None:
        pq.write_table(
            pa.table({"item_id": list(range(size))}), self.root / f"data/interactions.parquet/{name}.parquet"
        )

    @property
    def file(self) -> CycleStateFile:
        return CycleStateFile(self.plan().folder)

    def outcomes(self) -> list[tuple[int, str]]:
        return [(end["number"], end["outcome"]) for end in self.file.history()]

    def verdict(self, number: int) -> Verdict:
        return Verdict.load(self.plan().folder / f"cycles/{number}/run/verdict.json")


@pytest.fixture
def world(tmp_path: Path, configs: tuple[DictConfig, DictConfig], monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path, *configs)
    (tmp_path / "data/interactions.parquet").mkdir(parents=True)
    world.arrives("one")

    def goes_on(name: str, after: str) -> Callable[[CyclePlan, Cycle], str]:
        def do(plan: CyclePlan, cycle: Cycle) -> str:  # noqa: ARG001
            world.done.append(name)
            if name in world.fails:
                raise world.fails.pop(name)
            if after == "end":
                cycle.end("kept", "it is good")
            else:
                cycle.step = after  # type: ignore[assignment]
            return name

        return do

    def judge(plan: CyclePlan, cycle: Cycle) -> str:
        goes_on("judge", "publish")(plan, cycle)
        run, bound = plan.run_folder(cycle), plan.config.gates.volume.max_ratio
        cycle.version = VERSION.format(cycle.number)
        (run / "staged" / cycle.version).mkdir(parents=True, exist_ok=True)
        row = at_most("largest day", 3.2, threshold=bound, reason="2026-11-20", fits={"max_ratio": 3.2})
        verdict = Verdict(
            run=str(run),
            candidate=cycle.version,
            against=None,
            dataset_fingerprint="",
            created="then",
            outcomes=(row.of("volume"),),
        )
        verdict.save(run)
        if verdict.failed:
            cycle.end("stopped", verdict.summary())
        return verdict.summary()

    order = ["prepare", "train", "publish", "roll_out", "watch", "end"]
    fakes = {name: goes_on(name, after) for name, after in zip(order, order[1:], strict=False)}
    fakes |= {"train": goes_on("train", "judge"), "judge": judge, "accept": build_steps.accept}
    monkeypatch.setattr(machine, "STEPS", fakes)
    return world


def test_a_stop_is_named_with_its_commands_by_every_call(world: World) -> None:
    for outcome in ("stopped", None):
        cycle, told = world.run()
        assert (cycle and cycle.outcome) == outcome
        assert "cycle 1 is stopped by volume: 0 passed, 1 failed, 0 untested; no release went out since" in told
        assert "volume, largest day: 3.2, expected at most 1.67 (2026-11-20)" in told
        # The command is the caller's own, but for the key that it replaces.
        places = f"data.root={world.root}/data store={world.root}/store"
        assert f"recsys retrain {places} gates.volume.max_ratio=3.21" in told
        assert f"recsys retrain store={world.root}/store accept=1 why=REASON" in told
        assert "TOKEN" not in told
    assert world.done == ["prepare", "train", "judge"]
    assert world.outcomes() == [(1, "stopped")]


def test_commands_are_words_of_a_shell(world: World) -> None:
    words = ["train=['user_tower=mean','model.dim=8']", "data.root=it's $HOME", "store=a b", "~gates.overlap"]
    line = dataclasses.replace(world.plan(), command=words).command_line("gates.volume.known_days=[2026-11-20]")
    assert shlex.split(line) == ["recsys", "retrain", *words, "gates.volume.known_days=[2026-11-20]"]
    assert "\"train=['user_tower=mean','model.dim=8']\"" in line


def test_changed_settings_of_gates_judge_the_same_candidate_again(world: World) -> None:
    world.run()
    cycle, told = world.run(gates__volume__max_ratio=2.0)
    assert cycle is not None
    assert (cycle.number, cycle.attempt, cycle.outcome) == (1, 2, "stopped")
    assert "the settings have changed: it is judged again" in told
    assert world.run(gates__volume__max_ratio=2.0)[0] is None
    cycle, told = world.run(gates__volume__max_ratio=3.21)
    assert cycle is not None
    assert (cycle.number, cycle.attempt, cycle.outcome) == (1, 3, "kept")
    assert world.done == ["prepare", "train", "judge", "judge", "judge", "publish", "roll_out", "watch"]
    assert world.outcomes() == [(1, "stopped"), (1, "stopped"), (1, "kept")]
    assert world.file.stops() == []
    verdict = world.verdict(1)
    assert [one.outcomes[0].threshold for one in verdict.former] == [1.67, 2.0]
    assert [one["stopped_by"] for one in verdict.to_json()["former"]] == [["volume"], ["volume"]]
    assert verdict.passed
    # The files count as read once, by the first attempt.
    assert world.run(gates__volume__max_ratio=9.0)[0] is None
    assert world.file.read().cycles == 1


def test_changed_settings_of_training_are_used_on_request(world: World) -> None:
    world.run()
    _, told = world.run(warm_start=False)
    assert "the settings of training have changed; to train on the same files with them: recsys retrain" in told
    assert "max_ratio=1.5 force=true" in told
    assert world.done.count("train") == 1
    cycle, _ = world.run(warm_start=False, force=True, gates__volume__max_ratio=4.0)
    assert cycle is not None
    assert (cycle.number, cycle.new_events, cycle.outcome) == (2, 0, "kept")
    assert world.file.stops() == []


def test_an_accepted_candidate_goes_out_and_the_acceptance_is_recorded(world: World) -> None:
    world.run()
    cycle, told = world.accept(1)
    assert cycle is not None
    assert (cycle.number, cycle.outcome) == (1, "kept")
    assert "accept: by ann in spite of volume, largest day: the sale" in told
    accepted = world.verdict(1).accepted
    assert accepted is not None
    assert (accepted.who, accepted.why) == ("ann", "the sale")
    (row,) = accepted.overridden
    assert (row["gate"], row["check"], row["value"], row["threshold"]) == ("volume", "largest day", 3.2, 1.67)
    assert world.file.history()[-1]["accepted"]["why"] == "the sale"
    assert world.run() == (None, f"no new events in {world.root}/data since the last cycle read it\n")
    with pytest.raises(UserError, match="accept=1: no such cycle is stopped; none is stopped"):
        world.accept(1)


def test_requests_that_are_refused(world: World) -> None:
    for why in ("", "  "):
        with pytest.raises(UserError, match=r"why: found nothing, expected accept=1 why='REASON'"):
            AcceptRequest(cycle="1", why=why)
    with pytest.raises(UserError, match="accept=1: no such cycle is stopped; none is stopped"):
        world.accept(1)
    world.run()
    world.arrives("two")
    world.run()
    for wrong in (3, "one"):
        with pytest.raises(UserError, match=f"accept={wrong}: no such cycle is stopped; stopped: 1, 2"):
            world.accept(wrong)
    other = str(world.root / "elsewhere")
    with pytest.raises(UserError, match=f"store: found {other}, expected store={world.root}/store"):
        world.accept(1, store=other)
    world.arrives("three")
    world.fails["train"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        world.run()
    with pytest.raises(UserError, match="accept=1: cycle 3 is unfinished at step train"):
        world.accept(1)
    (world.plan().folder / "cycles/2/run/staged" / VERSION.format(2)).rmdir()
    world.run()
    with pytest.raises(UserError, match="accept=2: .*cycles/2/run holds no release of the candidate"):
        world.accept(2)
    assert world.done.count("publish") == 0


def test_a_later_stop_stands_although_an_earlier_one_was_accepted(world: World) -> None:
    world.run()
    world.arrives("two")
    world.run()
    assert [stop.number for stop in world.file.stops()] == [1, 2]
    read = world.file.read().read
    world.accept(1)
    assert [stop.number for stop in world.file.stops()] == [2]
    assert world.file.read().read == read
    world.accept(2)
    assert world.file.stops() == []
    # A newer cycle that goes out ends every stop before it.
    world.arrives("three")
    world.run()
    world.arrives("four")
    world.run(gates__volume__max_ratio=4.0)
    assert world.file.stops() == []


@pytest.mark.parametrize("at", ["publish", "roll_out", "watch"])
def test_a_killed_acceptance_is_continued_by_any_call(world: World, at: str) -> None:
    world.run()
    world.fails[at] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        world.accept(1)
    current = world.file.read().current
    assert current is not None
    assert (current.step, current.accepted and current.accepted.why) == (at, "the sale")
    # With or without the request, and whatever the settings are now.
    cycle, told = world.accept(1) if at == "watch" else world.run(gates__volume__max_ratio=1.1)
    assert cycle is not None
    assert (cycle.number, cycle.outcome, cycle.attempt) == (1, "kept", 2)
    assert f"continues with: {at}" in told
    assert world.outcomes() == [(1, "stopped"), (1, "kept")]


def test_killed_before_the_acceptance_is_written_to_the_verdict(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.run()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Verdict, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            world.accept(1)
    assert world.verdict(1).accepted is None
    assert world.run()[1].startswith("cycle 1 of ")
    assert world.verdict(1).accepted is not None
    assert world.outcomes()[-1] == (1, "kept")


def test_a_killed_second_judgement_is_repeated_and_a_failed_one_leaves_the_stop(world: World) -> None:
    world.run()
    world.fails["judge"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        world.run(gates__volume__max_ratio=2.0)
    world.fails["judge"] = UserError("samples.folder: no such folder")
    with pytest.raises(UserError, match="no such folder"):
        world.run(gates__volume__max_ratio=2.5)
    assert world.file.read().current is None
    assert [stop.number for stop in world.file.stops()] == [1]
    assert world.outcomes() == [(1, "stopped")]
    world.fails["judge"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        world.run(gates__volume__max_ratio=2.0)
    # An interrupted judgement does not keep anybody from accepting what it is about.
    cycle, _ = world.accept(1)
    assert cycle is not None
    assert cycle.outcome == "kept"


def test_a_stop_of_an_earlier_version_is_judged_again_and_can_be_accepted(world: World) -> None:
    world.run()
    record = world.file.history()[0]
    for name in ("settings", "store", "attempt", "accepted"):
        del record[name]
    world.file.history_path.write_text(json.dumps(record) + "\n")
    cycle, _ = world.run()
    assert cycle is not None
    assert (cycle.attempt, cycle.outcome, cycle.new_events) == (2, "stopped", 3)
    assert world.accept(1)[0] is not None


def test_pruning_keeps_what_can_be_accepted_and_every_verdict(world: World) -> None:
    world.run(gates__volume__max_ratio=4.0)
    for name in ("two", "three"):
        world.arrives(name)
        world.run()
    folder = world.plan().folder
    (folder / "cycles/1/run/verdict.html").write_text("page")
    assert prune(world.plan(keep=0)) == [folder / "cycles/1/run"]
    assert sorted(path.name for path in (folder / "cycles/1").iterdir()) == ["verdict.html", "verdict.json"]
    assert Verdict.load(folder / "cycles/1/verdict.json").passed
