"""Runs commands of this repository, each in a fresh fork of one process that has imported what they need.

A command is `recsys SUBCOMMAND ...`, or a file at the root of the repository with its arguments.
That process lives as long as the tests. It reads a line for each list of jobs, `{"jobs": [{"args": [...],
"kill": [ATTRIBUTE, CALLS] | null, "log": FILE}, ...], "environment": {...}}`, and answers with the list of exit codes
(minus the signal's number for a killed one).

`kill` ends the command on a call of a public function, such as
["recsys.training.module:RetrievalModule.training_step", 7], or just before a file gets its name, such as
["file:RUN/metrics.json", 1]: by SIGKILL, or by the signal that follows.
["step:judge", "before"] and ["step:judge", "after"] end it around the moment when the state of a cycle says that the
next step is `judge`; "none" means that the cycle is cleared.
`set`: values of attributes, such as {"recsys.publishing.batch_recommend:PART": 20}.
`snapshot`: [PLACE, COPY] copies what a job left; `copy`: what it finds. `folder`: where the command runs.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]


def run_all(jobs: Sequence[dict[str, Any]], folder: Path) -> list[tuple[int, str]]:
    """Exit code and output of each job."""
    logs = [folder / f"job{number}.log" for number in range(len(jobs))]
    described = [
        {"kill": None, "set": {}, "copy": None, "snapshot": None, "folder": None} | job | {"log": str(log)}
        for job, log in zip(jobs, logs, strict=True)
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps({"jobs": described, "environment": environment}) + "\n")
    server.stdin.flush()
    codes = json.loads(server.stdout.readline())
    return [(code, log.read_text()) for code, log in zip(codes, logs, strict=True)]


@functools.cache
def _server() -> subprocess.Popen[str]:
    # It ends with this process, which closes its input.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    return subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def _kill_on_call(attribute: str, calls: Any, sent: str = "SIGKILL") -> None:
    module, _, path = attribute.partition(":")
    if module == "file":
        _kill_on_rename(path, calls, sent)
        return
    if module == "step":
        _kill_at_step(path, str(calls))
        return
    owner, name = _owner(attribute)
    original, left = getattr(owner, name), [calls]

    def counted(*arguments: Any, **settings: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.Signals[sent])
        return original(*arguments, **settings)

    setattr(owner, name, counted)


def _owner(attribute: str) -> tuple[Any, str]:
    """Return the object that has the attribute MODULE:PATH, and the attribute's name."""
    module, _, path = attribute.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    return owner, name


def _kill_on_rename(end: str, times: int, sent: str) -> None:
    """End the process when a file is about to be renamed to a path with this end, for the n-th time."""
    replace, left = os.replace, [times]

    def counted(source: Any, target: Any, **settings: Any) -> None:
        is_meant = f"/{target}".endswith(f"/{end}")
        left[0] -= is_meant
        if left[0] == 0 and is_meant:
            os.kill(os.getpid(), signal.Signals[sent])
        replace(source, target, **settings)

    os.replace = counted


def _kill_at_step(step: str, when: str) -> None:
    """End the process `before` or `after` `state.json` names a step as the next one of the cycle, or `none`."""
    replace = os.replace

    def watched(source: Any, target: Any, **settings: Any) -> None:
        is_it = Path(target).name == "state.json" and _next_step(source) == step
        if is_it and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target, **settings)
        if is_it:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = watched


def _next_step(state: Any) -> str:
    current = json.loads(Path(state).read_text())["current"]
    return "none" if current is None else str(current["step"])


def _run(job: dict[str, Any], environment: dict[str, str]) -> int:
    _copy(job["copy"])
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        _copy(job["snapshot"])
        return os.waitstatus_to_exitcode(status)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        os.environ.clear()
        os.environ.update(environment)
        # A new interpreter would do this.
        sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
        importlib.import_module("exports").export_once()
        for attribute, value in job["set"].items():
            setattr(*_owner(attribute), value)
        if job["kill"]:
            _kill_on_call(*job["kill"])
        if job["folder"]:
            os.chdir(job["folder"])
        sys.argv = list(job["args"])
        if job["args"][0] == "recsys":
            importlib.import_module("recsys.cli.main").main()
        else:
            runpy.run_path(str(REPOSITORY / job["args"][0]), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _copy(places: list[str] | None) -> None:
    if places is None:
        return
    source, target = map(Path, places)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def main() -> None:
    os.chdir(REPOSITORY)
    yaml.SafeLoader = yaml.CSafeLoader  # type: ignore[misc]
    for name in ("experiments.train", "experiments.run_summary", "operations.cycle.cycle", "publishing.promote"):
        importlib.import_module(f"recsys.{name}")
    # Every fork would compose this again, and import what composing and preparation import late.
    for name in ("duckdb", "hydra.main", "ibis.backends.duckdb", "pandas", "pyarrow.dataset"):
        importlib.import_module(name)
    conf_files = importlib.import_module("recsys.experiments.conf_files")
    for name in ("train", "index", "recommend", "retrain"):
        conf_files.usual(name)
    importlib.import_module("exports").read_operators()
    # All tensors are on the processor; Lightning looks for others in all parts of each value that is logged.
    logged = importlib.import_module("lightning.pytorch.trainer.connectors.logger_connector.result")
    logged._ResultMetric.to = lambda metric, *_, **__: metric
    gc.set_threshold(50_000, 10, 10)
    # A fork would visit, and so copy, all that is imported here.
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        # Forks would repeat output that is still in the buffer.
        sys.stdout.flush()
        print(json.dumps([_run(job, asked["environment"]) for job in asked["jobs"]]), flush=True)


if __name__ == "__main__":
    main()
