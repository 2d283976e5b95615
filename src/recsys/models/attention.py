"""Causal attention over packed sequences, with several sequences in a row.

Histories are short, so the number of matrix products costs more than their arithmetic. Whole sequences are laid side by
side in rows of a few lengths, a mask keeps them apart, and all rows of one length are one batched product. The gradient
is written by hand with the same layout. If each token sees only a window of the latest tokens, long sequences are first
cut into overlapping pieces.

Shapes: N tokens, H heads, E width of a head, B rows of a group, L their length, G = sum of B * L.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.core.columns import ragged_positions
from recsys.models.dropout import dropout_mask

Integers = npt.NDArray[np.int64]

# Sequences up to this length share rows of this length, longer ones share rows of twice the length, and so on.
SHORTEST_ROW = 32


class Group(NamedTuple):
    """Rows of one length. The gathered vectors `begin..end-1` of width E have the shape [H * B, L, E].

    Attributes:
        bias: [B, L, L], 0 where a token sees another token of its sequence, else -inf.
    """

    begin: int
    end: int
    bias: Tensor


class Pairs(NamedTuple):
    """Pairs of tokens in B rows, with queries along the second axis and keys along the third.

    Attributes:
        visible: bool [B, L, L], true if the query sees the key.
        elapsed: int64 [B, L, L], seconds between both; None for sequences without times.
    """

    visible: Tensor
    elapsed: Tensor | None

    @classmethod
    def from_times(cls, visible: Tensor, time: Tensor | None) -> Pairs:
        """Return the pairs of tokens at `time`, int64 [B, L]."""
        return cls(visible, None if time is None else (time.unsqueeze(2) - time.unsqueeze(1)).abs())


class AttentionRows:
    """The positions of the tokens of packed sequences in rows, for one number of heads.

    Args:
        lengths: int64, tokens of each sequence, at least 1.
        num_heads: number of heads, H.
        device: device of the tokens.
        window: number of tokens that each token sees, itself included; None for all tokens before it.
    """

    def __init__(self, lengths: Integers, num_heads: int, *, device: torch.device, window: int | None = None) -> None:
        self.num_heads = num_heads
        self.groups: list[Group] = []
        order = np.argsort(-lengths, kind="stable")
        starts, lengths = (np.cumsum(lengths) - lengths)[order], lengths[order]
        # For each sequence: the gathered vector of its first token for head 0, and the distance to the next head's.
        first, stride = np.empty_like(lengths), np.empty_like(lengths)
        num_gathered, begin = 0, 0
        while begin < len(lengths):
            capacity = max(int(lengths[begin]), SHORTEST_ROW)
            lower = SHORTEST_ROW * 2 ** (math.ceil(math.log2(capacity / SHORTEST_ROW)) - 1)
            end = len(lengths) if capacity == SHORTEST_ROW else begin + int((lengths[begin:] > lower).sum())
            members, begin = slice(begin, end), end
            row, offset = _fill(lengths[members].tolist(), capacity)
            num_rows = int(row.max()) + 1
            slot = row * capacity + offset
            first[members], stride[members] = num_gathered + slot, num_rows * capacity
            slots, first_slots = ragged_positions(slot, lengths[members]), np.repeat(offset, lengths[members])
            bias = _bias(num_rows, capacity, slots=slots, first=first_slots, window=window)
            self.groups.append(Group(num_gathered, num_gathered + num_rows * capacity * num_heads, bias.to(device)))
            num_gathered += num_rows * capacity * num_heads
        tokens = ragged_positions(starts, lengths)
        place = np.empty((len(tokens), num_heads), np.int64)
        place[tokens] = ragged_positions(first, lengths)[:, None] + np.repeat(stride, lengths)[:, None] * np.arange(
            num_heads
        )
        # Queries, keys and values lie side by side, [N, 3, H] vectors of width E, and are gathered one after another.
        place_of_three = place[:, None, :] + num_gathered * np.arange(3)[:, None]
        source, source_of_three = np.full(num_gathered, -1), np.zeros(3 * num_gathered, np.int64)
        source[place] = np.arange(place.size).reshape(place.shape)
        source_of_three[place_of_three] = np.arange(place_of_three.size).reshape(place_of_three.shape)
        empty = np.flatnonzero(source < 0)
        source[empty] = 0
        self.source, self.place, self.empty, self.source_of_three, self.place_of_three = (
            torch.from_numpy(rows.reshape(-1)).to(device)
            for rows in (source, place, empty, source_of_three, place_of_three)
        )

    def attend(self, heads: Tensor, dropout: float) -> Tensor:
        """Return the result of causal attention, [N, H, E], of queries, keys and values [N, 3, H, E]."""
        if heads.device.type != "cpu":
            return self.attend_by_sdpa(heads, dropout)
        attended: Tensor = _Attention.apply(heads, self, dropout)  # type: ignore[no-untyped-call]
        return attended

    def attend_by_sdpa(self, heads: Tensor, dropout: float) -> Tensor:
        """Return the result of `attend`, computed by PyTorch's kernels, which are faster on a GPU."""
        outputs = []
        for group, (q, k, v) in zip(self.groups, self.split(heads), strict=True):
            outputs.append(F.scaled_dot_product_attention(q, k, v, group.bias.to(q.dtype), dropout))
        return self.join(outputs)

    def split(self, heads: Tensor) -> list[Tensor]:
        """Gather queries, keys and values [N, 3, H, E] of the tokens into the rows of each group, [3, H, B, L, E]."""
        rows = F.embedding(self.source_of_three, heads.flatten(0, 2)).view(3, -1, heads.shape[3])
        return [rows[:, g.begin : g.end].unflatten(1, (self.num_heads, *g.bias.shape[:2])) for g in self.groups]

    def join(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return the outputs of each group's rows, [H, B, L, E], in the order of the tokens, [N, H, E]."""
        rows = torch.cat([output.flatten(0, 2) for output in outputs])
        return rows.index_select(0, self.place).view(-1, self.num_heads, rows.shape[1])

    def pairs(self, time: Tensor | None) -> list[Pairs]:
        """Return the pairs in the rows of each group; `time` int64 [N] holds the times of the tokens."""
        pairs = []
        for group in self.groups:
            shape = group.bias.shape[:2]
            tokens = self.source[group.begin : group.begin + shape.numel()] // self.num_heads
            pairs.append(Pairs.from_times(group.bias == 0.0, None if time is None else time[tokens].view(shape)))
        return pairs


class WindowPieces:
    """Attention of each token to the last W tokens, at a cost that grows linearly with the length of a sequence.

    A sequence is cut into pieces of 2W tokens that begin W tokens apart. A piece gives the results of its second half
    (the first piece those of both halves), because the W tokens before them are in the same piece.

    Args:
        lengths: int64, tokens of each sequence, at least 1.
        num_heads: number of heads, H.
        device: device of the tokens.
        window: W.
    """

    def __init__(self, lengths: Integers, num_heads: int, *, device: torch.device, window: int) -> None:
        count = np.maximum(-(-lengths // window) - 1, 1)
        owner = np.repeat(np.arange(len(lengths)), count)
        begin = ragged_positions(np.zeros_like(count), count) * window
        size = np.minimum(lengths[owner] - begin, 2 * window)
        step = ragged_positions(np.zeros_like(lengths), lengths)
        # For each token: the piece of its sequence that gives its result, and its place in that piece.
        piece = np.maximum(step // window - 1, 0)
        place = (np.cumsum(size) - size)[np.repeat(np.cumsum(count) - count, lengths) + piece] + step - piece * window
        token = ragged_positions((np.cumsum(lengths) - lengths)[owner] + begin, size)
        self._token, self._place = torch.from_numpy(token).to(device), torch.from_numpy(place).to(device)
        self._rows = AttentionRows(size, num_heads, device=device, window=window)

    def attend(self, heads: Tensor, dropout: float) -> Tensor:
        """Return the result of attention; see `AttentionRows.attend`."""
        pieces = F.embedding(self._token, heads.flatten(1)).view(-1, *heads.shape[1:])
        return self._rows.attend(pieces, dropout).index_select(0, self._place)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, plan: AttentionRows, dropout: float) -> Tensor:
        num_tokens, _, num_heads, width = heads.shape
        rows = heads.reshape(-1, width).index_select(0, plan.source_of_three).view(3, -1, width)
        outputs = torch.empty_like(rows[0])
        weights, keeps = [], []
        for group in plan.groups:
            q, k, v = _rows_of_group(rows, group)
            scores = torch.bmm(q, k.transpose(1, 2)).unflatten(0, (plan.num_heads, -1))
            weight = torch.add(group.bias.to(scores.dtype), scores, alpha=width**-0.5, out=scores).flatten(0, 1)
            weight = weight.softmax(2)
            weights.append(weight)
            if dropout > 0.0:
                keeps.append(dropout_mask(weight.shape, dropout, like=weight))
                weight = weight * keeps[-1]
            torch.bmm(weight, v, out=outputs[group.begin : group.end].view(q.shape))
        ctx.plan, ctx.num_groups = plan, len(weights)
        ctx.save_for_backward(rows, *weights, *keeps)
        return outputs.index_select(0, plan.place).view(num_tokens, num_heads, width)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, *saved = ctx.saved_tensors
        plan: AttentionRows = ctx.plan
        weights, keeps = saved[: ctx.num_groups], saved[ctx.num_groups :]
        num_tokens, num_heads, width = gradients[0].shape
        arriving = gradients[0].reshape(-1, width).index_select(0, plan.source)
        arriving.index_fill_(0, plan.empty, 0.0)
        leaving = torch.empty_like(rows)
        for number, (group, weight) in enumerate(zip(plan.groups, weights, strict=True)):
            q, k, v = _rows_of_group(rows, group)
            dq, dk, dv = _rows_of_group(leaving, group)
            output = arriving[group.begin : group.end].view(q.shape)
            kept = weight * keeps[number] if keeps else weight
            torch.bmm(kept.transpose(1, 2), output, out=dv)
            d_weight = torch.bmm(output, v.transpose(1, 2))
            if keeps:
                d_weight *= keeps[number]
            d_score = torch._softmax_backward_data(d_weight, weight, 2, weight.dtype).mul_(width**-0.5)
            torch.bmm(d_score, k, out=dq)
            torch.bmm(d_score.transpose(1, 2), q, out=dk)
        gradient = leaving.view(-1, width).index_select(0, plan.place_of_three)
        return gradient.view(num_tokens, 3, num_heads, width), None, None


def _rows_of_group(rows: Tensor, group: Group) -> Tensor:
    return rows[:, group.begin : group.end].view(3, -1, group.bias.shape[1], rows.shape[2])


def _bias(num_rows: int, length: int, *, slots: Integers, first: Integers, window: int | None) -> Tensor:
    """Return the bias [B, L, L] of a group; `first` is the place in its row of the first token of a slot's sequence."""
    begins = np.tile(np.arange(length), num_rows)
    begins[slots] = first
    if window is not None:
        begins = np.maximum(begins, np.tile(np.arange(length) - window + 1, num_rows))
    step = torch.arange(length)
    hidden = (step > step.unsqueeze(1)) | (step < torch.from_numpy(begins).view(num_rows, length, 1))
    return torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)


def _fill(lengths: list[int], capacity: int) -> tuple[Integers, Integers]:
    """Return the row and offset of each sequence. A row takes the longest sequence left and the shortest that fit."""
    rows, offsets = [0] * len(lengths), [0] * len(lengths)
    row, long, short = 0, 0, len(lengths) - 1
    while long <= short:
        rows[long], used = row, lengths[long]
        long += 1
        while long <= short and used + lengths[short] <= capacity:
            rows[short], offsets[short] = row, used
            used += lengths[short]
            short -= 1
        row += 1
    return np.array(rows), np.array(offsets)
