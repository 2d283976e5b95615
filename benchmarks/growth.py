"""Growth of time and memory with the number of events or items, stage by stage, and the plans that follow from it.

    python benchmarks/growth.py --stages preparation index --sizes 1000000 4000000 --work DIR
    python benchmarks/growth.py --page docs/how-far.md

The first form measures, and appends a JSON line for each measurement to `--file`; what is there already is skipped.
The second form fits laws to all lines and writes them, the tables and the plans between the markers of the page. Each
measurement runs in a process of its own, after another process has made its data in `--work`, which is emptied again.
`cpu_s` counts user and system time, `peak_gib` is the largest resident set of one process, pages of mapped files
included. A process that takes longer than `--limit` seconds is stopped, and the line says so.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from growth_stages import HERE, STAGES, Values


def run(step: str, stage: str, size: int, kind: str, work: Path, limit: float) -> Values:
    """Run a step in a process of its own; return its seconds and its memory, or why it did not end."""
    words = [sys.executable, __file__, "--child", step, stage, str(size), kind, str(work)]
    begin = time.perf_counter()
    process = subprocess.Popen(words, process_group=0, stdout=sys.stderr)
    timer = threading.Timer(limit, os.killpg, (process.pid, signal.SIGKILL))
    timer.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        why = f"not done after {limit:.0f} s" if wall >= limit else f"exit status {process.returncode}"
        return {"stopped": f"{step}: {why}"}
    return {"wall_s": wall, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_gib": usage.ru_maxrss / 2**20}


def child(step: str, stage: str, size: int, kind: str, work: Path) -> None:
    chosen = STAGES[stage]
    if step == "measure":
        (work / "found.json").write_text(json.dumps(chosen.measure(size, kind, work)))
    elif chosen.make:
        chosen.make(size, work)


@contextmanager
def scratch(work: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=work) as folder:
        yield Path(folder).resolve()


def measure(stage: str, size: int, kinds: list[str], given: argparse.Namespace) -> Iterator[Values]:
    """Yield a line for each kind."""
    with scratch(given.work) as folder:
        made = run("make", stage, size, kinds[0], folder, given.limit)
        for kind in kinds:
            line: Values = {"stage": stage, "size": size, "kind": kind}
            found = made if "stopped" in made else run("measure", stage, size, kind, folder, given.limit)
            if "stopped" not in found:
                found |= json.loads((folder / "found.json").read_text())
                found |= {f"make_{name}": value for name, value in made.items()}
            yield line | {name: round(v, 4) if isinstance(v, float) else v for name, v in found.items()}


def read(file: Path) -> list[Values]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=[])
    parser.add_argument("--sizes", nargs="+", type=int, help="default: those of each stage")
    parser.add_argument("--kinds", nargs="+", help="of preparation, index and divided; default: all")
    parser.add_argument("--file", type=Path, default=HERE / "growth.jsonl")
    parser.add_argument("--work", type=Path, help="folder of temporary files")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds of one process")
    parser.add_argument("--page", type=Path, help="page to write the tables to; without, they are printed")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        step, stage, size, kind, work = given.child
        child(step, stage, int(size), kind, Path(work))
        return
    for stage in given.stages:
        for size in given.sizes or STAGES[stage].sizes:
            known = {(line["stage"], line["size"], line["kind"]) for line in read(given.file)}
            kinds = [kind for kind in given.kinds or STAGES[stage].kinds if (stage, size, kind) not in known]
            for line in measure(stage, size, kinds, given) if kinds else ():
                with given.file.open("a") as opened:
                    opened.write(json.dumps(line) + "\n")
                print(json.dumps(line), flush=True)
    if given.page or not given.stages:
        from growth_report import render, replace

        text = render(read(given.file))
        if given.page:
            replace(given.page, text)
        else:
            print("\n\n".join(text.values()))


if __name__ == "__main__":
    main()
