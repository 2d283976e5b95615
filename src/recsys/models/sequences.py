"""The sequences of tokens that a history encoder reads, made from a batch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.core.columns import ragged_positions
from recsys.data.batches.batch import Batch
from recsys.models.layout import Packed


class Sequences(NamedTuple):
    """Sequences of N tokens in all, and the tokens that answer P queries.

    Attributes:
        source: int64 [N], origin of each token: 0 for the start token, e + 1 for event e of the batch.
        layout: layout of the tokens.
        answer: int64 [P], token whose state answers each query.
    """

    source: Tensor
    layout: Packed
    answer: Tensor

    @classmethod
    def from_batch(cls, batch: Batch, *, is_causal: bool, reads_time: bool) -> Sequences:
        """Return a sequence for each history.

        An encoder that is not causal gets a sequence for each query instead, with the events before the query.
        """
        begin, num_events, answer = np.cumsum(batch.lengths) - batch.lengths, batch.lengths, batch.query
        if not is_causal:
            # Queries at the same position, such as those of a basket, share a sequence.
            places, which = torch.unique(batch.query, return_inverse=True)
            place = places.cpu().numpy()
            first_place = begin + np.arange(len(begin))
            history = np.searchsorted(first_place, place, side="right") - 1
            begin, num_events = begin[history], place - first_place[history]
            answer = torch.from_numpy(np.cumsum(num_events + 1) - 1).to(which.device)[which]
        lengths = num_events + 1
        starts = np.cumsum(lengths) - lengths
        source = ragged_positions(begin, lengths)
        source[starts] = 0
        time = None
        if reads_time:
            event = source - 1
            # The start token has the time of the first event. Without events any time will do: it sees only itself.
            event[starts] = begin
            time = F.pad(batch.time, (0, 1))[torch.from_numpy(event).to(batch.time.device)]
        device = batch.query.device
        return cls(torch.from_numpy(source).to(device), Packed(lengths, device, time=time), answer)
