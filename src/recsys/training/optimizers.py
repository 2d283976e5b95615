"""AdamW for dense parameters and lazy row-wise Adam for sparse tables, in one optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from recsys.models.sharded_table import FusedKind, FusedOptimizer, ShardedTable, sharded_tables

Schedule = Literal["constant", "linear", "cosine"]


class DenseAndSparse(torch.optim.Optimizer):
    """An optimizer for dense gradients and one for sparse gradients as a single object.

    Automatic optimisation, schedules and checkpoints then treat both alike. Rows without a gradient are not updated, so
    the cost of a step grows with the batch and not with the table.
    """

    def __init__(self, dense: torch.optim.Optimizer, sparse: torch.optim.Optimizer) -> None:
        self.dense, self.sparse = dense, sparse
        super().__init__([p for group in dense.param_groups + sparse.param_groups for p in group["params"]], {})
        # These are the group objects of both, so that the learning rates of a schedule reach them.
        self.param_groups = [*dense.param_groups, *sparse.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step of both optimizers."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.dense.step()
        self.sparse.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both optimizers."""
        return {"dense": self.dense.state_dict(), "sparse": self.sparse.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of both optimizers."""
        self.dense.load_state_dict(state_dict["dense"])
        self.sparse.load_state_dict(state_dict["sparse"])
        self.param_groups = [*self.dense.param_groups, *self.sparse.param_groups]


class FusedRates(torch.optim.Optimizer):
    """The learning rate of sharded tables, whose rows the backward pass updates.

    Their optimizer state lies beside the rows, in the processes that own them.

    Args:
        tables: sharded tables of the model.
        lr: learning rate.
    """

    def __init__(self, tables: list[ShardedTable], lr: float) -> None:
        # Schedules and checkpoints read a group, and a group has a parameter.
        super().__init__([{"params": [torch.zeros(0)], "lr": lr}], {})
        for table in tables:
            table.rate = lambda: float(self.param_groups[0]["lr"])

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Do nothing: the rows are updated already."""


class AdamW:
    """Builds the optimizer and its schedule for a model.

    AdamW: Loshchilov and Hutter 2019 (arXiv 1711.05101).

    Args:
        lr: learning rate of dense parameters.
        sparse_lr: learning rate of sparse tables; None for `lr`.
        weight_decay: weight decay of matrices that are not embedding tables.
        betas: decay rates of both moments, for dense and sparse parameters.
        schedule: `constant`, or `linear` or `cosine` decay to zero after the warm-up.
        warmup_steps: steps of linear warm-up.
        fused: rule that updates the rows of sharded tables. `auto` is Adam on a GPU and row-wise Adagrad (one number of
            state a row, as in TorchRec's examples) on a CPU, which has no kernel for Adam.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        sparse_lr: float | None = None,
        *,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.98),
        schedule: Schedule = "constant",
        warmup_steps: int = 0,
        fused: Literal[FusedKind, "auto"] = "auto",
    ) -> None:
        if fused not in (kinds := ("auto", *get_args(FusedKind))):
            raise ValueError(f"fused: found '{fused}', expected one of {', '.join(kinds)}")
        self.fused: Literal[FusedKind, "auto"] = fused
        if schedule not in ("constant", "linear", "cosine"):
            raise ValueError(f"schedule: found '{schedule}', expected 'constant', 'linear' or 'cosine'")
        rates = {"lr": lr, "sparse_lr": sparse_lr, "weight_decay": weight_decay, "warmup_steps": warmup_steps}
        for name, value in rates.items():
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}: found {value}, expected a finite number of 0 or more")
        if len(betas) != 2 or not all(isinstance(beta, float | int) and 0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas: found {list(betas)}, expected two numbers from 0 to below 1")
        self.lr, self.sparse_lr, self.weight_decay, self.betas = lr, sparse_lr, weight_decay, (betas[0], betas[1])
        self.schedule, self.warmup_steps = schedule, warmup_steps

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of all trainable parameters of a model."""
        tables = {id(m.weight): m.sparse for m in model.modules() if isinstance(m, nn.Embedding)}
        decayed: list[Tensor] = []
        plain: list[Tensor] = []
        sparse: list[Tensor] = []
        for parameter in model.parameters():
            if not parameter.requires_grad:
                continue
            if tables.get(id(parameter), False):
                sparse.append(parameter)
            elif parameter.ndim > 1 and id(parameter) not in tables:
                decayed.append(parameter)
            else:
                plain.append(parameter)
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        dense = torch.optim.AdamW([g for g in groups if g["params"]], lr=self.lr, betas=self.betas, fused=True)
        optimizer: torch.optim.Optimizer = dense
        if sparse:
            rows = torch.optim.SparseAdam(sparse, lr=self.sparse_lr or self.lr, betas=self.betas)
            optimizer = DenseAndSparse(dense, rows)
        if sharded := list(sharded_tables(model).values()):
            optimizer = DenseAndSparse(optimizer, FusedRates(sharded, self.sparse_lr or self.lr))
        return optimizer

    def fused_optimizer(self, device: torch.device) -> FusedOptimizer:
        """Return the update rule for rows of sharded tables on a device: `fused`, or the default of the device."""
        kind = self.fused
        if kind == "auto":
            kind = "rowwise_adagrad" if device.type == "cpu" else "adam"
        return FusedOptimizer(kind, self.sparse_lr or self.lr, betas=self.betas)

    def factor(self, step: int, total_steps: int) -> float:
        """Return the factor on the learning rates at a step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        share = min((step - self.warmup_steps) / max(total_steps - self.warmup_steps, 1), 1.0)
        return 1.0 - share if self.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * share))
