"""An index and items beside it answer as one index of all would."""

import numpy as np
import pytest
from user_queries import make_queries

from recsys.core.columns import Ragged
from recsys.index import AllowedRows, Exact, ExtendedIndex, exact_search, search_users


@pytest.mark.parametrize("num_added", [1, 700])
def test_equals_exact_search_of_all(items, num_added):
    index = Exact()
    index.build(items[:1000])
    extended = ExtendedIndex(index, items[1000 : 1000 + num_added])
    both, queries = items[: 1000 + num_added], make_queries(items, 30)
    rng = np.random.default_rng(1)
    excluded = rng.integers(0, len(both), 30 * 40).astype(np.int32)
    exclude = Ragged(excluded, np.arange(31) * 40)
    for k in (1, 50, 3000):
        scores, rows = extended.search(queries, k, allow=None, exclude=exclude)
        expected_scores, expected_rows = exact_search(both, queries, k=k, rows=None, exclude=exclude)
        # Products of other shapes are rounded in another way: rows change places where scores are all but equal.
        np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(np.sort(rows), np.sort(expected_rows))


def test_filters_apply_to_both_sides(items):
    index = Exact()
    index.build(items[:1000])
    mask = np.random.default_rng(2).random(1200) < 0.3
    extended = ExtendedIndex(index, items[1000:1200], allowed=np.flatnonzero(mask[1000:]))
    queries = make_queries(items, 30)
    _, rows = extended.search(queries, 20, allow=AllowedRows(mask[:1000]))
    np.testing.assert_array_equal(rows, exact_search(items[:1200], queries, k=20, rows=np.flatnonzero(mask))[1])


def test_several_embeddings_of_a_user_take_turns_over_both(items):
    index, whole = Exact(), Exact()
    index.build(items[:1000])
    whole.build(items[:1500])
    users = make_queries(items, 40).reshape(20, 2, -1)
    users[3, 1] = 0
    _, rows = search_users(ExtendedIndex(index, items[1000:1500]), users, k=30)
    np.testing.assert_array_equal(rows, search_users(whole, users, k=30)[1])
