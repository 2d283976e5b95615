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
from torch.nn.utils.rnn import pad_sequence

from recsys.core.errors import UserError
from recsys.models.encoders import HistoryEncoder
from recsys.models.layout import Layout, Packed, Padded

PAGE = "see docs/extending.md#history-encoder"
LONGEST = 12
# States are equal up to rounding if they differ by less than this share of the largest one.
TOLERANCE = 1e-3
HALF_PRECISION_TOLERANCE = 0.1


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
        for sequence in zip(tokens, times, check.packed(tokens, times), check.padded(tokens, times), strict=True):
            check.sequence(*sequence)


class _Check:
    def __init__(self, encoder: HistoryEncoder, tolerance: float) -> None:
        self.encoder, self.tolerance = encoder, tolerance

    def sequence(self, tokens: Tensor, time: Tensor, packed: Tensor, padded: Tensor) -> None:
        """Compare the states of a sequence among others, in both layouts, with those of the sequence alone."""
        (alone,) = self.packed([tokens], [time])
        self._same(
            packed,
            alone,
            "the states of a history depend on the other histories of the batch",
            "none to do so: packed tokens [N, D] hold several users one after the other, so what mixes places must go "
            "through the layout",
        )
        self._same(
            padded,
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

    def padded(self, sequences: list[Tensor], times: list[Tensor]) -> list[Tensor]:
        # Padding may hold anything.
        tokens = pad_sequence(sequences, batch_first=True, padding_value=7.0)
        time = pad_sequence(times, batch_first=True) if self.encoder.reads_time else None
        lengths = [len(sequence) for sequence in sequences]
        layout = Padded(tokens, torch.tensor(lengths, device=tokens.device), time=time)
        states = self._states(tokens, layout, "padded tokens [B, L, D]")
        return [row[:length] for row, length in zip(states, lengths, strict=True)]

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
