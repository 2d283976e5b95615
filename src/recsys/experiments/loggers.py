"""Loggers of a run: CSV files always, W&B if a project is set, and the Lightning loggers of the configuration."""

from __future__ import annotations

import inspect
import os
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
from recsys.experiments.run_names import group_of, name_of
from recsys.experiments.wandb_mirror import wandb_mode, wandb_online

# Extras of the package that loggers need.
OPTIONAL = ("tensorboard", "mlflow")


def build_loggers(config: DictConfig, run: Path) -> list[Logger]:
    """Return the loggers of one start of a run.

    Every start has a CSV file of its own, `logs/NUMBER/metrics.csv`. Only the first process has other loggers.

    Args:
        config: configuration of the run. Every node of `config.logger` with a `_target_` is a Lightning logger; if it
            also has `_partial_: true`, it gets the run folder as `save_dir`, and the name and group of the run.
        run: folder of the run.

    Raises:
        UserError: If a node is not a Lightning logger, has no name, or needs a package that is not installed.
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
    name = config.logger.get("name") or name_of(run)
    group = config.logger.group or group_of(run)
    if config.logger.project is not None:
        logger = WandbLogger(
            project=config.logger.project,
            entity=config.logger.entity,
            # Without a group W&B takes that of its environment, which a sweep sets.
            group=None if "WANDB_RUN_GROUP" in os.environ and config.logger.group is None else group,
            tags=list(config.logger.tags),
            name=name,
            save_dir=run,
            mode=wandb_mode(),
        )
        logger.experiment.config.update(settings, allow_val_change=True)
        loggers.append(logger)
    usual = {"save_dir": str(run), "name": name, "run_name": name, "version": name, "group": group}
    for key, node in config.logger.items():
        if isinstance(node, DictConfig) and "_target_" in node:
            loggers.append(_build(str(key), node, usual=usual, settings=settings))
    return loggers


def _build(key: str, node: DictConfig, *, usual: Mapping[str, str | None], settings: dict[str, Any]) -> Logger:
    """Return the logger of a node. A partial one gets the usual arguments that its class takes and the node lacks."""
    place, target = f"logger.{key}", node["_target_"]
    try:
        other = instantiate(node)
        if node.get("_partial_"):
            taken = inspect.signature(other.func).parameters.keys() - {
                name for name, v in node.items() if v is not None
            }
            other = complete(other, **{name: value for name, value in usual.items() if name in taken})
        if not isinstance(other, Logger):
            raise UserError(f"{place}: found {target}, expected a Lightning logger")
        other.log_hyperparams(settings)
    except ModuleNotFoundError as error:
        package = next((name for name in OPTIONAL if name in str(target).lower()), None)
        install = f"pip install 'recsys[{package}]'" if package else "install it with pip"
        raise UserError(f"{place}: {target} needs a package that is not installed ({error}): {install}") from error
    except Exception as error:
        # Loggers raise errors of their own kinds, for example about the address of a server.
        raise error if isinstance(error, UserError) else UserError(f"{place}: {target}: {error}") from error
    return other


def log_examples(loggers: list[Logger], examples: Callable[[], Mapping[str, list[Any]]]) -> None:
    """Log a table of examples to W&B; it is computed only if W&B is used."""
    for logger in _wandb(loggers):
        table = examples()
        rows = [list(row) for row in zip(*table.values(), strict=True)]
        logger.log_table("examples", columns=list(table), data=rows)


def log_summary(loggers: list[Logger], values: Mapping[str, Any]) -> None:
    """Log values that describe the whole run to W&B's summary."""
    for logger in _wandb(loggers):
        logger.experiment.summary.update(dict(values))


def log_checkpoint(loggers: list[Logger], run: Path, *, fingerprint: str) -> None:
    """Upload checkpoint, configuration and metrics of users as a W&B artifact; nothing happens offline."""
    for logger in _wandb(loggers) if wandb_online() else ():
        import wandb

        artifact = wandb.Artifact(f"model-{logger.experiment.id}", "model", metadata={"fingerprint": fingerprint})
        for name in ("checkpoints/best.ckpt", CONFIG, PER_USER):
            artifact.add_file(str(run / name))
        logger.experiment.log_artifact(artifact)


def close_loggers(loggers: list[Logger]) -> None:
    """Finish W&B runs."""
    for logger in _wandb(loggers):
        logger.experiment.finish()


def _wandb(loggers: list[Logger]) -> list[WandbLogger]:
    return [logger for logger in loggers if isinstance(logger, WandbLogger)]
