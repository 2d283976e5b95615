"""Turns of several lists, by hand and against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.index.merging import RankedLists, present_embeddings, take_turns

NONE = -np.inf


def one_user(lists: list[list[tuple[float, int]]], k: int) -> list[tuple[float, int]]:
    """The merged list of one user."""
    depth = max(len(results) for results in lists)
    scores = np.full((1, len(lists), depth), NONE, np.float32)
    rows = np.full((1, len(lists), depth), -1)
    for m, results in enumerate(lists):
        for at, (score, row) in enumerate(results):
            scores[0, m, at], rows[0, m, at] = score, row
    found = take_turns(scores, rows, k=k)
    assert (found[0].shape, found[0].dtype, found[1].dtype) == ((1, k), np.float32, np.int64)
    return [(float(score), int(row)) for score, row in zip(found[0][0], found[1][0], strict=True)]


def test_lists_take_turns_whatever_their_scores() -> None:
    first, second = [(0.5, 10), (0.25, 11), (0.125, 12)], [(8.0, 20), (4.0, 21), (2.0, 22)]
    assert one_user([first, second], 5) == [(0.5, 10), (8.0, 20), (0.25, 11), (4.0, 21), (0.125, 12)]


def test_an_item_counts_once_and_costs_its_first_list_a_turn() -> None:
    # The second list's best was given by the first, so it gives its next; so does the first in the third turn.
    first, second = [(9, 1), (8, 2), (7, 3), (6, 4)], [(5, 1), (4, 2), (3, 5), (2, 6)]
    assert one_user([first, second], 4) == [(9, 1), (4, 2), (7, 3), (3, 5)]


def test_the_other_lists_use_an_unspent_budget() -> None:
    # Six results of three lists: two each. The first has one, the third one that is not given yet; the second has four.
    lists = [[(9.0, 1)], [(8.0, 2), (7.0, 3), (6.0, 4), (5.0, 5)], [(4.0, 2), (3.0, 6)]]
    assert one_user(lists, 6) == [(9, 1), (8, 2), (3, 6), (7, 3), (6, 4), (5, 5)]
    assert one_user(lists, 7)[6] == (NONE, -1)


def test_users_with_fewer_or_no_embeddings() -> None:
    rows = np.array([[[3, 4], [-1, -1]], [[-1, -1], [7, 8]], [[-1, -1], [-1, -1]]])
    scores = np.where(rows < 0, NONE, rows / 2).astype(np.float32)
    found_scores, found = take_turns(scores, rows, k=2)
    assert found.tolist() == [[3, 4], [7, 8], [-1, -1]]
    assert found_scores.tolist() == [[1.5, 2.0], [3.5, 4.0], [NONE, NONE]]
    assert take_turns(scores[:0], rows[:0], k=3)[1].shape == (0, 3)


def test_embeddings_of_zeros_are_absent_except_the_first() -> None:
    users = np.array([[[0, 1], [1, 0], [0, 0]], [[0, 0], [0, 0], [0, -1]]], np.float32)
    assert present_embeddings(users).tolist() == [[True, True, False], [True, False, True]]


def by_loop(lists: list[list[int]], k: int) -> list[int]:
    given, waiting = [], [list(results) for results in lists]
    while len(given) < k and any(waiting):
        for results in waiting:
            while results and results[0] in given:
                results.pop(0)
            if results and len(given) < k:
                given.append(results.pop(0))
    return given + [-1] * (k - len(given))


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 5), st.integers(1, 12), st.integers(1, 30), st.integers(0, 2**31))
def test_equals_a_plain_loop(num_lists: int, k: int, num_items: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = np.full((6, num_lists, k), -1)
    for lists in rows:
        for results in lists:
            length = rng.integers(0, min(k, num_items) + 1)
            results[:length] = rng.permutation(num_items)[:length]
    scores = np.where(rows < 0, NONE, rng.random(rows.shape)).astype(np.float32)
    found_scores, found = take_turns(scores, rows, k=k)
    for user in range(6):
        lists = [results[results >= 0].tolist() for results in rows[user]]
        assert found[user].tolist() == by_loop(lists, k)
        for score, row in zip(found_scores[user], found[user], strict=True):
            assert row < 0 or score in scores[user][rows[user] == row]


def test_lists_of_k_results_are_deep_enough() -> None:
    rng = np.random.default_rng(0)
    rows = np.stack([np.stack([rng.permutation(40) for _ in range(4)]) for _ in range(50)])
    scores = np.zeros(rows.shape, np.float32)
    for k in (1, 7, 40):
        assert np.array_equal(take_turns(scores[..., :k], rows[..., :k], k=k)[1], take_turns(scores, rows, k=k)[1])


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_no_list_exceeds_its_budget(k: int) -> None:
    rows = np.arange(30).reshape(1, 3, 10)
    _, found = take_turns(np.zeros(rows.shape, np.float32), rows, k=k)
    assert np.bincount(found[0] // 10, minlength=3).max() == -(-k // 3)


def test_rounds_of_budgets() -> None:
    pool = RankedLists(np.array([[[1, 2, 3, 4], [2, 5, -1, -1], [9, 8, 7, 6]]]))
    # One of the first and two of the second list: 1, 2, 5. Then the first as long as it can: 3, 4. Then the third.
    places = pool.merge(7, [[1, 2, 0], [4, 0, 0], [0, 0, 4]])
    # Place p of list m is 4 m + p.
    assert places.tolist() == [[0, 4, 5, 2, 3, 8, 9]]
    assert pool.merge(2, [[1, 2, 0]]).tolist() == [[0, 4]]
    assert pool.merge(4, [[1, 0, 0]]).tolist() == [[0, -1, -1, -1]]
