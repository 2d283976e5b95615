"""Precision of matrix products in training steps."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from lightning.pytorch.callbacks import Callback

Precision = Literal["highest", "high", "medium"]


class MatmulPrecision(Callback):
    """Precision of float32 matrix products in training steps, see `torch.set_float32_matmul_precision`.

    On a GPU and on CPUs with AMX lower precisions use faster units. On other CPUs PyTorch takes the kernels of oneDNN
    for `medium`, which keep float32 and are up to three times as fast as its usual ones on AMD. Evaluation always uses
    `highest`, so that metrics equal those of a later recommendation.

    Args:
        precision: `highest`, `high` or `medium`.
    """

    def __init__(self, precision: Precision = "medium") -> None:
        if precision not in get_args(Precision):
            raise ValueError(f"precision: found '{precision}', expected 'highest', 'high' or 'medium'")
        self.precision = precision

    def on_train_batch_start(self, *_: Any) -> None:
        """Set the precision of a step."""
        torch.set_float32_matmul_precision(self.precision)

    def on_validation_start(self, *_: Any) -> None:
        """Return to the precision of evaluation."""
        torch.set_float32_matmul_precision("highest")

    def teardown(self, *_: Any, **__: Any) -> None:
        """Return to the precision of evaluation."""
        torch.set_float32_matmul_precision("highest")
