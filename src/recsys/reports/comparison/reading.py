"""Reads the runs that a command names: local folders and W&B addresses."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from recsys.core.errors import UserError
from recsys.reports.comparison.measured import MeasuredRun, read_folder, require_same_test, unique_names
from recsys.reports.comparison.online import PREFIX, fetch_run, read_wandb


def run_folder(name: str | Path) -> Path:
    """Return the folder of one run; a run named `wandb:ENTITY/PROJECT/ID` is downloaded.

    Raises:
        UserError: If W&B is offline, or does not have the run.
    """
    return fetch_run(str(name), _cache()) if str(name).startswith(PREFIX) else Path(name)


def read_runs(names: Sequence[str | Path]) -> list[MeasuredRun]:
    """Read runs of the same test, in the order given, with distinct names.

    Args:
        names: run folders, folders of runs (a sweep), `wandb:ENTITY/PROJECT`, `wandb:ENTITY/PROJECT/ID`.

    Raises:
        UserError: If a name is not a finished run, or the runs were not tested on the same data in the same way.
    """
    runs = [
        run
        for name in map(str, names)
        for run in (read_wandb(name, _cache()) if name.startswith(PREFIX) else read_folder(Path(name)))
    ]
    if not runs:
        raise UserError("no runs given; expected run folders, folders of runs or wandb:ENTITY/PROJECT")
    runs = unique_names(runs)
    require_same_test(runs)
    return runs


def _cache() -> Path:
    return Path(os.environ.get("RECSYS_CACHE", ".cache/recsys"))
