"""Exact top-k of inner products. Blocks stay in cache, buffers are reused, and the lower row wins a tie.

A score and its row are packed into one int64 key, so that keys order by score and then by lower row. One partition of
the keys then selects scores and rows together, and ties end alike in every backend and with every block size.
Shapes: Q queries, N items, D dim, C candidates.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recsys.core.columns import Ragged
from recsys.core.types import Float32Array

Rows = npt.NDArray[np.int64]
Keys = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# [QUERY_BLOCK, ITEM_BLOCK] float32 scores are 8 MB, about the size of a last-level cache, which measured best.
QUERY_BLOCK = 128
ITEM_BLOCK = 16384
GROUP = 16

_LOW = np.int64(0xFFFFFFFF)
_NO_KEY = np.iinfo(np.int64).min


def pack(scores: Float32Array, rows: Rows) -> Keys:
    """Return keys that sort by score, then by lower row. A score of -inf or a row of -1 gives the lowest key."""
    # Adding zero turns -0.0 into 0.0; otherwise equal scores would get different keys.
    bits = (scores + np.float32(0)).view(np.int32)
    ordered = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    keys = (ordered.astype(np.int64) << 32) | (_LOW - rows)
    keys[(scores == -np.inf) | (rows < 0)] = _NO_KEY
    return keys


def unpack(keys: Keys) -> tuple[Float32Array, Rows]:
    """Return the scores and rows of keys. The lowest key gives score -inf and row -1."""
    ordered = (keys >> 32).astype(np.int32)
    scores = (ordered ^ ((ordered >> 31) & np.int32(0x7FFFFFFF))).view(np.float32)
    rows = _LOW - (keys & _LOW)
    missing = keys == _NO_KEY
    scores[missing] = -np.inf
    rows[missing] = -1
    return scores, rows


def best_keys(keys: Keys, k: int) -> Keys:
    """Return the k highest keys of each row, in no order; [Q, min(k, C)]."""
    if keys.shape[1] <= k:
        return keys
    return np.partition(keys, keys.shape[1] - k, axis=1)[:, -k:]


def to_results(keys: Keys, k: int) -> tuple[Float32Array, Rows]:
    """Return scores and rows of the k highest keys, sorted, both [Q, k]; missing results are -inf and -1."""
    best = best_keys(keys, k)
    padded = np.full((len(keys), k), _NO_KEY)
    padded[:, : best.shape[1]] = np.sort(best, axis=1)[:, ::-1]
    return unpack(padded)


def exact_search(
    embeddings: Float32Array, queries: Float32Array, *, k: int, rows: Rows | None = None, exclude: Ragged | None = None
) -> tuple[Float32Array, Rows]:
    """Return the k rows of highest inner product with each query, from all inner products.

    Arguments and results are those of `Index.search`, for embeddings float32 [N, D] that may be memory-mapped. `rows`
    are those that may be returned, ascending; None for all. Of equal scores the lower row comes first.
    """
    num_columns = len(embeddings) if rows is None else len(rows)
    out_scores = np.full((len(queries), k), -np.inf, np.float32)
    out_rows = np.full((len(queries), k), -1, np.int64)
    if not num_columns or not k or not len(queries):
        return out_scores, out_rows
    item_block = min(ITEM_BLOCK, num_columns)
    scores_buffer = np.empty((min(QUERY_BLOCK, len(queries)), item_block), np.float32)
    gathered = None if rows is None else np.empty((item_block, embeddings.shape[1]), np.float32)
    for begin in range(0, len(queries), QUERY_BLOCK):
        block = np.ascontiguousarray(queries[begin : begin + QUERY_BLOCK])
        excluded = _excluded_columns(exclude, slice(begin, begin + len(block)), rows=rows)
        best = np.full((len(block), min(k, num_columns)), _NO_KEY)
        for lo in range(0, num_columns, item_block):
            hi = min(lo + item_block, num_columns)
            if rows is None or gathered is None:
                items = embeddings[lo:hi]
            else:
                items = np.take(embeddings, rows[lo:hi], axis=0, out=gathered[: hi - lo], mode="clip")
            # A contiguous prefix of the buffer: the last block is narrower.
            scores = scores_buffer.reshape(-1)[: len(block) * (hi - lo)].reshape(len(block), hi - lo)
            np.matmul(block, items.T, out=scores)
            if excluded is not None:
                columns, query = excluded
                inside = slice(*np.searchsorted(columns, (lo, hi)))
                scores[query[inside], columns[inside] - lo] = -np.inf
            best = _merge(best, scores, first=lo)
        found_scores, found = to_results(best, k)
        if rows is not None:
            found = np.where(found < 0, -1, rows[found])
        out_scores[begin : begin + len(block)] = found_scores
        out_rows[begin : begin + len(block)] = found
    return out_scores, out_rows


def _merge(best: Keys, scores: Float32Array, *, first: int) -> Keys:
    """Merge the columns `first..` with `scores` [B, C] into the best keys. Exact, ties included.

    Later columns lose ties, so only scores above a query's worst key matter. Columns form groups: column c is in group
    c mod G, so that the maximum of a group runs along contiguous memory. A group whose maximum is not above the worst
    key cannot contribute, and the k best scores lie in at most k groups.
    """
    num_queries, width = scores.shape
    k = best.shape[1]
    num_groups = width // GROUP
    worst, _ = unpack(best.min(axis=1))
    if num_groups < 2 * k:
        return _merge_columns(best, scores, columns=first + np.arange(width))
    grouped = scores[:, : num_groups * GROUP].reshape(num_queries, GROUP, num_groups)
    maxima = grouped.max(axis=1)
    promising = int((maxima > worst[:, None]).sum(axis=1).max())
    taken = min(promising, k)
    merged = best
    if taken:
        chosen = np.argpartition(maxima, num_groups - taken, axis=1)[:, -taken:]
        columns = (chosen[:, :, None] + np.arange(GROUP) * num_groups).reshape(num_queries, -1)
        merged = _merge_columns(best, np.take_along_axis(scores, columns, axis=1), columns=first + columns)
    if num_groups * GROUP < width:
        tail = np.arange(num_groups * GROUP, width)
        merged = _merge_columns(merged, scores[:, tail], columns=first + tail)
    if promising > k:
        # If more than k groups reach the worst score that was kept, some scores are equal and the lower rows must win.
        kept, _ = unpack(merged.min(axis=1))
        for query in np.flatnonzero(((maxima >= kept[:, None]) & (maxima > -np.inf)).sum(axis=1) > k):
            one, columns = slice(query, query + 1), first + np.arange(width)
            merged[query] = _merge_columns(best[one], scores[one], columns=columns)[0]
    return merged


def _merge_columns(best: Keys, scores: Float32Array, *, columns: Rows) -> Keys:
    keys = np.empty((len(best), best.shape[1] + scores.shape[1]), np.int64)
    keys[:, : best.shape[1]] = best
    keys[:, best.shape[1] :] = pack(scores, np.broadcast_to(columns, scores.shape))
    return best_keys(keys, best.shape[1])


def _excluded_columns(exclude: Ragged | None, block: slice, *, rows: Rows | None) -> tuple[Rows, Rows] | None:
    """Return (column, query within the block) of the excluded pairs of a block of queries, sorted by column."""
    if exclude is None:
        return None
    offsets = exclude.offsets[block.start : block.stop + 1]
    columns = np.asarray(exclude.values[offsets[0] : offsets[-1]], np.int64)
    query = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    if rows is not None:
        position = np.minimum(np.searchsorted(rows, columns), len(rows) - 1)
        present = rows[position] == columns
        columns, query = position[present], query[present]
    order = np.argsort(columns, kind="stable")
    return columns[order], query[order]
