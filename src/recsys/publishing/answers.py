"""Tables of lists, similar items, embeddings and metrics, for opened runs and releases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.core.columns import Ragged
from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.data.dataset import Part, Requests
from recsys.index import exact_search
from recsys.publishing.batch_recommend import BATCH, Audience, Recommender, rank_slice
from recsys.publishing.frames import as_ids, embedding_column, ranked_table, to_ids


class EmbeddingRecommender(Recommender, Protocol):
    """A recommender that also returns user embeddings."""

    def embed(self, requests: Requests, request_features: Mapping[str, pa.Array]) -> Float32Array:
        """Return user embeddings float32 [R, D], or [R, M, D] of towers that give several."""
        ...


def check_k(k: int) -> None:
    """Refuse a number of results below one.

    Raises:
        UserError: If `k` is not a positive integer.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise UserError(f"k: found {k!r}, expected at least 1")


def ranked_lists(recommender: Recommender, audience: Audience, *, k: int, exclude_seen: bool) -> pa.Table:
    """Return user_id, item_ids and scores of all users, as `recsys recommend` writes them."""
    check_k(k)
    slices = _blocks(max(1, len(audience)))
    return pa.concat_tables(
        [rank_slice(recommender, audience, rows=rows, k=k, exclude_seen=exclude_seen) for rows in slices]
    )


def user_vectors(recommender: EmbeddingRecommender, audience: Audience) -> pa.Table:
    """Return user_id and embedding of all users."""

    def block(rows: slice) -> Float32Array:
        features = {name: values[rows] for name, values in audience.request_features.items()}
        return recommender.embed(Requests(*(part[rows] for part in audience.requests)), features)

    return vector_table("user_id", audience.user_ids, embed=block)


def vector_table(name: str, ids: pa.Array, *, embed: Callable[[slice], Float32Array]) -> pa.Table:
    """Return ids, and their embeddings in blocks, as a table with the columns `name` and embedding."""
    vectors = [embed(rows) for rows in _blocks(max(1, len(ids)))]
    return pa.table({name: ids, "embedding": embedding_column(np.concatenate(vectors))})


def similar_items(wanted: Iterable[Any], item_ids: pa.Array, *, embeddings: Float32Array, k: int) -> pa.Table:
    """Return the nearest other items of each wanted item, by cosine of their embeddings.

    Args:
        wanted: ids of items.
        item_ids: ids of the rows of `embeddings`, N.
        embeddings: float32 [N, D].
        k: items for each.

    Returns:
        A table with the columns item_id, item_ids and scores.

    Raises:
        UserError: If `wanted` is a single id, or an item has no embedding.
    """
    check_k(k)
    if isinstance(wanted, str):
        raise UserError(f"item_ids: found '{wanted}', expected several ids, such as ['{wanted}']")
    ids = as_ids(to_ids(wanted, "item_ids"), item_ids.type, "item_ids")
    rows = pc.index_in(ids, value_set=item_ids)
    if rows.null_count:
        missing = ids.filter(rows.is_null())[0].as_py()
        raise UserError(f"item_ids: {missing!r} unknown: not in the corpus")
    place = np.asarray(rows.cast(pa.int64()))
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    directions = np.ascontiguousarray(embeddings / np.maximum(lengths, 1e-12), np.float32)
    itself = Ragged(place.astype(np.int32), np.arange(len(place) + 1))
    scores, found = exact_search(directions, directions[place], k=k, exclude=itself)
    real = found >= 0
    lists = [item_ids.take(pa.array(row[is_real])).to_pylist() for row, is_real in zip(found, real, strict=True)]
    parts = [row[is_real] for row, is_real in zip(scores, real, strict=True)]
    table = ranked_table(ids, lists, scores=parts, kind=item_ids.type)
    return table.rename_columns(["item_id", "item_ids", "scores"])


def measure(recommender: Recommender, part: Part, *, corpus_size: int, exclude_seen: bool) -> dict[str, float]:
    """Return the metrics of a part of the data, one request per user, named as in `metrics.json`.

    Args:
        recommender: opened run or release with data.
        part: `"test"` or `"val"`.
        corpus_size: number of items that can be recommended.
        exclude_seen: leave out items of the history.

    Raises:
        UserError: If the data has no such part.
    """
    import torch

    from recsys.evaluation.metrics import RetrievalMetrics
    from recsys.evaluation.relevance import relevant_items

    if part not in ("test", "val"):
        raise UserError(f"part: found '{part}', expected 'test' or 'val'")
    dataset = recommender.dataset
    requests = dataset.requests(part)
    if not len(requests.user_idx):
        raise UserError(f"part: the data has no {part} part")
    metrics = RetrievalMetrics(dataset, corpus_size, part=part)
    places = pc.index_in(recommender.item_ids, value_set=dataset.item_ids).cast(pa.int64()).fill_null(-1)
    item_idx = np.concatenate([np.asarray(places) + 1, [0]])
    for rows in _blocks(len(requests.user_idx)):
        some = Requests(*(column[rows] for column in requests))
        _, found = recommender.rank(some, metrics.cutoffs[-1], exclude_seen=exclude_seen, request_features={})
        relevant = relevant_items(dataset, part, requests=some, exclude_seen=exclude_seen)
        metrics.update(torch.from_numpy(item_idx[found]), relevant, user_idx=torch.from_numpy(some.user_idx))
    return {f"{part}/{name}": value for name, value in metrics.compute().items()}


def _blocks(size: int) -> list[slice]:
    return [slice(begin, min(begin + BATCH, size)) for begin in range(0, size, BATCH)]
