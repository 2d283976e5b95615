"""What the generators share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from handmade import handmade, ragged, random_users
from scipy.sparse import csr_matrix
from torch import Tensor

from recsys.baselines import interactions
from recsys.baselines.interactions import Interactions, best_of_rows, dense_if_full, slices_of, sum_rows
from recsys.core.errors import UserError
from recsys.data.dataset import Requests
from recsys.evaluation import topk

# 1 and 2 are trained, 3 is seen in validation, 4 and 5 only in the test part.
DATA = handmade([([1, 2, 1], [3], [4]), ([1], [2, 3], [5]), ([], [], [1])])


def test_training_part() -> None:
    events = Interactions(DATA, "train")
    assert events.num_items == 2
    assert events.counts().tolist() == [3, 1]
    assert events.users.toarray().tolist() == [[1, 1], [1, 0], [0, 0]]


def test_training_and_validation() -> None:
    events = Interactions(DATA, "val")
    assert events.counts().tolist() == [3, 2, 2]
    assert events.users.toarray().tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 0]]


def test_histories_grow_after_the_fit_and_unknown_users_have_none() -> None:
    events = Interactions(DATA, "train")
    # Up to the end of all events: 3, 4 and 5 are unknown to what was learned from the training part.
    requests = Requests(np.array([1, -1, 2, 0]), np.array([7, 0, 10, 1]))
    assert events.histories(requests).toarray().tolist() == [[1, 1], [0, 0], [1, 0], [1, 0]]


def test_fallback_is_popularity() -> None:
    fallback = Interactions(handmade([([1, 2, 2, 3, 3, 3, 4, 4], [], [])]), "train").fallback()
    assert np.argsort(-fallback).tolist() == [2, 1, 3, 0]
    assert (fallback < 0).all()
    assert (fallback >= -1).all()


def test_ranks_by_the_scores_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk, "BLOCK_BYTES", 0)  # sixteen requests a block
    events = Interactions(DATA, "val")
    users = np.tile([0, 1], 20)

    def score(histories: object, out: np.ndarray) -> None:
        out[:] = histories.toarray() * [1, 2, 3] - [0.5, 0.25, 0]  # type: ignore[attr-defined]

    requests = Requests(users, np.where(users == 0, 1, 7))
    scores, items = events.rank(requests, 4, ragged(*([[4], [3, 3, 0]] * 20)), score)
    # User 0 has had item 1: .5, -.25, 0. User 1 items 1 and 2, and 3 is excluded: .5, 1.75. Items 4 and 0 do not exist.
    assert items.tolist() == [[1, 3, 2, 0], [2, 1, 0, 0]] * 20
    infinite = -float("inf")
    assert scores.tolist() == [[0.5, 0, -0.25, infinite], [1.75, 0.5, infinite, infinite]] * 20
    assert isinstance(scores, Tensor)
    assert scores.dtype == torch.float32


def test_no_events() -> None:
    with pytest.raises(UserError, match="no events up to the end of part 'train'"):
        Interactions(handmade([([], [1], [])]), "train")


def test_unknown_part() -> None:
    with pytest.raises(UserError, match="until=validation: no such part"):
        Interactions(DATA, "validation")  # type: ignore[arg-type]


def test_recent_events() -> None:
    events = Interactions(DATA, "val")
    # 1, 2, 1, 3, 4: the last two are 3 and the unknown 4; the last three 1, 3, 4.
    requests = Requests(np.array([0, 0, 0, -1, 2]), np.array([5, 5, 2, 0, 9]))
    assert events.histories(requests, 2).toarray().tolist() == [[0, 0, 1]] * 2 + [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert events.histories(requests, 3).toarray()[0].tolist() == [1, 0, 1]


def test_pairs_are_counted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    events = Interactions(handmade(random_users(np.random.default_rng(0), 100, 40)), "val")
    monkeypatch.setattr(interactions, "NUM_ENTRIES", 150)
    items = events.users.T.tocsr()
    blocks = events.blocks(items)
    assert len(blocks) > 5
    assert [row for block in blocks for row in range(block.start, block.stop)] == [*range(events.num_items)]
    assert all((items[b] @ events.users).nnz <= 150 or b.stop - b.start == 1 for b in blocks)
    users = events.users.toarray()
    np.testing.assert_array_equal(events.pairs, users.T @ users)


def test_slices_keep_to_the_budget() -> None:
    assert slices_of(np.array([2, 3, 4, 9, 1, 1]), 5) == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 6)]
    assert slices_of(np.array([0, 0, 0]), 5) == [slice(0, 3)]
    assert slices_of(np.array([], int), 5) == []


def test_sums_of_rows_are_the_same_of_arrays() -> None:
    rng = np.random.default_rng(0)
    full = csr_matrix(rng.random((9, 9), np.float32) * (rng.random((9, 9)) < 0.3))
    empty = csr_matrix(([1], ([2], [3])), shape=(9, 9), dtype=np.float32)
    assert isinstance(dense_if_full(full), np.ndarray)
    assert dense_if_full(empty) is empty
    weights, fallback = csr_matrix((rng.random((4, 9), np.float32) > 0.7).astype(np.float32)), -np.arange(1, 10) / 9
    for matrix in (full, full.toarray()):
        out = np.full((4, 9), 7, np.float32)
        sum_rows(weights, matrix, fallback=fallback.astype(np.float32), out=out)
        expected = weights.toarray() @ full.toarray()
        np.testing.assert_allclose(out, np.where(expected > 0, expected, fallback), rtol=1e-6)


def test_best_of_rows() -> None:
    # The larger first, the lower column among equals, zeros never.
    matrix = csr_matrix(np.array([[0.5, 0.25, 0.5, 0.5], [0, 0, 0, 1], [0, 0, 0, 0]], np.float32))
    assert best_of_rows(matrix, 2).toarray().tolist() == [[0.5, 0, 0.5, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
