"""The sequences that a history encoder reads of a batch."""

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
    """Sequences of N tokens together, and where the answers of P queries are.

    Attributes:
        source: int64 [N], what each token is: 0 the start token, e + 1 event e of the batch.
        layout: of the tokens.
        answer: int64 [P], the token whose state answers each query.
    """

    source: Tensor
    layout: Packed
    answer: Tensor

    @classmethod
    def from_batch(cls, batch: Batch, is_causal: bool, reads_time: bool) -> Sequences:
        """A sequence for each history; for an encoder that is not causal, one for each query: the events before it."""
        begin, num_events, answer = np.cumsum(batch.lengths) - batch.lengths, batch.lengths, batch.query
        if not is_causal:
            # Queries at one place, as those of a basket, share a sequence.
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
            # The start token has the time of the first event; where there is none, it sees nothing but itself.
            event[starts] = begin
            time = F.pad(batch.time, (0, 1))[torch.from_numpy(event).to(batch.time.device)]
        device = batch.query.device
        return cls(torch.from_numpy(source).to(device), Packed(lengths, device, time), answer)
