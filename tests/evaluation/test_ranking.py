"""Lists of cold items alone, against plain scores of the same embeddings."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from handmade import handmade, random_users

from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import CorpusSearch, RequestCounter
from recsys.evaluation.relevance import relevant_items, seen_items


@pytest.mark.parametrize("knows_cold", [True, False])
def test_recall_among_cold_items(knows_cold: bool) -> None:
    rng = np.random.default_rng(3)
    data = handmade(random_users(rng, 80, 60))
    requests = data.requests("test")
    users, items = torch.randn(len(requests.user_idx), 4), torch.randn(data.num_items + 1, 4)
    is_cold = data.train_count == 0
    # One cold item is not in the corpus.
    corpus = np.flatnonzero(~is_cold)[1:] if not knows_cold else np.arange(1, data.num_items)
    metrics = RetrievalMetrics(data, len(corpus), cutoffs=(2, 5))
    search = CorpusSearch(items[corpus], corpus)
    RequestCounter(search, data, part="test", metrics=metrics).count(users, requests)

    scores = (users @ items.T).numpy()
    expected = []
    relevant, seen = (
        [rows.values[a:b] for a, b in itertools.pairwise(rows.offsets)]
        for rows in (relevant_items(data, "test", requests=requests), seen_items(data, requests))
    )
    for row, wanted in enumerate(relevant):
        cold = {item for item in wanted.tolist() if is_cold[item]}
        shown = [i for i in np.argsort(-scores[row]) if i in corpus and is_cold[i] and i not in seen[row]][:5]
        if cold:
            expected.append(len(cold & set(shown)) / len(cold))
    assert len(expected) > 5
    assert (np.mean(expected) > 0) == knows_cold
    assert metrics.compute()["among_cold_items/recall@5"] == pytest.approx(np.mean(expected))
