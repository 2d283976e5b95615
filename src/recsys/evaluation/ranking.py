"""Ranking of the whole corpus with a model, and the metrics of a ranker."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from recsys.core import distributed
from recsys.core.columns import Ragged
from recsys.core.errors import UserError
from recsys.core.mapped import mapped_rows
from recsys.core.progress import track
from recsys.data.batches.batch import Batch, RaggedTensor
from recsys.data.dataset import Part, PreparedDataset, Requests
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.relevance import relevant_items, seen_items
from recsys.evaluation.slices import is_trained
from recsys.evaluation.topk import ExactTopK, merge_best
from recsys.index.merging import present_embeddings, take_turns
from recsys.models.blend import Model
from recsys.models.sharded_table import sharded_tables


class Ranker(Protocol):
    """A model or a heuristic generator that ranks items for requests."""

    def rank(self, batch: Batch, requests: Requests, *, k: int, exclude: Ragged | None) -> tuple[Tensor, Tensor]:
        """Return scores float32 [R, k] and item_idx int64 [R, k], best first; -inf and 0 after the last result.

        Args:
            batch: histories of the requests.
            requests: requests as positions in the data set.
            k: results of each request.
            exclude: R lists of item_idx; request r gets none of list r.
        """
        ...


class CorpusSearch:
    """Exact search of a corpus for user embeddings.

    Args:
        embeddings: [N, D], embeddings of the corpus.
        corpus: int64 [N], item_idx of the same items, ascending.
    """

    def __init__(self, embeddings: Tensor, corpus: npt.NDArray[np.int64]) -> None:
        self.corpus, self.embeddings = corpus, embeddings
        self._item_idx = torch.from_numpy(corpus).to(embeddings.device)
        self._first = int(corpus[0])
        self._row_of = np.full(int(corpus[-1]) + 1 - self._first, -1, np.int32)
        self._row_of[corpus - self._first] = np.arange(len(corpus), dtype=np.int32)
        self._search = ExactTopK(embeddings)

    def __call__(self, users: Tensor, k: int, *, exclude: Ragged | None) -> tuple[Tensor, Tensor]:
        """Return scores and item_idx as `Ranker.rank` does, for user embeddings [R, D] or [R, M, D].

        The results of several embeddings take turns. Each score comes from the embedding that found the item.
        """
        check_finite(users, "user embeddings")
        if users.ndim == 3:
            return self._search_several(users, k, exclude=exclude)
        return self._search_each(users, k, exclude=exclude)

    def _search_each(self, users: Tensor, k: int, *, exclude: Ragged | None) -> tuple[Tensor, Tensor]:
        """Return scores and item_idx for user embeddings [R, D]."""
        scores, rows = self._search(users, k, exclude=None if exclude is None else self._corpus_rows(exclude))
        return scores, torch.where(rows < 0, 0, self._item_idx[rows])

    def among(self, is_chosen: npt.NDArray[np.bool_]) -> CorpusSearch | None:
        """Return the search of the corpus items in a mask bool [N + 1]; None if there are none."""
        rows = is_chosen[self.corpus]
        if rows.all():
            return self
        if not rows.any():
            return None
        return CorpusSearch(self.embeddings[torch.from_numpy(rows).to(self.embeddings.device)], self.corpus[rows])

    def _search_several(self, users: Tensor, k: int, *, exclude: Ragged | None) -> tuple[Tensor, Tensor]:
        present = present_embeddings(users.cpu().numpy())
        owner, _ = np.nonzero(present)
        excluded = None if exclude is None else exclude.take(owner)
        found = self(users[torch.from_numpy(present).to(users.device)], k, exclude=excluded)
        scores, items = np.full((*present.shape, k), -np.inf, np.float32), np.full((*present.shape, k), -1)
        scores[present], items[present] = (each.cpu().numpy() for each in found)
        # Item 0 follows the last result, and `take_turns` expects -1 instead.
        merged_scores, merged = take_turns(scores, np.where(items > 0, items, -1), k=k)
        return torch.from_numpy(merged_scores), torch.from_numpy(np.maximum(merged, 0))

    def _corpus_rows(self, items: Ragged) -> RaggedTensor:
        owner = np.repeat(np.arange(len(items)), np.diff(items.offsets))
        inside = (items.values >= self._first) & (items.values < self._first + len(self._row_of))
        rows = self._row_of[items.values[inside] - self._first].astype(np.int64)
        owner, rows = owner[inside][rows >= 0], rows[rows >= 0]
        offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(items)))])
        device = self._item_idx.device
        return RaggedTensor(torch.from_numpy(rows).to(device), torch.from_numpy(offsets).to(device))


class DividedSearch(CorpusSearch):
    """Exact search of a corpus of which each process holds a part.

    Every process searches its part for the users of all processes, and sends the results to the processes that asked,
    which merge them. So all processes must search the same number of times.

    Args:
        part: search of the part of this process; None if it has no item.
        device: device of the embeddings.
    """

    def __init__(self, part: CorpusSearch | None, device: torch.device) -> None:
        self._part, self._device = part, device

    def among(self, is_chosen: npt.NDArray[np.bool_]) -> DividedSearch | None:
        """Return the search of the corpus items in a mask bool [N + 1]; None if no process has any."""
        part = None if self._part is None else self._part.among(is_chosen)
        has_some = distributed.total(torch.tensor(0 if part is None else 1, device=self._device))
        return DividedSearch(part, self._device) if int(has_some) else None

    def _search_each(self, users: Tensor, k: int, *, exclude: Ragged | None) -> tuple[Tensor, Tensor]:
        counts = distributed.gather(torch.tensor([len(users)], device=users.device)).tolist()
        everyone = distributed.gather(users)
        excluded = None
        if exclude is not None:
            lengths = distributed.gather(torch.from_numpy(np.diff(exclude.offsets)).to(users.device)).cpu().numpy()
            values = distributed.gather(torch.from_numpy(exclude.values).to(users.device)).cpu().numpy()
            excluded = Ragged(values, np.concatenate([[0], np.cumsum(lengths)]))
        if self._part is None:
            scores = torch.full((len(everyone), k), -torch.inf, device=users.device)
            items = torch.zeros(len(everyone), k, dtype=torch.int64, device=users.device)
        else:
            scores, items = self._part._search_each(everyone, k, exclude=excluded)
        found = zip(distributed.exchange(scores, counts), distributed.exchange(items, counts), strict=True)
        return merge_best(list(found), k)


def search_of(model: Model, corpus: npt.NDArray[np.int64]) -> CorpusSearch:
    """Return the exact search of a corpus, divided among the processes if they share the tables of the model.

    All processes must call it together.

    Args:
        model: model in evaluation mode.
        corpus: int64 [N], item_idx of the items that can be shown, ascending.
    """
    size = distributed.world_size()
    if size == 1 or not sharded_tables(model):
        return CorpusSearch(encode_corpus(model, torch.from_numpy(corpus).to(model.device)), corpus)
    height = -(-len(corpus) // size)
    own = corpus[height * distributed.rank() : height * (distributed.rank() + 1)]
    embeddings = encode_corpus(model, torch.from_numpy(own).to(model.device), most=height)
    return DividedSearch(CorpusSearch(embeddings, own) if len(own) else None, model.device)


class ModelRanker:
    """Exact search of a two-tower model, or of a blend, over its corpus.

    Args:
        model: model in evaluation mode.
        corpus: int64 [N], item_idx of the items that can be shown, ascending.
        embeddings: [N, D], embeddings of the same items; None to compute them.
    """

    def __init__(self, model: Model, corpus: npt.NDArray[np.int64], *, embeddings: Tensor | None = None) -> None:
        self.model = model
        self.search = search_of(model, corpus) if embeddings is None else CorpusSearch(embeddings, corpus)

    def rank(self, batch: Batch, requests: Requests, *, k: int, exclude: Ragged | None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return scores and item_idx; see `Ranker`."""
        with torch.inference_mode():
            return self.search(self.encode(batch), k, exclude=exclude)

    @torch.inference_mode()
    def encode(self, batch: Batch) -> Tensor:
        """Return the user embeddings of requests."""
        return self.model.encode_users(batch.to(self.model.device))


