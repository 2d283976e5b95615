"""Removes what old cycles trained. Their verdicts and metrics stay in the history of cycles, releases in the store."""

from __future__ import annotations

import shutil
from pathlib import Path

from recsys.operations.cycle.plan import Plan
from recsys.release.manifest import Manifest


def prune(plan: Plan) -> list[Path]:
    """Remove the run folders of all but the newest cycles; what a kill left of one goes the next time.

    The run of a release that an alias points at stays, whatever its age: training begins from it, it is what a
    rollback goes back to, and where a version is traced to.

    Returns:
        What was removed.

    Raises:
        UserError: a release does not say which run it is of; nothing is removed then.
    """
    keep = plan.config.keep
    if keep is None:
        return []
    folders = [path for path in plan.folder.glob("cycles/*") if path.name.isdecimal()]
    old = sorted(folders, key=lambda path: int(path.name))[: max(0, len(folders) - keep)]
    runs = [path / "run" for path in old if (path / "run").exists()]
    if not runs:
        return []
    store = plan.store
    needed = {Path(Manifest.load(store.root / version).run).resolve() for version in store.aliases().values()}
    removed = [path for path in runs if path.resolve() not in needed]
    for path in removed:
        shutil.rmtree(path)
    return removed
