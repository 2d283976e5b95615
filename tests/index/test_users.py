"""Users with several embeddings: every one is searched for, and they take turns."""

import numpy as np
import pytest
from user_queries import make_queries

from recsys.core.columns import Ragged
from recsys.index import Exact, IVFFlat, search_users, tune
from recsys.index.merging import take_turns


@pytest.fixture(scope="module")
def users(items):
    """20 users of 3 embeddings, of which some are absent."""
    users = make_queries(items, 60, seed=3).reshape(20, 3, -1)
    users[5, 2] = users[6, 1:] = users[7, 1] = 0
    return users


def test_each_present_embedding_is_searched(items, users):
    index = Exact()
    index.build(items)
    rng = np.random.default_rng(0)
    allow = rng.random(len(items)) < 0.5
    gone = [rng.integers(0, len(items), rng.integers(0, 9)) for _ in users]
    # The first result of each user is excluded.
    gone[0] = np.append(gone[0], np.argmax(np.where(allow, items @ users[0, 0], -np.inf)))
    exclude = Ragged(np.concatenate(gone).astype(np.int32), np.cumsum([0, *(len(row) for row in gone)], dtype=np.int64))
    scores, rows = search_users(index, users, k=12, allow=allow, exclude=exclude)
    asked = []
    for number, user in enumerate(users):
        logits = np.where(allow, user @ items.T, -np.inf)
        logits[:, gone[number]] = -np.inf
        order = np.argsort(-logits, axis=1, kind="stable")[:, :12]
        lists = np.where(user.any(axis=1)[:, None], order, -1)
        expected_scores, expected = take_turns(np.take_along_axis(logits, order, 1)[None], lists[None], k=12)
        assert rows[number].tolist() == expected[0].tolist()
        np.testing.assert_allclose(scores[number], expected_scores[0], atol=1e-5)
        asked.append(int(user.any(axis=1).sum()))
    assert [asked[5], asked[6], asked[7]] == [2, 1, 2]
    assert len(set(rows[6])) == 12
    # One embedding: its own list, in order.
    assert (np.diff(scores[6]) <= 0).all()


def test_an_approximate_index_finds_almost_the_same(items, users):
    index = IVFFlat()
    index.build(items)
    tune(index, items, queries=make_queries(items, 100), recall_target=1.0, k=20)
    exact = Exact()
    exact.build(items)
    found, expected = (search_users(kind, users, k=20)[1] for kind in (index, exact))
    assert np.mean([len(set(a) & set(b)) / 20 for a, b in zip(found, expected, strict=True)]) > 0.97


def test_one_embedding_is_searched_directly(items, queries):
    index = Exact()
    index.build(items)
    for found, expected in zip(search_users(index, queries, k=9), index.search(queries, 9), strict=True):
        assert np.array_equal(found, expected)
