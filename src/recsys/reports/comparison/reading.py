"""What a reader names, local folders and W&B addresses, as runs that can be compared."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from recsys.core.errors import UserError
from recsys.reports.comparison.measured import Measured, read_folder, require_same_test, unique_names
from recsys.reports.comparison.online import PREFIX, fetch_run, read_wandb


def run_folder(name: str | Path) -> Path:
    """The folder of one run; that of `wandb:ENTITY/PROJECT/ID` is fetched.

    Raises:
        UserError: W&B is offline, or does not have the run.
    """
    return fetch_run(str(name), _cache()) if str(name).startswith(PREFIX) else Path(name)


def read_runs(names: Sequence[str | Path]) -> list[Measured]:
    """Runs of the same test, in the order given, with names that differ.

    Args:
        names: run folders, folders of runs (a sweep), `wandb:ENTITY/PROJECT`, `wandb:ENTITY/PROJECT/ID`.

    Raises:
        UserError: what is named is no finished run, or the runs were tested on different things.
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