class RequestCounter:
    """Ranks requests by their user embeddings, and counts the results.

    Args:
        search: search of the corpus.
        dataset: data set of the requests.
        part: part whose events are relevant.
        metrics: counters, which are updated.
        exclude_seen: leave out items of the history.
        rolling: count only the event that follows the history as relevant.
    """

    def __init__(
        self,
        search: CorpusSearch,
        dataset: PreparedDataset,
        *,
        part: Part,
        metrics: RetrievalMetrics,
        exclude_seen: bool = True,
        rolling: bool = False,
    ) -> None:
        self.metrics = metrics
        self._search, self._dataset, self._part = search, dataset, part
        self._exclude_seen, self._rolling = exclude_seen, rolling
        self._cold = search.among(~is_trained(dataset))

    def count(self, users: Tensor, requests: Requests) -> None:
        """Count the results of requests with user embeddings [R, D] or [R, M, D].

        Raises:
            UserError: If an embedding or a score is not finite.
        """
        k = self.metrics.cutoffs[-1]
        exclude = seen_items(self._dataset, requests) if self._exclude_seen else None

        def rank_cold(rows: Tensor) -> Tensor:
            if self._cold is None:
                return torch.zeros(len(rows), k, dtype=torch.int64)
            excluded = None if exclude is None else exclude.take(rows.numpy())
            return self._cold(users[rows.to(users.device)], k, exclude=excluded)[1]

        scores, ranked = self._search(users, k, exclude=exclude)
        check_finite(scores.where(ranked > 0, 0.0), "lists of scores")
        relevant = relevant_items(
            self._dataset, self._part, requests=requests, exclude_seen=self._exclude_seen, rolling=self._rolling
        )
        self.metrics.update(ranked, relevant, user_idx=torch.from_numpy(requests.user_idx), rank_cold=rank_cold)


