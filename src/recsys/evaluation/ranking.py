"""Ranking with a model: user embeddings against the embeddings of the whole corpus."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from recsys.core.columns import Ragged
from recsys.data.batches.batch import Batch, RaggedTensor
from recsys.data.dataset import Part, PreparedDataset, Requests
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.relevance import relevant_items, seen_items
from recsys.evaluation.topk import ExactTopK
from recsys.index.merging import present_embeddings, take_turns
from recsys.models.blend import Model


class Ranker(Protocol):
    """Whatever ranks items for requests: a model, or a heuristic generator."""

    def rank(self, batch: Batch, requests: Requests, k: int, exclude: Ragged | None) -> tuple[Tensor, Tensor]:
        """Scores float32 [R, k] and item_idx int64 [R, k], best first; -inf and 0 where there is no further result.

        Args:
            batch: the histories of the requests.
            requests: the same, as positions in the data set.
            k: results a request.
            exclude: item_idx that each request must not get.
        """
        ...


class CorpusSearch:
    """Exact search of a corpus for user embeddings.

    Args:
        embeddings: of the corpus, [N, D].
        corpus: item_idx of the same items, ascending; int64 [N].
    """

    def __init__(self, embeddings: Tensor, corpus: npt.NDArray[np.int64]) -> None:
        self._item_idx = torch.from_numpy(corpus).to(embeddings.device)
        self._row_of = np.full(int(corpus.max()) + 1, -1)
        self._row_of[corpus] = np.arange(len(corpus))
        self._search = ExactTopK(embeddings)

    def __call__(self, users: Tensor, k: int, exclude: Ragged | None) -> tuple[Tensor, Tensor]:
        """As `Ranker.rank`, for user embeddings [R, D], or [R, M, D] where a user has several.

        The results of several embeddings take turns; each score is from the embedding that brought the item.
        """
        if users.ndim == 3:
            return self._several(users, k, exclude)
        scores, rows = self._search(users, k, None if exclude is None else self._corpus_rows(exclude))
        return scores, torch.where(rows < 0, 0, self._item_idx[rows])

    def _several(self, users: Tensor, k: int, exclude: Ragged | None) -> tuple[Tensor, Tensor]:
        there = present_embeddings(users.cpu().numpy())
        owner, _ = np.nonzero(there)
        excluded = None if exclude is None else exclude.take(owner)
        found = self(users[torch.from_numpy(there).to(users.device)], k, excluded)
        scores, items = np.full((*there.shape, k), -np.inf, np.float32), np.full((*there.shape, k), -1)
        scores[there], items[there] = (each.cpu().numpy() for each in found)
        # Item 0 says that there is no further result.
        merged_scores, merged = take_turns(scores, np.where(items > 0, items, -1), k=k)
        return torch.from_numpy(merged_scores), torch.from_numpy(np.maximum(merged, 0))

    def _corpus_rows(self, items: Ragged) -> RaggedTensor:
        owner = np.repeat(np.arange(len(items)), np.diff(items.offsets))
        inside = items.values < len(self._row_of)
        rows = self._row_of[items.values[inside]]
        owner, rows = owner[inside][rows >= 0], rows[rows >= 0]
        offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(items)))])
        device = self._item_idx.device
        return RaggedTensor(torch.from_numpy(rows).to(device), torch.from_numpy(offsets).to(device))


class ModelRanker:
    """Exact search of a two-tower model, or a blend of several, over its corpus.

    Args:
        model: in evaluation mode.
        corpus: item_idx of the items that can be shown, ascending; int64 [N].
        embeddings: of the same items, [N, D], if they are there already.
    """

    def __init__(self, model: Model, corpus: npt.NDArray[np.int64], embeddings: Tensor | None = None) -> None:
        self.model = model
        if embeddings is None:
            embeddings = encode_corpus(model, torch.from_numpy(corpus).to(model.device))
        self.search = CorpusSearch(embeddings, corpus)

    def rank(self, batch: Batch, requests: Requests, k: int, exclude: Ragged | None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """As in `Ranker`."""
        with torch.inference_mode():
            return self.search(self.model.encode_users(batch.to(self.model.device)), k, exclude)


@torch.inference_mode()
def encode_corpus(model: Model, item_idx: Tensor, block: int = 65536) -> Tensor:
    """Comparable item embeddings [N, D] of the corpus, in blocks."""
    return torch.cat([model.encode_items(part) for part in item_idx.split(block)])


def evaluate(
    ranker: Ranker,
    dataset: PreparedDataset,
    part: Part,
    batches: Iterable[tuple[Batch, Requests]],
    metrics: RetrievalMetrics,
    exclude_seen: bool = True,
    rolling: bool = False,
) -> dict[str, float]:
    """Metrics of a ranker on requests of `part`; `metrics` keeps what was counted."""
    for batch, requests in batches:
        exclude = seen_items(dataset, requests) if exclude_seen else None
        _, ranked = ranker.rank(batch, requests, metrics.cutoffs[-1], exclude)
        relevant = relevant_items(dataset, part, requests, exclude_seen, rolling)
        metrics.update(ranked, relevant, torch.from_numpy(requests.user_idx))
    return metrics.compute()


def per_user_table(dataset: PreparedDataset, metrics: RetrievalMetrics) -> pa.Table:
    """Content of `per_user.parquet`: user_id and each metric, from what `metrics` kept. Every process calls it."""
    users, columns = metrics.per_user()
    order = users.argsort()
    table = {"user_id": dataset.user_ids.take(pa.array(users[order].numpy()))}
    # From pandas: nan is null.
    return pa.table(table | {name: pa.array(v[order].numpy(), from_pandas=True) for name, v in columns.items()})
