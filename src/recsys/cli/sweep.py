"""Run a sweep file of W&B's format on this machine, or show the runs below a folder.

    recsys sweep sweeps/NAME.yaml [dir=DIR] [workers=N] [max_runs=N] [key=value ...] [--config-dir DIR]
    recsys sweep DIR [metric=val/recall@100]

The same command goes on with a sweep that was killed. Overrides (`data=parquet data.root=DIR`) go to every run and win
over the file. The folder is `runs/NAME` unless `dir=` says another.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from recsys.core.errors import UserError
from recsys.experiments.compose import CONFIG_DIR
from recsys.experiments.run_table import best_first, print_runs, read_runs
from recsys.experiments.sweep.file import read_sweep
from recsys.experiments.sweep.runner import report, run_sweep

INTERRUPTED = 130
OWN = ("dir", "workers", "max_runs")


def main(arguments: list[str]) -> int:
    """Run the sweep or show the runs; the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 1
    try:
        place, *words = arguments
        return _show(Path(place), words) if Path(place).is_dir() else _run(Path(place), words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return INTERRUPTED


def _run(file: Path, words: list[str]) -> int:
    own: dict[str, str] = {}
    overrides: list[str] = []
    options: list[str] = []
    rest = iter(words)
    for word in rest:
        key, equals, value = word.partition("=")
        if key in CONFIG_DIR:
            options += [word] if equals else [word, next(rest, "")]
        elif key in OWN:
            own[key] = value
        elif word.startswith("-"):
            raise UserError(f"{word}: not an option of a sweep; expected {', '.join(OWN)}, overrides and --config-dir")
        else:
            overrides.append(word)
    sweep = read_sweep(file).with_more(overrides, options)
    folder = Path(own.get("dir", f"runs/{file.stem}"))
    console = Console()
    study = run_sweep(sweep, folder, _count(own, "max_runs"), _count(own, "workers") or 1, console)
    report(study, folder, console)
    statuses = [record.status for record in study.records()]
    if "done" not in statuses:
        raise UserError(f"{folder}: none of {len(statuses)} runs came to a result; see {folder}/NUMBER/train.log")
    return 0


def _count(own: dict[str, str], name: str) -> int | None:
    value = own.get(name)
    if value is None:
        return None
    if not value.isdigit() or int(value) < 1:
        raise UserError(f"{name}: found '{value}', expected a whole number of at least 1")
    return int(value)


def _show(folder: Path, words: list[str]) -> int:
    metric = "val/recall@100"
    for word in words:
        key, _, value = word.partition("=")
        if key != "metric":
            raise UserError(f"{word}: expected metric=NAME; a folder shows its runs, a .yaml file is run")
        metric = value
    rows = read_runs(folder)
    if not rows:
        raise UserError(f"{folder}: holds no run")
    ranked = best_first(rows, metric)
    print_runs([*ranked, *(row for row in rows if row not in ranked)], [metric])
    return 0


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # Ends like Ctrl-C: with the processes of its runs.
    signal.signal(signal.SIGTERM, _interrupt)
    raise SystemExit(main(sys.argv[1:]))