@torch.inference_mode()
def encode_corpus(
    model: Model, item_idx: Tensor, *, block: int = 65536, most: int = 0, folder: Path | None = None
) -> Tensor:
    """Return the item embeddings [N, D] of the corpus, computed in blocks.

    Args:
        model: model in evaluation mode.
        item_idx: int64 [N].
        block: number of items that are computed at a time.
        most: number of items of the process with most; processes that share tables need as many blocks.
        folder: folder of a temporary file that holds the embeddings; None for memory.
    """
    parts = [item_idx[begin : begin + block] for begin in range(0, max(len(item_idx), most), block)]
    embeddings: Tensor | None = None
    end = 0
    for part in track(parts, "encoding items", total=len(item_idx), unit="items", size=len):
        rows = model.encode_items(part)
        if embeddings is None:
            shape = len(item_idx), rows.shape[1]
            embeddings = rows.new_empty(shape) if folder is None else mapped_rows(*shape, folder=folder)
        embeddings[end : end + len(rows)] = rows
        end += len(rows)
    assert embeddings is not None, "the corpus is empty"
    check_finite(embeddings, "item embeddings")
    return embeddings


def check_finite(rows: Tensor, what: str) -> None:
    """Refuse rows [R, ...] with a number that is not finite.

    Raises:
        UserError: If there are any. Rankings of such rows mean nothing, whatever their metrics.
    """
    # `isfinite` makes temporaries larger than its input, so it gets parts.
    finite = torch.cat(
        [torch.isfinite(part.flatten(1)).all(1) for part in rows.split(65536) if part.numel()] or [torch.ones(0)]
    )
    if not bool(finite.all()):
        raise UserError(
            f"evaluation: {int((~finite).sum())} of {len(finite)} {what} are not finite, expected finite numbers; "
            "the model has diverged: train it again, for example with a lower optimizer.lr"
        )


def evaluate(
    ranker: Ranker,
    dataset: PreparedDataset,
    *,
    part: Part,
    batches: Iterable[tuple[Batch, Requests]],
    metrics: RetrievalMetrics,
    exclude_seen: bool = True,
    rolling: bool = False,
) -> dict[str, float]:
    """Return the metrics of a ranker on requests of a part.

    Args:
        ranker: ranker to evaluate.
        dataset: data set of the requests.
        part: part whose events are relevant.
        batches: histories and requests.
        metrics: counters, which are updated.
        exclude_seen: leave out items of the history.
        rolling: count only the event that follows the history as relevant.

    Raises:
        UserError: If a score is not finite.
    """
    if isinstance(ranker, ModelRanker):
        counter = RequestCounter(
            ranker.search, dataset, part=part, metrics=metrics, exclude_seen=exclude_seen, rolling=rolling
        )
        for batch, requests in batches:
            counter.count(ranker.encode(batch), requests)
        return metrics.compute()
    for batch, requests in batches:
        exclude = seen_items(dataset, requests) if exclude_seen else None
        scores, ranked = ranker.rank(batch, requests, k=metrics.cutoffs[-1], exclude=exclude)
        check_finite(scores.where(ranked > 0, 0.0), "lists of scores")
        relevant = relevant_items(dataset, part, requests=requests, exclude_seen=exclude_seen, rolling=rolling)
        metrics.update(ranked, relevant, user_idx=torch.from_numpy(requests.user_idx))
    return metrics.compute()


def per_user_table(dataset: PreparedDataset, metrics: RetrievalMetrics) -> pa.Table:
    """Return the content of `per_user.parquet`: user_id and each metric. Every process must call it."""
    users, columns = metrics.per_user()
    order = users.argsort()
    table = {"user_id": dataset.user_ids.take(pa.array(users[order].numpy()))}
    # `from_pandas` turns nan into null.
    return pa.table(table | {name: pa.array(v[order].numpy(), from_pandas=True) for name, v in columns.items()})
