"""Batches: slices of the flat columns, packed without padding.

Shapes: H histories, T events of all histories together, P targets (training) or requests (evaluation), R rows.
A history of n events has n + 1 query positions: before its first event, and after each event. Packed, they are numbered
history by history, so the position after k events of history h is `offsets[h] + h + k`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.core.columns import Column, Dense, Ragged
from recsys.core.types import Int64Array


class RaggedTensor(NamedTuple):
    """Codes of R rows: row r holds `values[offsets[r]:offsets[r+1]]`."""

    values: Tensor
    offsets: Tensor


FeatureTensor = Tensor | RaggedTensor
FeatureTensors = dict[str, FeatureTensor]


class Windows(NamedTuple):
    """Pieces of training histories: events `begin[w]..end[w]-1` are read, and each next event is predicted.

    Attributes:
        user_idx: int64 [W], user of each window.
        begin: int64 [W], position of the first event that is read.
        end: int64 [W], position behind the last event that is read.
        first: bool [W], whether the event at `begin` may be a target as well, predicted from the empty history.
            Otherwise the window before predicts it and the rest of its basket.
    """

    user_idx: Int64Array
    begin: Int64Array
    end: Int64Array
    first: npt.NDArray[np.bool_]

    def take(self, chosen: Int64Array) -> Windows:
        """Return some of the windows."""
        return Windows(self.user_idx[chosen], self.begin[chosen], self.end[chosen], self.first[chosen])


@dataclass(frozen=True)
class Batch:
    """Histories and the queries, targets and features that belong to them.

    Attributes:
        item_idx: int64 [T], items of the events.
        time: int64 [T], times of the events, in the resolution `data.time`.
        lengths: int64 [H] on the host, events of each history.
        user_idx: int64 [H], -1 for users that the data set does not hold.
        events: features of the T events.
        users: profile features of the H histories.
        query: int64 [P], packed query position of each target or request.
        history: int64 [P], history of each target or request.
        requests: request features of the P targets or requests.
        target_idx: int64 [P], items to predict; empty for requests.
        positives: distinct training items of the users of the batch, ascending, for masking; a row for each user.
        owner: int64 [H], row of `positives` of each history's user.
        target_time: int64 [P], time of each target; empty for requests.
        weight: float32 [P], weight of each target in the loss; None for equal weights.
        exposures: items that each history's user was shown and did not engage with, each once; rows H; None for none.
    """

    item_idx: Tensor
    time: Tensor
    lengths: Int64Array
    user_idx: Tensor
    events: FeatureTensors
    users: FeatureTensors
    query: Tensor
    history: Tensor
    requests: FeatureTensors
    target_idx: Tensor
    target_time: Tensor
    positives: RaggedTensor
    owner: Tensor
    weight: Tensor | None = None
    exposures: RaggedTensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on another device."""

        def move(value: object) -> object:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            if isinstance(value, RaggedTensor):
                return RaggedTensor(*(v.to(device, non_blocking=True) for v in value))
            if isinstance(value, dict):
                return {name: move(column) for name, column in value.items()}
            return value

        return Batch(**{f.name: move(getattr(self, f.name)) for f in dataclasses.fields(self)})  # type: ignore[arg-type]


def take_or_missing(column: Column, rows: Int64Array) -> Column:
    """Return rows of a column. Row -1 gives a missing value (code 0, nan, or an empty bag)."""
    missing = rows < 0
    if not missing.any():
        return column.take(rows)
    if isinstance(column, Ragged):
        taken = column.take(rows[~missing])
        lengths = np.zeros(len(rows), np.int64)
        lengths[~missing] = np.diff(taken.offsets)
        return Ragged(taken.values, np.concatenate([[0], np.cumsum(lengths)]))
    values = np.zeros((len(rows), *column.values.shape[1:]), column.values.dtype)
    values[~missing] = column.values[rows[~missing]]
    if values.dtype.kind == "f":
        values[missing] = np.nan
    return Dense(values)


def to_tensor(column: Column) -> FeatureTensor:
    """Return a column as tensors. Codes become int64, which embeddings require."""
    if isinstance(column, Ragged):
        return RaggedTensor(
            torch.from_numpy(column.values.astype(np.int64)), torch.from_numpy(np.array(column.offsets))
        )
    values = column.values
    return torch.from_numpy(values.astype(np.int64 if values.dtype.kind in "iu" else np.float32))
