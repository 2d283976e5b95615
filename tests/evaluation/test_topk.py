"""Blocked top-k against a plain sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys.data.batches.batch import RaggedTensor
from recsys.evaluation import topk
from recsys.evaluation.topk import BlockedTopK, ExactTopK


def excluded(rows: list[list[int]]) -> RaggedTensor:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return RaggedTensor(
        torch.tensor([column for row in rows for column in row], dtype=torch.int64), torch.from_numpy(offsets)
    )


def reference(scores: Tensor, k: int, rows: list[list[int]]) -> tuple[list[list[float]], list[list[int]]]:
    """Sort each row by hand; -1 where the items have run out."""
    values, columns = [], []
    for row, gone in zip(scores.tolist(), rows, strict=True):
        best = sorted((-score, column) for column, score in enumerate(row) if column not in gone)[:k]
        values.append([-score for score, _ in best] + [-float("inf")] * (k - len(best)))
        columns.append([column for _, column in best] + [-1] * (k - len(best)))
    return values, columns


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 700), st.integers(1, 40), st.integers(0, 5), st.integers(0, 2**31), st.sampled_from([0, 3, 2000]))
def test_equals_a_plain_sort(num_items: int, k: int, num_users: int, seed: int, num_gone: int) -> None:
    rng = np.random.default_rng(seed)
    # A permutation of distinct whole numbers as scores of one-dimensional items: no ties, no rounding.
    items = torch.from_numpy(rng.permutation(num_items).astype(np.float32)[:, None])
    users = torch.from_numpy(rng.choice([-1.0, 1.0, 2.0], (num_users, 1)).astype(np.float32))
    rows = [rng.integers(0, num_items, rng.integers(0, num_gone + 1)).tolist() for _ in range(num_users)]
    scores, columns = ExactTopK(items)(users, k, exclude=excluded(rows))
    values, expected = reference(users @ items.T, k, rows)
    assert columns.tolist() == expected
    assert scores.tolist() == values


def test_the_result_does_not_depend_on_blocks_and_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk, "BLOCK_BYTES", 0)  # sixteen rows a block
    generator = torch.Generator().manual_seed(0)
    items, users = torch.randn(1500, 8, generator=generator), torch.randn(50, 8, generator=generator)
    rows = [[row, 1499 - row] for row in range(50)]
    search = ExactTopK(items)
    # Another k folds the columns otherwise; fewer rows take a part of the buffer.
    for k, num_users in ((100, 50), (7, 50), (7, 3), (100, 50)):
        found = search(users[:num_users], k, exclude=excluded(rows[:num_users]))
        values, expected = reference(users[:num_users] @ items.T, k, rows[:num_users])
        assert found[1].tolist() == expected
        torch.testing.assert_close(found[0], torch.tensor(values))


def test_each_column_appears_once_when_all_scores_are_equal() -> None:
    scores, columns = ExactTopK(torch.zeros(3000, 4))(torch.randn(5, 4), 100)
    assert all(len(set(row)) == 100 for row in columns.tolist())
    assert (scores == 0).all()


def test_no_requests() -> None:
    scores, columns = ExactTopK(torch.zeros(30, 4))(torch.zeros(0, 4), 10)
    assert scores.shape == columns.shape == (0, 10)


def test_write_gets_the_first_row_of_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk, "BLOCK_BYTES", 0)

    def write(begin: int, out: Tensor) -> None:
        out[:] = torch.arange(3.0) * torch.where(torch.arange(begin, begin + len(out)) < 20, 1, -1).unsqueeze(1)

    _, columns = BlockedTopK(3)(40, 2, write=write)
    assert columns.tolist() == [[2, 1]] * 20 + [[0, 1]] * 20


def test_a_large_corpus_is_searched_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    items, users = torch.randn(103, 4), torch.randn(7, 4)
    gone = excluded([[0, 39, 40, 102], [], [41], [80], [79, 102], [5], []])
    whole = [ExactTopK(items)(users, k, exclude=gone) for k in (5, 110)]
    monkeypatch.setattr(topk, "MOST_COLUMNS", 40)
    search = ExactTopK(items)
    for (scores, rows), k in zip(whole, (5, 110), strict=True):
        found = search(users, k, exclude=gone)
        torch.testing.assert_close(found[0], scores)
        assert torch.equal(found[1], rows)
    assert search._search._buffer.shape[1] < 50
