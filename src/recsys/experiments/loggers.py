"""Loggers of a run: CSV files always, W&B if a project is set, and the Lightning loggers of the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from recsys.core import distributed
from recsys.core.errors import UserError
from recsys.core.instantiate import instantiate
from recsys.experiments.assembly.objects import complete
from recsys.experiments.run_folder import CONFIG, PER_USER
from recsys.experiments.wandb_mirror import wandb_mode, wandb_online


def build_loggers(config: DictConfig, run: Path) -> list[Logger]:
    """Return the loggers of one start of a run.

    Every start has a CSV file of its own, `logs/NUMBER/metrics.csv`. Only the first process has other loggers.

    Args:
        config: configuration of the run. Every node of `config.logger` with a `_target_` is a Lightning logger; if it
            also has `_partial_: true`, it gets the run folder as `save_dir`.
        run: folder of the run.

    Raises:
        UserError: If a node is not a Lightning logger, or has no name.
    """
    if "_target_" in config.logger:
        raise UserError(
            "logger._target_: expected below a name, logger.NAME._target_, in an option with defaults: [csv]"
        )
    starts = len(list((run / "logs").glob("*"))) if (run / "logs").exists() else 0
    loggers: list[Logger] = [CSVLogger(run, name="logs", version=str(starts))]
    if not distributed.is_first():
        return loggers
    settings: Any = OmegaConf.to_container(config, resolve=True)
    if config.logger.project is not None:
        logger = WandbLogger(
            project=config.logger.project,
            entity=config.logger.entity,
            group=config.logger.group,
            tags=list(config.logger.tags),
            name=run.name,
            save_dir=run,
            mode=wandb_mode(),
        )
        logger.experiment.config.update(settings, allow_val_change=True)
        loggers.append(logger)
    for name, node in config.logger.items():
        if isinstance(node, DictConfig) and "_target_" in node:
            other = instantiate(node)
            other = complete(other, save_dir=str(run)) if node.get("_partial_") else other
            if not isinstance(other, Logger):
                raise UserError(f"logger.{name}: found {node['_target_']}, expected a Lightning logger")
            other.log_hyperparams(settings)
            loggers.append(other)
    return loggers


def log_examples(loggers: list[Logger], examples: Callable[[], Mapping[str, list[Any]]]) -> None:
    """Log a table of examples to W&B; it is computed only if W&B is used."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            table = examples()
            rows = [list(row) for row in zip(*table.values(), strict=True)]
            logger.log_table("examples", columns=list(table), data=rows)


def log_summary(loggers: list[Logger], values: Mapping[str, Any]) -> None:
    """Log values that describe the whole run to W&B's summary."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(dict(values))


def log_checkpoint(loggers: list[Logger], run: Path, *, fingerprint: str) -> None:
    """Upload checkpoint, configuration and metrics of users as a W&B artifact; nothing happens offline."""
    import wandb

    for logger in loggers:
        if isinstance(logger, WandbLogger) and wandb_online():
            artifact = wandb.Artifact(f"model-{logger.experiment.id}", "model", metadata={"fingerprint": fingerprint})
            for name in ("checkpoints/best.ckpt", CONFIG, PER_USER):
                artifact.add_file(str(run / name))
            logger.experiment.log_artifact(artifact)


def close_loggers(loggers: list[Logger]) -> None:
    """Finish W&B runs."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
