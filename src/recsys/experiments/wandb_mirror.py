"""Copies of releases and verdicts in W&B. The local files remain authoritative. Imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

# Entries of the manifest that W&B shows beside the artifact, so that the lineage of a release can be read there.
LINEAGE = ("pair", "run", "git_commit", "dataset_fingerprint", "data")


def wandb_online() -> bool:
    """Return whether W&B has a key and is not switched off."""
    if os.environ.get("WANDB_MODE", "online") != "online":
        return False
    import wandb

    return bool(wandb.login(prompt=False, verify=False))


def wandb_mode() -> Literal["online", "offline"]:
    """Return the mode for a new W&B run, and silence the client, whose messages would hide the result of a run."""
    os.environ.setdefault("WANDB_SILENT", "true")
    return "online" if wandb_online() else "offline"


def mirror_release(
    project: str | None, folder: Path, *, model: str, alias: str | None, registry: str | None = None
) -> None:
    """Upload a published release as one W&B artifact; nothing happens offline.

    Args:
        project: project of W&B; nothing happens if it is None.
        folder: folder of the release.
        model: name of the model.
        alias: alias of the store that points at the release.
        registry: collection that the artifact is linked to, such as `wandb-registry-model/two_tower`.
    """
    if project is None or not wandb_online():
        return
    import wandb

    with wandb.init(project=project, job_type="release") as run:
        manifest = json.loads((folder / "manifest.json").read_text())
        metadata = {"version": folder.name} | {name: manifest[name] for name in LINEAGE if name in manifest}
        artifact = wandb.Artifact(f"release-{model}", "release", metadata=metadata)
        artifact.add_dir(str(folder))
        aliases = [folder.name, *([alias] if alias else [])]
        run.log_artifact(artifact, aliases=aliases)
        if registry is not None:
            run.link_artifact(artifact, registry, aliases)


def log_verdict(
    project: str | None,
    run: Path,
    *,
    values: Mapping[str, Any],
    columns: Sequence[str | int],
    rows: list[list[Any]],
) -> None:
    """Log the verdict of the gates as a W&B run of its own, with a table of outcomes.

    Args:
        project: project of W&B; nothing happens if it is None.
        run: folder of the run that was judged.
        values: values in the summary of the W&B run.
        columns: column heads of the table.
        rows: cells of the table.
    """
    if project is None:
        return
    import wandb

    mode = wandb_mode()
    with wandb.init(project=project, job_type="gates", name=f"gates {run.name}", dir=run, mode=mode) as judged:
        judged.log({"gates": wandb.Table(columns=list(columns), data=rows)})
        judged.summary.update(dict(values))
