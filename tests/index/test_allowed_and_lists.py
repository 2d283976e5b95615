"""Data that the searches of a filter share, and the predicted number of lists."""

import numpy as np
import pytest
from user_queries import make_queries

from recsys.core.errors import UserError
from recsys.index import AllowedRows, Exact, IVFFlat, exact_search
from recsys.index.lists import _above


@pytest.mark.parametrize("size", [1, 7, 8, 9, 1000])
def test_bits_hold_the_mask(size):
    mask = np.random.default_rng(size).random(size) < 0.4
    allowed = AllowedRows(mask)
    assert allowed.num_items == size
    assert allowed.num_allowed == mask.sum()
    assert (allowed.mask == mask).all()
    assert (allowed.rows == np.flatnonzero(mask)).all()
    # Bit i % 8 of byte i // 8, as faiss reads it.
    assert [bool(allowed.bitmap[row // 8] >> (row % 8) & 1) for row in range(size)] == mask.tolist()


def test_many_rows_are_not_kept(monkeypatch):
    monkeypatch.setattr("recsys.index.allowed.KEPT_ROWS", 3)
    few, many = AllowedRows(np.arange(10) < 3), AllowedRows(np.arange(10) < 4)
    assert few.rows is few.rows
    assert many.rows is not many.rows
    assert many.rows.tolist() == [0, 1, 2, 3]


def test_mask_and_allowed_give_the_same(items):
    mask = np.random.default_rng(0).random(len(items)) < 0.3
    queries = make_queries(items, 20)
    for index in (Exact(), IVFFlat()):
        index.build(items)
        for one, other in zip(
            index.search(queries, 10, allow=mask), index.search(queries, 10, allow=AllowedRows(mask)), strict=True
        ):
            np.testing.assert_array_equal(one, other)
        with pytest.raises(UserError, match="allow: found rows of 3 items, expected 12000"):
            index.search(queries, 10, allow=AllowedRows(mask[:3]))


def test_normal_tail():
    """Values of the table of the standard normal distribution."""
    expected = {-1.0: 0.8413, 0.0: 0.5, 1.0: 0.1587, 1.645: 0.05, 2.0: 0.0228, 3.0: 0.0013}
    found = _above(np.array(list(expected), np.float32))
    np.testing.assert_allclose(found, list(expected.values()), atol=2e-4)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_predicted_lists_hold_the_best_allowed_items(items, share):
    index = IVFFlat()
    index.build(items)
    allowed = AllowedRows(np.random.default_rng(3).random(len(items)) < share)
    queries = make_queries(items, 50)
    lists = index._lists
    needed = lists.needed(queries, allowed, wanted=50)
    _, best = exact_search(items, queries, k=50, rows=allowed.rows)
    rank = np.argsort(np.argsort(-(queries @ lists._centroids.T), axis=1), axis=1)
    rank_of_best = np.take_along_axis(rank, lists._list_of_row[best].astype(np.int64), axis=1)
    assert (rank_of_best < needed[:, None]).mean() > 0.93
    assert needed.mean() < index.max_breadth / 2  # and not by reading everything
    # The list of a row is the one that faiss put it in.
