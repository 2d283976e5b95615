"""Merging of the ranked lists of a user's several embeddings into one list. Imports no torch.

Scores of different embeddings cannot be compared: if lists were merged by score, the lists of strong interests would
push out those of weak ones. So lists take turns (Pinterest, "Advancements in Embedding-Based Retrieval", 2025, where
merging by score was worse). Shapes: B users, M embeddings, D dim, K results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from recsys.core.columns import Ragged
from recsys.core.types import Float32Array
from recsys.index.ann_index import Searchable
from recsys.index.extended import ExtendedIndex
from recsys.index.topk import Rows

A = TypeVar("A")


def present_embeddings(users: Float32Array) -> npt.NDArray[np.bool_]:
    """Return a mask [B, M] of the embeddings [B, M, D] that exist. Zeros are absent, but the first always exists."""
    present: npt.NDArray[np.bool_] = np.any(users, axis=2)
    present[:, 0] = True
    return present


def take_turns(scores: Float32Array, rows: Rows, *, k: int) -> tuple[Float32Array, Rows]:
    """Merge ranked lists: in turns, each list gives its best item that no list has given before.

    Every list has the same budget, k over the number of a user's lists. If a list runs out, the others use its rest.

    Args:
        scores: float32 [B, M, K], best first.
        rows: int64 [B, M, K], each row at most once in a list; -1 after the last result.
        k: results of a user. Lists of K = k results give the same answer as longer ones.

    Returns:
        Scores float32 [B, k], each from the list that gave the item, and rows int64 [B, k] in the order of the turns;
        -inf and -1 after the last result.
    """
    num_users, num_lists, depth = rows.shape
    places = RankedLists(rows).merge(k, [[k] * num_lists])
    found = places >= 0
    of_user, _ = np.nonzero(found)
    flat = places[found]
    out_scores = np.full((num_users, k), -np.inf, np.float32)
    out_rows = np.full((num_users, k), -1, np.int64)
    out_scores[found] = scores.reshape(num_users, num_lists * depth)[of_user, flat]
    out_rows[found] = rows.reshape(num_users, num_lists * depth)[of_user, flat]
    return out_scores, out_rows


def search_users(
    index: Searchable[A] | ExtendedIndex[A],
    users: Float32Array,
    *,
    k: int,
    allow: A | None = None,
    exclude: Ragged | None = None,
) -> tuple[Float32Array, Rows]:
    """Return the k best items of each user: scores float32 [B, k] and rows int64 [B, k].

    Users have one embedding [B, D], then the result is that of `Index.search`, or up to M [B, M, D], absent ones zeros.
    Then the order is that of `take_turns`, and each score comes from the embedding that found the item.
    """
    if users.ndim == 2:
        return index.search(users, k, allow=allow, exclude=exclude)
    present = present_embeddings(users)
    owner = np.nonzero(present)[0]
    scores = np.full((*present.shape, k), -np.inf, np.float32)
    rows = np.full((*present.shape, k), -1, np.int64)
    excluded = None if exclude is None else exclude.take(owner)
    scores[present], rows[present] = index.search(users[present], k, allow=allow, exclude=excluded)
    return take_turns(scores, rows, k=k)


class RankedLists:
    """Ranked lists, rows int64 [B, M, K] with -1 after the last result, which `merge` can merge in several ways."""

    def __init__(self, rows: Rows) -> None:
        self.number = _numbered(rows)
        self.length = (rows >= 0).sum(axis=2)

    def merge(self, k: int, rounds: Sequence[Sequence[int]]) -> Rows:
        """Return the origin of each result of a merged list: m * K + place in list m; int64 [B, k], -1 after the last.

        `rounds` has M budgets for each round. In a round lists take turns until each has spent its budget or run out.
        """
        num_users, num_lists, depth = self.number.shape
        out = np.full((num_users, k), -1, np.int64)
        given = np.zeros((num_users, num_lists * depth), bool)
        count = np.zeros(num_users, np.int64)
        # Next unread position of each list.
        at = np.zeros((num_lists, num_users), np.int64)
        for budgets in rounds:
            left = list(budgets)
            turns = [np.arange(num_users) if budget > 0 else np.zeros(0, np.int64) for budget in left]
            while any(map(len, turns)):
                for m, users in enumerate(turns):
                    if not len(users):
                        continue
                    users = users[count[users] < k]
                    users = self._skip(m, users, at=at[m], given=given)
                    place = at[m, users]
                    given[users, self.number[users, m, place]] = True
                    out[users, count[users]] = m * depth + place
                    at[m, users] += 1
                    count[users] += 1
                    left[m] -= 1
                    # Users whose list m has run out left `users` in `_skip`.
                    turns[m] = users if left[m] > 0 else users[:0]
        return out

    def _skip(self, m: int, users: Rows, *, at: Rows, given: npt.NDArray[np.bool_]) -> Rows:
        """Move `at` to each user's next item of list m that was not given; return the users whose list has one."""
        length = self.length[:, m]
        moving = users[at[users] < length[users]]
        while len(moving):
            moving = moving[given[moving, self.number[moving, m, at[moving]]]]
            at[moving] += 1
            moving = moving[at[moving] < length[moving]]
        able: Rows = users[at[users] < length[users]]
        return able


def _numbered(rows: Rows) -> Rows:
    """Replace rows [B, M, K] by numbers below M * K, equal for equal rows of a user."""
    flat = rows.reshape(len(rows), rows.shape[1] * rows.shape[2])
    order = np.argsort(flat, axis=1, kind="stable")
    ordered = np.take_along_axis(flat, order, axis=1)
    group = np.zeros_like(flat)
    np.cumsum(ordered[:, 1:] != ordered[:, :-1], axis=1, out=group[:, 1:])
    numbers = np.empty_like(flat)
    np.put_along_axis(numbers, order, group, axis=1)
    return numbers.reshape(rows.shape)
