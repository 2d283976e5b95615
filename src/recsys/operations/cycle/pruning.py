"""Removes run folders of old cycles. Their metrics stay in the history, and their releases stay in the store."""

from __future__ import annotations

import shutil
from pathlib import Path

from recsys.operations.cycle.plan import CyclePlan
from recsys.operations.cycle.state import CycleStateFile
from recsys.operations.gates.staging import STAGED
from recsys.operations.gates.verdict import VERDICT
from recsys.release.collections import drop_collections
from recsys.release.manifest import Manifest


def prune(plan: CyclePlan) -> list[Path]:
    """Remove the run folders of all but the newest `keep` cycles.

    The run of a release with an alias is always kept: training starts from it, a rollback returns to it, and `recsys
    lineage` reads it. So is the run of a stopped cycle that can be accepted. Verdicts move into the cycle's folder.

    Returns:
        The removed folders.

    Raises:
        UserError: If the manifest of such a release cannot be read; then nothing is removed.
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
    needed |= {plan.run_folder(stop).resolve() for stop in CycleStateFile(plan.folder).stops()}
    removed = [path for path in runs if path.resolve() not in needed]
    for path in removed:
        for file in (path / VERDICT, path / "verdict.html"):
            if file.exists():
                file.replace(path.parent / file.name)
        drop_collections(path / STAGED)
        shutil.rmtree(path)
    return removed
