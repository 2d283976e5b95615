"""Queries that are distributed as users are, not as items: mixtures of items, plus noise."""

import numpy as np


def make_queries(items, num_queries, seed=1):
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(3), num_queries).astype(np.float32)
    queries = np.einsum("qn,qnd->qd", weights, items[rng.integers(0, len(items), (num_queries, 3))])
    return queries + 0.05 * rng.standard_normal(queries.shape, np.float32)
