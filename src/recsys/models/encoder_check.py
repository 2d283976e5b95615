"""Check of a history encoder on a few random sequences.

An encoder of an outside package that mixes users, looks ahead or needs another layout trains with good metrics and
fails when it is exported or served. The conditions are those of `docs/extending.md`, section "History encoder".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from recsys.core.errors import UserError
from recsys.models.encoders import HistoryEncoder
from recsys.models.layout import Layout, Packed, Padded

PAGE = "see docs/extending.md#history-encoder"
LONGEST = 12
# States are equal up to rounding if they differ by less than this share of the largest one.
TOLERANCE = 1e-3
HALF_PRECISION_TOLERANCE = 0.1
# Content of the places behind the end of a padded sequence.
PADDING = (7.0, -7.0, 3.0)


def check_attributes(encoder: HistoryEncoder) -> None:
    """Refuse an encoder that does not say whether it is causal and reads times.

    Raises:
        UserError: If an attribute is missing.
    """
    for name in ("is_causal", "reads_time"):
        value = getattr(encoder, name, "missing")
        if not isinstance(value, bool):
            raise UserError(f"{_place(encoder)}: attribute {name} is {value}, expected True or False; {PAGE}")


def check_encoder(encoder: HistoryEncoder, dim: int, *, max_history: int, device: torch.device) -> None:
    """Compare the states of sequences together and alone, packed and padded, whole and cut.

    Args:
        encoder: encoder to check. Its weights and its mode stay as they are.
        dim: width of tokens and states, D.
        max_history: longest history that the encoder gets.
        device: device of the encoder.

    Raises:
        UserError: If the encoder does not meet a condition.
    """
    assert isinstance(encoder, nn.Module)
    generator = torch.Generator().manual_seed(0)
    longest = min(max_history + 1, LONGEST)
    lengths = [(longest + 1) // 2, longest, 1, longest]
    weight = next((w for w in encoder.parameters() if w.is_floating_point()), torch.zeros(()))
    tokens = [torch.randn(length, dim, generator=generator).to(device, weight.dtype) for length in lengths]
    times = [torch.randint(1, 10**5, (length,), generator=generator).cumsum(0).to(device) for length in lengths]
    for time in times:
        # The start token has the time of the first event.
        time[0] = time[min(1, len(time) - 1)]
    with _evaluating(encoder, device):
        check = _Check(encoder, HALF_PRECISION_TOLERANCE if weight.dtype.itemsize < 4 else TOLERANCE)
        together = check.packed(tokens, times)
        for own_tokens, own_times, states in zip(tokens, times, together, strict=True):
            check.sequence(own_tokens, own_times, states)


class _Check:
    def __init__(self, encoder: HistoryEncoder, tolerance: float) -> None:
        self.encoder, self.tolerance = encoder, tolerance

    def sequence(self, tokens: Tensor, time: Tensor, states: Tensor) -> None:
        """Compare the states of a sequence among others with those in other forms."""
        (alone,) = self.packed([tokens], [time])
        self._same(
            states,
            alone,
            "the states of a history depend on the other histories of the batch",
            "none to do so: packed tokens [N, D] hold several users one after the other, so what mixes places must go "
            "through the layout",
        )
        self._same(
            self.padded(tokens, time),
            alone,
            "packed tokens [N, D] and padded ones [B, L, D] give different states",
            "equal ones, because training packs the histories and the exported tower pads them",
        )
        half = len(tokens) // 2 + 1
        if self.encoder.is_causal and half < len(tokens):
            self._same(
                alone[:half],
                self.packed([tokens[:half]], [time[:half]])[0],
                "a later event changes the states of earlier places",
                "none to do so, because each place learns to predict the event after it; or is_causal = False",
            )

    def packed(self, sequences: list[Tensor], times: list[Tensor]) -> list[Tensor]:
        lengths = [len(tokens) for tokens in sequences]
        tokens, time = torch.cat(sequences), torch.cat(times) if self.encoder.reads_time else None
        layout = Packed(np.array(lengths, np.int64), tokens.device, time=time)
        return list(self._states(tokens, layout, "packed tokens [N, D]").split(lengths))

    def padded(self, tokens: Tensor, time: Tensor) -> Tensor:
        padding = torch.tensor(PADDING).to(tokens).unsqueeze(1).expand(-1, tokens.shape[1])
        rows = torch.cat([tokens, padding]).unsqueeze(0)
        times = torch.cat([time, time[-1:].expand(len(padding))]).unsqueeze(0)
        lengths = torch.tensor([len(tokens)], device=tokens.device)
        layout = Padded(rows, lengths, time=times if self.encoder.reads_time else None)
        return self._states(rows, layout, "padded tokens [B, L, D]")[0, : len(tokens)]

    def _same(self, found: Tensor, wanted: Tensor, fault: str, expected: str) -> None:
        if not self.encoder.is_causal:
            # Of each sequence only the last state is used.
            found, wanted = found[-1:], wanted[-1:]
        difference, size = float((found - wanted).abs().max()), float(wanted.abs().max())
        if difference > self.tolerance * max(size, 1e-6):
            self._refuse(f"{fault} (by {difference:.2g}; the largest is {size:.2g})", expected)

    def _states(self, tokens: Tensor, layout: Layout, what: str) -> Tensor:
        try:
            states = self.encoder(tokens, layout)
        except Exception as error:
            message = f"{_place(self.encoder)}: {type(error).__name__} for {what} ({error}), expected states; {PAGE}"
            raise UserError(message) from error
        if not isinstance(states, Tensor):
            self._refuse(f"returns {type(states).__name__} for {what}", "a tensor")
        if states.shape != tokens.shape:
            self._refuse(f"returns the shape {list(states.shape)} for {what}", f"{list(tokens.shape)}")
        if states.dtype != tokens.dtype:
            self._refuse(f"returns {states.dtype} for {what}", f"{tokens.dtype}")
        if not bool(torch.isfinite(states).all()):
            self._refuse(f"returns numbers that are not finite for {what}", "finite ones")
        return states

    def _refuse(self, found: str, expected: str) -> NoReturn:
        raise UserError(f"{_place(self.encoder)}: {found}, expected {expected}; {PAGE}")


@contextmanager
def _evaluating(module: nn.Module, device: torch.device) -> Iterator[None]:
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _place(encoder: object) -> str:
    return f"user_tower.encoder={type(encoder).__module__}.{type(encoder).__qualname__}"
