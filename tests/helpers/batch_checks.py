"""Reference checks of batches in plain Python: the events that queries see, and the targets."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st

from recsys.core.schema import FIRST_CODE
from recsys.data.batches.batch import Batch
from recsys.data.dataset import PreparedDataset


def basket_begins(dataset: PreparedDataset) -> np.ndarray:
    """Return the position of the first event of each event's basket."""
    begins = np.arange(dataset.meta.num_events)
    for begin, end in zip(dataset.offsets[:-1], dataset.offsets[1:], strict=True):
        for position in range(begin + 1, end):
            if dataset.meta.time_resolution.has_order and dataset.time[position] == dataset.time[position - 1]:
                begins[position] = begins[position - 1]
    return begins


def own_items(batch: Batch, history: int) -> torch.Tensor:
    """Return the training items of the user of a history."""
    row = int(batch.owner[history])
    return batch.positives.values[batch.positives.offsets[row] : batch.positives.offsets[row + 1]]


def visible(batch: Batch) -> list[tuple[int, int, list[int]]]:
    """Return (position, item, positions of the events that the query sees) of each target, from the features."""
    seen = batch.events["outcome"]
    assert isinstance(seen, torch.Tensor)
    starts = np.concatenate([[0], np.cumsum(batch.lengths)])
    context = batch.requests["context"]
    assert isinstance(context, torch.Tensor)
    rows = []
    for query, history, item, code in zip(
        batch.query.tolist(), batch.history.tolist(), batch.target_idx.tolist(), context.tolist(), strict=True
    ):
        begin = int(starts[history])
        known = query - begin - history
        assert 0 <= known <= batch.lengths[history]
        rows.append((code - FIRST_CODE, item, seen[begin : begin + known].int().tolist()))
    return rows


def check_targets(
    dataset: PreparedDataset, batches: list[Batch], max_history: int, predict_first: bool, horizon: int = 1
) -> None:
    """Check that every training event is a target once, after the events just before its basket, at most `max_history`.

    First baskets are targets only with `predict_first`.
    """
    begins = basket_begins(dataset)
    owner = np.repeat(np.arange(dataset.num_users), np.diff(dataset.offsets))
    first = begins == dataset.offsets[:-1][owner]
    targets = [row for batch in batches for row in visible(batch)]
    expected = [p for p in range(dataset.meta.num_events) if predict_first or not first[p]]
    assert sorted(position for position, _, _ in targets) == expected
    for position, item, seen in targets:
        assert item == dataset.item_idx[position]
        assert len(seen) <= max_history
        if not dataset.meta.time_resolution.has_order:
            # Any others of the same user, in any order.
            assert position not in seen
            assert len({*seen}) == len(seen)
            assert all(owner[other] == owner[position] for other in seen)
        elif seen:
            assert seen == list(range(seen[0], seen[-1] + 1))
            assert 1 <= begins[position] - seen[-1] <= horizon
            assert seen[0] >= dataset.offsets[owner[position]]
        elif not first[position]:
            # Only the first events of a piece of a long history are predicted from the empty history, and those near
            # the beginning where the horizon is longer.
            assert predict_first
            is_cut = np.diff(dataset.offsets)[owner[position]] > max_history + 1
            assert is_cut or begins[position] - dataset.offsets[owner[position]] < horizon
    for batch in batches:
        assert (batch.lengths <= max_history).all()


users_strategy = st.lists(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 1)), min_size=0, max_size=14), min_size=1, max_size=5
)


def with_times(users: list[list[tuple[int, int]]]) -> list[list[tuple[int, int]]]:
    """Turn steps of 0 or 1 in time into times."""
    return [
        list(zip([item for item, _ in history], np.cumsum([step for _, step in history]).tolist(), strict=True))
        for history in users
    ]
