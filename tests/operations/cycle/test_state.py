"""The sequence of a cycle around its steps: files that count as read, resumption, abandoned cycles and the lock."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from rich.console import Console
from worlds import compose

from recsys.core.errors import UserError
from recsys.operations.cycle import cycle as machine
from recsys.operations.cycle.cycle import run_cycle
from recsys.operations.cycle.plan import CyclePlan
from recsys.operations.cycle.state import Cycle, CycleState, CycleStateFile


class Steps:
    """Steps that do nothing but what a test asks for."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.read: list[list[str]] = []

    def step(self, name: str, after: str) -> Callable[[CyclePlan, Cycle], str]:
        def do(plan: CyclePlan, cycle: Cycle) -> str:  # noqa: ARG001
            self.done.append(name)
            if name in self.fails:
                raise self.fails.pop(name)
            self.read.append([Path(path).name for path in cycle.listing.paths["interactions"]])
            if after == "end":
                cycle.end("kept", "it is good")
            else:
                cycle.step = after  # type: ignore[assignment]
            cycle.newest, cycle.version = 123, "0" * 16
            return f"{name} is done"

        return do


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    made = Steps()
    order = ["prepare", "train", "judge", "publish", "roll_out", "watch", "end"]
    fakes = {name: made.step(name, after) for name, after in zip(order, order[1:], strict=False)}
    monkeypatch.setattr(machine, "STEPS", fakes)
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data/interactions.parquet").mkdir(parents=True)
    arrive(tmp_path / "data", "one", 3)
    return tmp_path / "data"


def arrive(root: Path, name: str, size: int) -> None:
    pq.write_table(pa.table({"item_id": list(range(size))}), root / f"interactions.parquet/{name}.parquet")


def plan_of(root: Path, *training: str) -> CyclePlan:
    config = compose("retrain", [f"data.root={root}", f"folder={root.parent}/retraining"])
    return CyclePlan(config, compose("train", ["data=parquet", f"data.root={root}", *training]), variants={})


def run(plan: CyclePlan, wait: float = 0.0) -> tuple[Cycle | None, str]:
    screen = io.StringIO()
    cycle = run_cycle(plan, wait, console=Console(file=screen, width=200))
    return cycle, screen.getvalue()


def test_a_cycle_reads_what_arrived_once(root: Path, steps: Steps) -> None:
    plan = plan_of(root)
    cycle, told = run(plan)
    assert cycle is not None
    assert (cycle.outcome, cycle.new_events, cycle.number) == ("kept", 3, 1)
    assert "cycle 1 of two_tower: 3 new events in 1 files" in told
    assert run(plan) == (None, f"no new events in {root} since the last cycle read it\n")
    arrive(root, "two", 4)
    cycle, _ = run(plan)
    assert cycle is not None
    assert (cycle.new_events, cycle.number) == (4, 2)
    file = CycleStateFile(plan.folder)
    assert [told["number"] for told in file.history()] == [1, 2]
    assert [Path(shard.path).name for shard in file.read().read] == ["one.parquet", "two.parquet"]
    assert file.read().newest == 123
    assert steps.done.count("publish") == 2


def test_a_step_that_breaks_is_done_again_with_the_files_that_it_began_with(root: Path, steps: Steps) -> None:
    plan = plan_of(root)
    for step in ("prepare", "train", "judge", "publish", "watch"):
        steps.fails[step] = OSError("no space left")
        with pytest.raises(OSError, match="no space left"):
            run(plan)
        arrive(root, f"after_{step}", 1)
    cycle, told = run(plan)
    assert cycle is not None
    assert "continues with: watch" in told
    assert (cycle.number, cycle.outcome) == (1, "kept")
    assert steps.read == [["one.parquet"]] * 6
    assert (
        steps.done
        == ["prepare", "prepare", "train", "train", "judge", "judge", "publish", "publish", "roll_out"] + ["watch"] * 2
    )
    cycle, _ = run(plan)
    assert cycle is not None
    assert (cycle.number, cycle.new_events) == (2, 5)


@pytest.mark.parametrize("step", ["prepare", "train", "judge"])
def test_wrong_data_ends_the_cycle_and_does_not_count_as_read(root: Path, steps: Steps, step: str) -> None:
    plan = plan_of(root)
    steps.fails[step] = UserError("one.parquet: no column user_id")
    with pytest.raises(UserError, match="no column user_id"):
        run(plan)
    file = CycleStateFile(plan.folder)
    assert file.read() == CycleState(cycles=1)
    (told,) = file.history()
    assert (told["outcome"], told["why"]) == ("failed", f"at step {step}: one.parquet: no column user_id")
    cycle, _ = run(plan)
    assert cycle is not None
    assert (cycle.number, cycle.outcome) == (2, "kept")


