"""Batches of requests for generators, which read histories from the data set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from recsys.baselines.interactions import NUM_ENTRIES, slices_of
from recsys.data.batches.batch import Batch
from recsys.data.batches.builder import BatchBuilder
from recsys.data.dataset import PreparedDataset, Requests

# Maximum number of requests in a batch; long histories make batches smaller.
_BATCH = 4096


def request_batches(dataset: PreparedDataset, requests: Requests) -> Iterator[tuple[Batch, Requests]]:
    """Yield batches of at most `_BATCH` requests, fewer if their histories are long.

    Generators read histories from the data set, so the batches contain only one event of each history.
    """
    builder = BatchBuilder(dataset, max_history=1)
    lengths = requests.end - dataset.offsets[requests.user_idx]
    for rows in slices_of(np.maximum(lengths, NUM_ENTRIES // _BATCH), NUM_ENTRIES):
        chosen = Requests(*(column[rows] for column in requests))
        yield builder.requests(chosen), chosen
