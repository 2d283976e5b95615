"""Detection of a training that has diverged: a loss, gradient or weight that is not finite."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.core.errors import UserError
from recsys.models.sharded_table import sharded_tables

# Reading a value makes a GPU finish all steps before, so a GPU is asked once in this many steps.
GPU_STEPS = 50
# At this size float32 adds nothing below 8 to a weight, so it learns nothing more.
MAX_WEIGHT = 1e8
_NEVER = 2**62
USUAL_RATE = 1e-3


class FiniteWatch:
    """Ends training at the first step whose loss or gradient is not finite, or with weights of no use.

    Args:
        lr: learning rate of the configuration; None if the optimizer of an outside package names none.
        clip_norm: bound on the norm of gradients; 0 for none.
    """

    def __init__(self, lr: float | None, clip_norm: float) -> None:
        self.lr, self.clip_norm = lr, clip_norm
        self._first: dict[str, Tensor] = {}

    def add(self, what: str, value: Tensor, *, step: int) -> None:
        """Record a value of a step that is the same in every process.

        Args:
            what: name of the value in messages.
            value: scalar.
            step: number of the step, from 1.

        Raises:
            UserError: If a recorded value was not finite. On a GPU up to `GPU_STEPS` later.
        """
        first = self._first.get(what)
        if first is None or first.device != value.device:
            first = torch.full((), _NEVER, device=value.device)
        self._first[what] = torch.where(torch.isfinite(value.detach()), first, first.clamp(max=step))
        if value.device.type == "cpu" or step % GPU_STEPS == 0:
            self.check()

    def check(self) -> None:
        """Raise a `UserError` if a recorded value was not finite."""
        for what, first in self._first.items():
            if (step := int(first)) < _NEVER:
                raise self._error(f"the {what} of step {step} is not finite", first=step == 1)

    def check_weights(self, model: nn.Module, step: int) -> None:
        """Raise a `UserError` if the model has a weight that is not finite, or above `MAX_WEIGHT`."""
        self.check()
        named = dict(model.named_parameters())
        # The largest weight is nan if any is.
        sizes = [w.detach().abs().amax() if w.numel() else w.new_zeros(()) for w in named.values()]
        tables = {name: table for name, table in sharded_tables(model).items() if table.is_built}
        together = torch.stack([*sizes, *(table.largest() for table in tables.values())])
        if not bool((together <= MAX_WEIGHT).all()):
            found_sizes = zip([*named, *tables], together.tolist(), strict=True)
            name, size = next((n, s) for n, s in found_sizes if not s <= MAX_WEIGHT)
            found = f"has weights up to {size:.2g}" if size > MAX_WEIGHT else "is not finite"
            raise self._error(f"after step {step} {name} {found}, expected weights below {MAX_WEIGHT:g}")

    def _error(self, found: str, *, first: bool = False) -> UserError:
        place = "training" if self.lr is None else f"optimizer.lr={self.lr:g}"
        lower = USUAL_RATE if self.lr is None or self.lr > USUAL_RATE else self.lr / 10
        advice = [f"optimizer.lr={lower:g}"]
        if not self.clip_norm:
            advice.append("clip_norm=1")
        advice += ["more optimizer.warmup_steps", "trainer.precision=32-true if it is lower"]
        if first:
            advice.append("to find nan in an encoder, loss or feature of your own, because no step came before")
        return UserError(f"{place}: {found}, so training has diverged; try {', '.join(advice)}")
