"""Lists of cold items alone, against plain scores of the same embeddings."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from handmade import handmade, random_users

from recsys.core.errors import UserError
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import CorpusSearch, RequestCounter, check_finite
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


def test_many_rows_are_checked_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of a corpus must not need as much memory as the corpus."""
    checked, original = [], torch.isfinite

    def isfinite(rows: torch.Tensor) -> torch.Tensor:
        checked.append(len(rows))
        return original(rows)

    monkeypatch.setattr(torch, "isfinite", isfinite)
    rows = torch.zeros(150_000, 1, 2)
    check_finite(rows, "item embeddings")
    assert sum(checked) == 150_000
    assert max(checked) <= 65_536
    rows[149_999] = torch.nan
    with pytest.raises(UserError, match="1 of 150000 item embeddings are not finite"):
        check_finite(rows, "item embeddings")
    check_finite(torch.zeros(0, 3), "lists of scores")
