"""What a run leaves behind: its folder, CSV and W&B logs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from recsys.core import distributed


def build_loggers(config: DictConfig, run: Path) -> list[Logger]:
    """CSV always (a file for each start of the run); W&B too, offline where there is no key."""
    starts = len(list((run / "logs").glob("*"))) if (run / "logs").exists() else 0
    loggers: list[Logger] = [CSVLogger(run, name="logs", version=str(starts))]
    if config.logger.project is not None and distributed.is_first():
        # Chatter of the client would drown the table that a run ends with.
        os.environ.setdefault("WANDB_SILENT", "true")
        online = wandb_online()
        logger = WandbLogger(
            project=config.logger.project,
            entity=config.logger.entity,
            group=config.logger.group,
            tags=list(config.logger.tags),
            name=run.name,
            save_dir=run,
            mode="online" if online else "offline",
        )
        logger.experiment.config.update(OmegaConf.to_container(config, resolve=True), allow_val_change=True)
        loggers.append(logger)
    return loggers


def wandb_online() -> bool:
    """Whether W&B has a key and is not switched off."""
    if os.environ.get("WANDB_MODE", "online") != "online":
        return False
    import wandb

    return bool(wandb.login(prompt=False, verify=False))


def log_examples(loggers: list[Logger], examples: Callable[[], Mapping[str, list[Any]]]) -> None:
    """A table of examples to W&B; computed only where it is wanted."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            table = examples()
            logger.log_table(
                "examples", columns=list(table), data=[list(row) for row in zip(*table.values(), strict=True)]
            )


def log_summary(loggers: list[Logger], values: Mapping[str, Any]) -> None:
    """Values that describe the whole run, to W&B's summary."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(dict(values))


def log_checkpoint(loggers: list[Logger], run: Path, fingerprint: str) -> None:
    """Checkpoint, configuration and users' metrics as a W&B artifact, when online: the local file is the truth."""
    import wandb

    for logger in loggers:
        if isinstance(logger, WandbLogger) and wandb_online():
            artifact = wandb.Artifact(f"model-{logger.experiment.id}", "model", metadata={"fingerprint": fingerprint})
            artifact.add_file(str(run / "checkpoints/best.ckpt"))
            artifact.add_file(str(run / "config.yaml"))
            artifact.add_file(str(run / "per_user.parquet"))
            logger.experiment.log_artifact(artifact)


# Of a manifest: what W&B shows beside the artifact, so that its lineage can be read there too.
LINEAGE = ("pair", "run", "git_commit", "dataset_fingerprint", "data")


def mirror_release(
    project: str | None, folder: Path, model: str, alias: str | None, registry: str | None = None
) -> None:
    """A published release, both halves together, as one W&B artifact when online: the local folder is the truth.

    Args:
        project: of W&B; None for nothing.
        folder: of the release.
        model: name of the model.
        alias: that points at the release.
        registry: collection that the artifact is linked to as well, such as `wandb-registry-model/two_tower`.
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
    project: str | None, run: Path, values: Mapping[str, Any], columns: Sequence[str | int], rows: list[list[Any]]
) -> None:
    """What the gates found, as a W&B run of its own: a table of outcomes, and how it ended.

    Args:
        project: of W&B; None for nothing.
        run: folder of the run that was judged.
        values: for the summary.
        columns: heads of the table.
        rows: cells.
    """
    if project is None:
        return
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    mode: Literal["online", "offline"] = "online" if wandb_online() else "offline"
    with wandb.init(project=project, job_type="gates", name=f"gates {run.name}", dir=run, mode=mode) as judged:
        judged.log({"gates": wandb.Table(columns=list(columns), data=rows)})
        judged.summary.update(dict(values))


def close(loggers: list[Logger]) -> None:
    """Finish W&B runs."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def git_commit() -> str | None:
    """Commit of the code that runs, with `+` for uncommitted changes; None outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
