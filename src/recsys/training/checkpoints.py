"""Checkpoints from which a killed run resumes with the same result as an uninterrupted run."""

from __future__ import annotations

import errno
import re
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping

from recsys.core.io import atomic_file
from recsys.training.sharded_checkpoints import KEY, remove_unused


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` between the steps of an epoch and at its end.

    It writes nothing between the last step of an epoch and its validation, because Lightning would then resume after
    the validation without running it.

    Args:
        dirpath: folder of the checkpoint.
        every_n_train_steps: steps between two checkpoints; None for no limit.
        train_time_interval: time between two checkpoints; None for no limit.
    """

    def __init__(
        self,
        dirpath: Path,
        *,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
    ) -> None:
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps: found {every_n_train_steps}, expected at least 1, or null")
        self.path = Path(dirpath) / "last.ckpt"
        self.every_n_train_steps, self.train_time_interval = every_n_train_steps, train_time_interval
        self._step, self._time = 0, time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Start to count steps and time."""
        self._step, self._time = trainer.global_step, time.monotonic()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Write the checkpoint if it is due and this is not the last step of the epoch."""
        if not trainer.is_last_batch:
            self._write(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Write the checkpoint if it is due."""
        self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        due = self.every_n_train_steps is not None and trainer.global_step - self._step >= self.every_n_train_steps
        if self.train_time_interval is not None:
            # All processes must save together, although their clocks differ.
            late = time.monotonic() - self._time >= self.train_time_interval.total_seconds()
            due |= trainer.strategy.broadcast(late)
        if due:
            self._step, self._time = trainer.global_step, time.monotonic()
            trainer.save_checkpoint(self.path)


class KeepEarlyStopped(L.Callback):
    """Keeps a resumed run from training another epoch if early stopping had ended it before."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Stop the trainer if the patience of early stopping is used up."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and callback.wait_count >= max(callback.patience, 1):
                trainer.should_stop = True


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints with `recsys.core.io.atomic_file`, so that a killed run leaves no partial file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: ARG002
        """Write `path`, and its folder if it does not exist."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as aside:
            try:
                torch.save(checkpoint, aside)
            except RuntimeError as error:
                # The writer of torch reports a full disk as a wrong position in the file.
                if not re.search("PytorchStreamWriter|inline_container", str(error)):
                    raise
                raise OSError(
                    errno.ENOSPC,
                    "no space left for the checkpoint; free some and type the same command again, which continues from "
                    "the checkpoint before",
                    str(path),
                ) from error
        if KEY in checkpoint:
            remove_unused(path.parents[1] if path.parent.name == "refit" else path.parent)
