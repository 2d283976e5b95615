"""Ranked lists of generators, which do not look at the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from recsys.core.columns import Ragged
from recsys.data.batches.builder import BatchBuilder
from recsys.data.dataset import PreparedDataset, Requests

Lists = tuple[list[list[float]], list[list[int]]]


@pytest.fixture
def rank() -> Callable[..., Lists]:
    """`rank(generator, dataset, users, ends, k, exclude)`: scores and items as lists."""

    def ranked(
        generator: Any,
        dataset: PreparedDataset,
        users: list[int],
        ends: list[int],
        k: int,
        exclude: Ragged | None = None,
    ) -> Lists:
        requests = Requests(np.array(users), np.array(ends))
        batch = BatchBuilder(dataset, 1).requests(requests)
        scores, items = generator.rank(batch, requests, k=k, exclude=exclude)
        assert scores.shape == items.shape == (len(users), k)
        return scores.tolist(), items.tolist()

    return ranked
