import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.core.columns import Ragged
from recsys.index import topk
from recsys.index.topk import exact_search, pack, unpack


def reference(embeddings, queries, k, allow=None, exclude=None):
    """Every score, sorted by (-score, row)."""
    scores = queries @ embeddings.T
    if allow is not None:
        scores[:, ~allow] = -np.inf
    for query, rows in enumerate(exclude or []):
        scores[query, rows] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, axis=1)
    order[best == -np.inf] = -1
    missing = ((0, 0), (0, k - order.shape[1]))
    return np.pad(best, missing, constant_values=-np.inf), np.pad(order, missing, constant_values=-1)


def ragged(rows):
    offsets = np.cumsum([0, *(len(r) for r in rows)], dtype=np.int64)
    return Ragged(np.array([value for row in rows for value in row], np.int32), offsets)


def test_by_hand():
    embeddings = np.array([[1, 0], [0, 1], [2, 0], [1, 0]], np.float32)
    queries = np.array([[1, 0], [-1, 1]], np.float32)
    # Inner products: [1, 0, 2, 1] and [-1, 1, -2, -1]; rows 0 and 3 are equal, the lower comes first.
    scores, rows = exact_search(embeddings, queries, k=3)
    assert rows.tolist() == [[2, 0, 3], [1, 0, 3]]
    assert scores.tolist() == [[2, 1, 1], [1, -1, -1]]
    scores, rows = exact_search(embeddings, queries, k=3, rows=np.array([0, 3]), exclude=ragged([[2, 3], []]))
    assert rows.tolist() == [[0, -1, -1], [0, 3, -1]]
    assert scores[0].tolist() == [1, -np.inf, -np.inf]


def test_keys_keep_scores_and_rows():
    scores = np.array([[0.0, -0.0, 1.5, -1.5, np.inf, -np.inf, 1e-40]], np.float32)
    rows = np.array([[0, 1, 2**32 - 1, 3, 4, 5, 6]])
    found_scores, found_rows = unpack(np.sort(pack(scores, rows), axis=1)[:, ::-1])
    assert found_scores.tolist() == [[np.inf, 1.5, np.float32(1e-40), 0.0, 0.0, -1.5, -np.inf]]
    assert found_rows.tolist() == [[4, 2**32 - 1, 6, 0, 1, 3, -1]]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(topk, "QUERY_BLOCK", 3)
    monkeypatch.setattr(topk, "ITEM_BLOCK", 64)
    monkeypatch.setattr(topk, "GROUP", 4)


@pytest.mark.usefixtures("small_blocks")
def test_equals_sorting_everything_with_many_ties():
    @settings(max_examples=150, deadline=None)
    @given(
        seed=st.integers(0, 2**32 - 1), num_items=st.integers(1, 300), k=st.integers(1, 40), levels=st.integers(1, 6)
    )
    def check(seed, num_items, k, levels):
        rng = np.random.default_rng(seed)
        # Small integers: products are exact in any order, and ties are everywhere.
        embeddings = rng.integers(-levels, levels + 1, (num_items, 3)).astype(np.float32)
        queries = rng.integers(-levels, levels + 1, (7, 3)).astype(np.float32)
        exclude = [rng.integers(0, num_items, rng.integers(0, 30)).tolist() for _ in range(7)]
        allow = rng.random(num_items) < rng.random()
        for mask in (None, allow):
            rows = None if mask is None else np.flatnonzero(mask)
            found = exact_search(embeddings, queries, k=k, rows=rows, exclude=ragged(exclude))
            expected = reference(embeddings, queries, k, mask, exclude)
            assert np.array_equal(found[1], expected[1])
            assert np.array_equal(found[0], expected[0])

    check()


def test_full_blocks_equal_sorting_everything():
    rng = np.random.default_rng(0)
    embeddings = rng.integers(-9, 10, (40_000, 8)).astype(np.float32)
    queries = rng.integers(-9, 10, (150, 8)).astype(np.float32)
    queries[0] = 0  # every item ties
    scores, rows = exact_search(embeddings, queries, k=100)
    expected_scores, expected_rows = reference(embeddings, queries, 100)
    assert np.array_equal(rows, expected_rows)
    assert np.array_equal(scores, expected_scores)
    assert rows[0].tolist() == list(range(100))