@pytest.mark.parametrize("step", ["judge", "publish"])
@pytest.mark.parametrize("error", [TypeError("'NoneType' object is not iterable"), ZeroDivisionError("by zero")])
def test_a_fault_of_the_program_is_recorded_and_the_step_is_repeated(
    root: Path, steps: Steps, step: str, error: Exception
) -> None:
    plan = plan_of(root)
    steps.fails[step] = error
    with pytest.raises(type(error)):
        run(plan)
    file = CycleStateFile(plan.folder)
    current = file.read().current
    assert current is not None
    assert (current.step, current.outcome) == (step, None)
    assert current.error == f"at step {step}: {type(error).__name__}: {error}"
    assert file.history() == []
    cycle, told = run(plan)
    assert cycle is not None
    assert f"continues with: {step} (interrupted at step {step}: {type(error).__name__}: {error})" in told
    assert (cycle.number, cycle.outcome, cycle.error) == (1, "kept", "")
    assert "error" not in file.history()[0]


def test_a_host_that_is_down_does_not_end_the_cycle(root: Path, steps: Steps) -> None:
    plan = plan_of(root)
    steps.fails["roll_out"] = UserError("A:8081: does not answer")
    with pytest.raises(UserError, match="does not answer"):
        run(plan)
    current = CycleStateFile(plan.folder).read().current
    assert current is not None
    assert (current.step, current.outcome) == ("roll_out", None)
    # What was published stays what it is, whatever would be trained now.
    cycle, _ = run(plan_of(root, "model.dim=32"))
    assert cycle is not None
    assert (cycle.number, cycle.outcome) == (1, "kept")
    assert steps.done.count("train") == 1


def test_a_cycle_with_other_settings_or_data_is_abandoned(root: Path, steps: Steps) -> None:
    steps.fails["judge"] = OSError("killed")
    with pytest.raises(OSError, match="killed"):
        run(plan_of(root))
    steps.fails["judge"] = OSError("killed again")
    with pytest.raises(OSError, match="killed again"):
        run(plan_of(root, "model.dim=32"))
    arrive(root, "one", 9)
    cycle, told = run(plan_of(root, "model.dim=32"))
    assert cycle is not None
    assert (cycle.number, cycle.new_events, cycle.outcome) == (3, 9, "kept")
    assert "cycle 2" in told
    history = CycleStateFile(plan_of(root).folder).history()
    assert [one["outcome"] for one in history] == ["abandoned", "abandoned", "kept"]
    assert history[0]["why"] == "at step judge: the settings have changed since it began"
    assert "one.parquet has changed since the cycle began" in history[1]["why"]


def test_one_cycle_of_a_model_at_a_time(root: Path, steps: Steps) -> None:
    plan = plan_of(root)
    plan.folder.mkdir(parents=True)
    with (
        FileLock(plan.folder / ".lock"),
        pytest.raises(UserError, match="another cycle of two_tower is running; waited"),
    ):
        run(plan)
    lock = FileLock(plan.folder / ".lock")
    lock.acquire()
    steps.fails["judge"] = OSError("killed")
    lock.release()
    with pytest.raises(OSError, match="killed"):
        run(plan)
    with lock, pytest.raises(UserError, match=r"\(cycle 1, begun .*, at step judge\); waited 0.1 s, wait=SECONDS"):
        run(plan, wait=0.1)
    # Another model has a lock of its own.
    other = compose("retrain", [f"data.root={root}", f"folder={root.parent}/retraining", "model=other"])
    with lock:
        assert run(CyclePlan(other, plan.training, variants={}))[0] is not None


def test_the_history_has_each_cycle_once_also_after_a_cut_off_line(tmp_path: Path) -> None:
    from recsys.operations.cycle.arrivals import FolderListing

    file = CycleStateFile(tmp_path)
    one, two = (Cycle(number, "then", settings="", listing=FolderListing(), new_events=1) for number in (1, 2))
    file.append(one)
    with file.history_path.open("a") as opened:
        opened.write('{"number": 2, "beg')
    file.append(one)
    file.append(two)
    file.append(two)
    assert [told["number"] for told in file.history()] == [1, 2]


def test_the_state_is_read_as_it_was_written_and_another_file_is_refused(root: Path, tmp_path: Path) -> None:
    from recsys.operations.cycle.arrivals import list_folder

    file, listing = CycleStateFile(tmp_path), list_folder(str(root))
    cycle = Cycle(
        3,
        "then",
        settings="abc",
        listing=listing,
        new_events=3,
        step="watch",
        warm_start={"": "runs/a"},
        measured={"served": {"x": 0.5}},
    )
    state = CycleState(3, listing.interactions, 99, cycle)
    file.write(state)
    assert file.read() == state
    assert not list(tmp_path.glob(".state*"))
    content = json.loads(file.path.read_text())
    content["current"]["step"] = "fly"
    for wrong in ("{", "[]", json.dumps(content), json.dumps({"current": {"number": 1}})):
        file.path.write_text(wrong)
        with pytest.raises(UserError, match="not the state of a retraining cycle"):
            file.read()
