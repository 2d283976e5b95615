"""Random walks on the graph of users and items: Pixie (Eksombatchai et al. 2018, arXiv 1711.07601).

Shapes: H histories of a block, I items of a block, N items, W walks from an item, T steps of all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from scipy.sparse import vstack as stack_rows
from torch import Tensor

from recsys.baselines.interactions import NUM_ENTRIES, Interactions, best_of_rows, dense_if_full, sum_rows
from recsys.core.columns import Ragged
from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.data.batches.batch import Batch
from recsys.data.dataset import Requests

Items = npt.NDArray[np.int32]


class RandomWalk:
    """Scores an item by how often random walks from the items of the history visit it.

    A step goes from an item to one of its users, and on to one of that user's items, each with equal probability. After
    each step a walk ends with probability `restart`, and another begins. With |E(q)| users of item q, and C the largest
    such number, the share of steps from q is s_q / (sum of s_r over the history), where `s_q = |E(q)| (C - log |E(q)|)`
    (section 3.1, equations 1 and 2). Items that walks from several items reach are boosted: with V_q visits from q the
    score is `(sum of sqrt(V_q) over the history)^2` (equation 3), here in visits per step of the request.

    Pixie walks at request time. This class walks from every item once, which gives the same frequencies, and combines
    them for any number of requests. Items that no walk visits follow after all others, most popular first.

    Args:
        restart: probability that a walk ends after a step; small values wander towards popular items.
        num_steps: number of steps from each item, T; more steps are more exact.
        num_recent: number of most recent events to walk from; null for the whole history.
        num_neighbours: number of most visited items that each item keeps; bounds the memory.
        seed: seed of the walks.
    """

    def __init__(
        self,
        restart: float = 0.5,
        num_steps: int = 5000,
        *,
        num_recent: int | None = None,
        num_neighbours: int = 500,
        seed: int = 0,
    ) -> None:
        if not 0 < restart <= 1:
            raise UserError(f"generator.restart={restart}: expected a probability above 0")
        for name, value in (("num_steps", num_steps), ("num_recent", num_recent), ("num_neighbours", num_neighbours)):
            if value is not None and value < 1:
                raise UserError(f"generator.{name}={value}: expected at least 1")
        self.restart, self.num_steps, self.num_recent = restart, num_steps, num_recent
        self.num_neighbours, self.seed = num_neighbours, seed

    def fit(self, events: Interactions) -> None:
        """Walk from every item, in blocks of items."""
        if self.num_recent is not None and not events.dataset.meta.time_resolution.has_order:
            raise UserError(
                f"generator.num_recent={self.num_recent}: data.time=none has no recent events; leave it at null"
            )
        users = events.users
        items = users.T.tocsr()
        degrees = np.diff(items.indptr)
        self._steps = (degrees * (degrees.max() - np.log(degrees))).astype(np.float32)
        alive = walks_at_step(self.num_steps, self.restart)
        num_steps, rng, pieces = int(alive.sum()), np.random.default_rng(self.seed), []
        height = max(1, NUM_ENTRIES // num_steps)
        for begin in range(0, events.num_items, height):
            starts = np.arange(begin, min(begin + height, events.num_items), dtype=np.int32)
            visits = _walk(starts, alive, items=items, users=users, rng=rng)
            ends = np.arange(len(starts) + 1) * num_steps
            ones = np.full(visits.size, 1 / num_steps, np.float32)
            shares = csr_matrix((ones, visits.ravel(), ends), shape=(len(starts), events.num_items))
            shares.sum_duplicates()
            pieces.append(best_of_rows(shares, self.num_neighbours))
        self._roots = dense_if_full(stack_rows(pieces).sqrt().tocsr())
        self._events, self._fallback = events, events.fallback()

    def rank(self, batch: Batch, requests: Requests, *, k: int, exclude: Ragged | None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Rank items for each request; see `recsys.evaluation.ranking.Ranker`."""
        return self._events.rank(requests, k, exclude, self._score, self.num_recent)

    def _score(self, histories: Any, out: Float32Array) -> None:
        shares = histories.copy()
        shares.data = self._steps[shares.indices]
        rows = np.repeat(np.arange(len(out)), np.diff(shares.indptr))
        shares.data /= np.bincount(rows, shares.data, len(out))[rows]
        # A sum of square roots of products is a matrix product of square roots.
        sum_rows(shares.sqrt(), self._roots, fallback=self._fallback, out=out)
        np.square(out, out=out, where=out > 0)


def walks_at_step(num_steps: int, restart: float) -> npt.NDArray[np.int64]:
    """Return the number of walks from an item that take a first, second, ... step, about `num_steps` steps together.

    These are the expected numbers, so that the lengths of walks add no variance.
    """
    num_walks = max(1, round(num_steps * restart))
    alive: npt.NDArray[np.int64] = np.rint(num_walks * (1 - restart) ** np.arange(num_steps)).astype(np.int64)
    return alive[alive > 0]


def _walk(starts: Items, alive: npt.NDArray[np.int64], *, items: Any, users: Any, rng: np.random.Generator) -> Items:
    """Return the items that walks from each of `starts` visit, first steps first; int32 [I, T]."""
    at = np.repeat(starts[:, None], alive[0], axis=1)
    visits = []
    for num_walks in alive:
        at = _neighbour(users, _neighbour(items, at[:, :num_walks], rng=rng), rng=rng)
        visits.append(at)
    return np.concatenate(visits, axis=1)


def _neighbour(edges: Any, nodes: Items, *, rng: np.random.Generator) -> Items:
    """Return a random neighbour of each node, by the rows of a csr matrix."""
    begin = edges.indptr[nodes]
    num_neighbours = (edges.indptr[nodes + 1] - begin).astype(np.uint64)
    # Scale a random 32-bit integer to the number of neighbours.
    draws = rng.integers(0, 1 << 32, nodes.shape, np.uint32)
    chosen: Items = edges.indices[begin + ((draws * num_neighbours) >> np.uint64(32)).astype(begin.dtype)]
    return chosen
