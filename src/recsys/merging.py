"""One ranked list for a user from the lists of several embeddings. Imports no torch.

Scores of different embeddings do not compare: by score, the lists of strong interests push out those of weak ones. So
lists take turns (Pinterest, "Advancements in Embedding-Based Retrieval", 2025, where merging by score was worse).
Shapes: B users, M embeddings, D dim, K results.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


def present(users: Floats) -> npt.NDArray[np.bool_]:
    """Which of the embeddings [B, M, D] of a user there are: bool [B, M]; one of zeros is none, except the first."""
    there: npt.NDArray[np.bool_] = np.any(users, axis=2)
    there[:, 0] = True
    return there


def take_turns(scores: Floats, rows: Rows, k: int) -> tuple[Floats, Rows]:
    """Merge ranked lists: in turns, each gives its best item that was not given before.

    So every list has the same budget, k over the number of a user's lists. What a list cannot spend, because it has run
    out, is left to the others.

    Args:
        scores: float32 [B, M, K], best first.
        rows: int64 [B, M, K], -1 where a list has no further result; once in a list.
        k: results of a user. With K = k the answer is what it would be with lists of any length.

    Returns:
        scores float32 [B, k], each from the list that gave the item, and rows int64 [B, k] in the order of the turns;
        -inf and -1 where there is no further result.
    """
    num_users, num_lists, depth = rows.shape
    out_scores = np.full((num_users, k), -np.inf, np.float32)
    out_rows = np.full((num_users, k), -1, np.int64)
    number = _numbered(rows)
    given = np.zeros((num_users, num_lists * depth), bool)
    count = np.zeros(num_users, np.int64)
    turns = [np.flatnonzero(rows[:, m, 0] >= 0) if depth else np.zeros(0, np.int64) for m in range(num_lists)]
    while any(map(len, turns)):
        for m, users in enumerate(turns):
            users = users[count[users] < k]
            free = (rows[users, m] >= 0) & ~given[users[:, None], number[users, m]]
            able = free.any(axis=1)
            users, at = users[able], free[able].argmax(axis=1)
            given[users, number[users, m, at]] = True
            out_scores[users, count[users]] = scores[users, m, at]
            out_rows[users, count[users]] = rows[users, m, at]
            count[users] += 1
            # A list that had nothing to give has run out.
            turns[m] = users
    return out_scores, out_rows


def _numbered(rows: Rows) -> Rows:
    """Numbers below M * K instead of the rows [B, M, K], equal within a user where the rows are."""
    flat = rows.reshape(len(rows), rows.shape[1] * rows.shape[2])
    order = np.argsort(flat, axis=1, kind="stable")
    ordered = np.take_along_axis(flat, order, axis=1)
    group = np.zeros_like(flat)
    np.cumsum(ordered[:, 1:] != ordered[:, :-1], axis=1, out=group[:, 1:])
    numbers = np.empty_like(flat)
    np.put_along_axis(numbers, order, group, axis=1)
    return numbers.reshape(rows.shape)
