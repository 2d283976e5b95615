"""Clustered items, and queries unlike them."""

import numpy as np
import pytest
from user_queries import make_queries

N, D = 12_000, 32


@pytest.fixture(scope="session")
def items():
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((60, D), np.float32)
    items = centers[rng.integers(0, 60, N)] + 0.5 * rng.standard_normal((N, D), np.float32)
    return items / np.linalg.norm(items, axis=1, keepdims=True)


@pytest.fixture(scope="session")
def queries(items):
    return make_queries(items, 200)
