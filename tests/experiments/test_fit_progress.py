"""Lines of a training where there is no terminal."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from recsys.experiments.fit_progress import FitProgress

METRIC = "val/ndcg@10"


class Steps(L.LightningModule):
    """Losses of 2, 1, 1/2 by epoch, and the scores of its validations. A batch takes `seconds`."""

    def __init__(self, scores: list[float], seconds: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.scores, self.seconds, self.clock, self.num_targets = scores, seconds, 0.0, 0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        self.clock += self.seconds
        self.num_targets += 100
        return 2.0 * 0.5**self.current_epoch + 0 * self.weight.sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.clock += self.seconds
        self.log(METRIC, self.scores[self.current_epoch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.fixture
def fit(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Train for four batches an epoch, validate on four, and return the lines."""
    caplog.set_level(logging.INFO, "recsys")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

    def fit(
        scores: list[float], *callbacks: L.Callback, seconds: int = 1, resume: Path | None = None, **settings: Any
    ) -> list[str]:
        module = Steps(scores, seconds)
        for place in ("core.progress", "experiments.fit_progress"):
            monkeypatch.setattr(f"recsys.{place}.now", lambda: module.clock)
        batches = DataLoader(TensorDataset(torch.zeros(8, 1)), batch_size=2)
        settings = {"accelerator": "cpu", "max_epochs": len(scores), "num_sanity_val_steps": 0} | settings
        settings |= {"logger": False, "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks)}
        shown = [FitProgress(METRIC), *callbacks]
        caplog.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = L.Trainer(callbacks=shown, default_root_dir=tmp_path, enable_model_summary=False, **settings)
            trainer.fit(module, batches, batches, ckpt_path=resume)
        return caplog.messages

    return fit


Fit = Callable[..., list[str]]


def test_a_line_for_each_epoch(fit: Fit) -> None:
    assert fit([0.1, 0.3, 0.2]) == [
        "training: epoch 1 of 3, loss 2.0000, val/ndcg@10 0.1000 (best 0.1000 in epoch 1), 100 targets/s, 16 s left",
        "training: epoch 2 of 3, loss 1.0000, val/ndcg@10 0.3000 (best 0.3000 in epoch 2), 100 targets/s, 8 s left",
        "training: epoch 3 of 3, loss 0.5000, val/ndcg@10 0.2000 (best 0.3000 in epoch 2), 100 targets/s",
    ]


def test_the_number_of_epochs_follows_the_limit_that_comes_first(fit: Fit) -> None:
    lines = fit([0.1] * 3, max_steps=10, max_epochs=-1, limit_val_batches=0)
    assert [line.partition(",")[0] for line in lines] == [f"training: epoch {number} of 3" for number in (1, 2, 3)]


def test_patience_and_time_bound_the_time_left(fit: Fit) -> None:
    patient = EarlyStopping(METRIC, mode="max", patience=9)
    assert fit([0.1, 0.1], patient)[0].endswith("100 targets/s, at most 8 s left")
    timed = fit([0.1, 0.1], seconds=1000, max_time={"seconds": 3600}, max_epochs=2)
    # The run would take hours; the limit runs by the clock of the machine.
    assert re.search(r"2 of 8, .* (59 min \d+ s|1 h 0 min) left", timed[1]), timed[1]


def test_steps_of_long_epochs_have_lines_too(fit: Fit) -> None:
    assert fit([0.1], seconds=31) == [
        "training: epoch 1 of 1, step 2 of 4, loss 2.0000, 3 targets/s, 1 min 2 s left",
        "training: epoch 1 of 1, step 4 of 4, loss 2.0000, 3 targets/s",
        "validation: 2 of 4 batches, 1 min 2 s left",
        "validation: 4 of 4 batches, 0 s left",
        "validation: 4 batches in 2 min 4 s",
        "training: epoch 1 of 1, loss 2.0000, val/ndcg@10 0.1000 (best 0.1000 in epoch 1), 3 targets/s",
        "training: 4 min 8 s",
    ]


def test_the_best_epoch_survives_a_kill(fit: Fit, tmp_path: Path) -> None:
    fit([0.5, 0.1], ModelCheckpoint(tmp_path, save_last=True))
    (line,) = fit([0.5, 0.1, 0.2], resume=tmp_path / "last.ckpt")
    assert line.startswith("training: epoch 3 of 3, loss 0.5000, val/ndcg@10 0.2000 (best 0.5000 in epoch 1), ")


def test_a_run_that_was_killed_within_an_epoch_continues(fit: Fit, tmp_path: Path) -> None:
    checkpoints = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    fit([0.5, 0.1], checkpoints)
    first, second = fit([0.5, 0.1], checkpoints, resume=tmp_path / "step=2.ckpt")
    # Lightning begins no epoch here; loss and speed are those of the steps since the start.
    assert first.startswith(
        "training: epoch 1 of 2, loss 2.0000, val/ndcg@10 0.5000 (best 0.5000 in epoch 1), 100 targe"
    )
    assert second.startswith(
        "training: epoch 2 of 2, loss 1.0000, val/ndcg@10 0.1000 (best 0.5000 in epoch 1), 100 targe"
    )
