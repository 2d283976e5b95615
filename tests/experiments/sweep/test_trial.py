"""One run of a sweep: its process, its logs and its result."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recsys.core.errors import UserError
from recsys.experiments.run_folder import RunState, RunStatus
from recsys.experiments.sweep.trial import TrialProcess, end_orphan, history, last_error, mark_stopped, result, state

SLEEP = [sys.executable, "-c", "import time; time.sleep(100)"]


def log(folder: Path, start: int, *rows: str) -> None:
    path = folder / "logs" / str(start)
    path.mkdir(parents=True)
    (path / "metrics.csv").write_text("\n".join(["epoch,step,train/loss,val/x", *rows]))


def wait(process: TrialProcess) -> int:
    while process.exit_code is None:
        time.sleep(0.02)
    return process.exit_code


def test_values_in_the_order_of_validations(tmp_path: Path) -> None:
    assert history(tmp_path, "val/x") == []
    log(tmp_path, 0, "0,9,1.5,", "0,9,,0.1", "1,19,,0.2", "2,29,,nan")
    assert history(tmp_path, "val/x") == [0.1, 0.2]
    assert history(tmp_path, "val/y") == []
    # From the checkpoint of step 15 on: step 19 again, and further. The tenth start comes after the second.
    log(tmp_path, 2, "1,19,,0.2", "2,29,,0.3")
    log(tmp_path, 10, "3,39,,0.4", "4,49,,0.5", "5,5")
    assert history(tmp_path, "val/x") == [0.1, 0.2, 0.3, 0.4, 0.5]
    # The last validation of the selected checkpoint is logged by a trainer that counts from 0.
    log(tmp_path, 11, "4,49,,0.5", "0,0,,0.4")
    assert history(tmp_path, "val/x") == [0.1, 0.2, 0.3, 0.4, 0.5]


def test_the_output_of_a_process_is_logged(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import os, sys; print(os.environ['SAID']); print('error: no'); sys.exit(3)"]
    assert wait(TrialProcess(tmp_path, command, environment={"SAID": "hello"})) == 3
    assert (tmp_path / "train.log").read_text() == "hello\nerror: no\n"
    assert last_error(tmp_path) == "no"
    assert wait(TrialProcess(tmp_path, [sys.executable, "-c", "1 / 0"], environment={})) == 1
    # Our own error lines are what is meant for people.
    assert last_error(tmp_path) == "no"
    (tmp_path / "train.log").write_text("Traceback\nZeroDivisionError: division by zero\n\n")
    assert last_error(tmp_path) == "ZeroDivisionError: division by zero"


def test_stopping_ends_children_too(tmp_path: Path) -> None:
    code = f"import subprocess; child = subprocess.Popen({SLEEP!r}); print(child.pid, flush=True); child.wait()"
    process = TrialProcess(tmp_path, [sys.executable, "-c", code], environment={})
    while not (said := (tmp_path / "train.log").read_text()):
        time.sleep(0.02)
    process.stop()
    assert process.exit_code == -signal.SIGTERM
    assert ended(int(said))


def test_a_process_that_does_not_want_to_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.experiments.sweep.trial._GRACE_SECONDS", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True)"
    process = TrialProcess(tmp_path, [sys.executable, "-c", f"{deaf}; time.sleep(100)"], environment={})
    while "ready" not in (tmp_path / "train.log").read_text():
        time.sleep(0.02)
    process.stop()
    assert process.exit_code == -signal.SIGKILL


def test_the_process_of_a_killed_sweep_is_found_and_ended(tmp_path: Path) -> None:
    assert not end_orphan(tmp_path)
    sweep = f"""
from pathlib import Path
from recsys.experiments.sweep.trial import TrialProcess
TrialProcess(Path({str(tmp_path)!r}), {SLEEP!r}, environment={{}})
"""
    subprocess.run([sys.executable, "-c", sweep], check=True)
    orphan = group(tmp_path)
    assert lives(orphan)
    assert end_orphan(tmp_path)
    assert ended(orphan)
    assert not end_orphan(tmp_path)


def test_an_id_that_no_process_of_ours_has_is_left_alone(tmp_path: Path) -> None:
    other = subprocess.Popen(SLEEP, start_new_session=True)
    (tmp_path / "process.lock").write_text(str(other.pid))
    assert not end_orphan(tmp_path)
    assert other.poll() is None
    other.kill()
    other.wait()


def test_results(tmp_path: Path) -> None:
    assert state(tmp_path) == RunState()
    with pytest.raises(UserError, match="status is 'None', expected selected or finished"):
        result(tmp_path, "val/x")
    (tmp_path / "run.json").write_text('{"status": "selected", "seconds": 2.0}')
    (tmp_path / "metrics.json").write_text('{"val/x": 0.25, "val/y": NaN}')
    assert result(tmp_path, "val/x") == 0.25
    with pytest.raises(UserError, match=r"the run has no 'val/xx'; did you mean 'val/x'"):
        result(tmp_path, "val/xx")
    with pytest.raises(UserError, match="val/y: found nan, expected a finite number"):
        result(tmp_path, "val/y")
    mark_stopped(tmp_path)
    assert state(tmp_path) == RunState(RunStatus.STOPPED, seconds=2.0)


def group(folder: Path) -> int:
    """Id of the process that holds the lock of a folder."""
    while True:
        content = (folder / "process.lock").read_text()
        with (folder / "process.lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if content:
                    return int(content)
        time.sleep(0.02)


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that nobody waits for stays as a zombie.
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def ended(pid: int) -> bool:
    for _ in range(6000):
        if not lives(pid):
            return True
        time.sleep(0.01)
    return False
