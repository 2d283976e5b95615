"""Search of a corpus that is split over hosts: the request for all shards, and the merge of their results.

Every shard holds the whole release and searches its own rows, so a release has the same version with and without
shards. Shapes: B users, M embeddings, D dim, K results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from recsys.index.merging import present_embeddings, take_turns
from recsys.serving.http.messages import SearchRequest, SearchResponse, SearchResult, Value
from recsys.serving.http.problems import bad_request
from recsys.serving.quotas import within


def for_shards(request: SearchRequest) -> SearchRequest:
    """Return the request for every shard, with one embedding per row: only lists of one embedding merge by score.

    Rows are in the order of users, and of each user's embeddings. Absent embeddings get no row.
    """
    if request.embeddings.ndim == 2:
        return request
    if request.embeddings.ndim != 3:
        found = request.embeddings.ndim
        raise bad_request(f"embeddings: found {found} dimensions, expected [B, D] or [B, M, D]", "embeddings")
    present = present_embeddings(request.embeddings)
    owner = np.nonzero(present)[0]
    exclude = None if request.exclude is None else [request.exclude[user] for user in owner]
    return SearchRequest(
        request.version, request.embeddings[present], request.k, request.filter, exclude, request.model, request.quotas
    )


def merge(request: SearchRequest, answers: Sequence[SearchResponse]) -> SearchResponse:
    """Return the response to `request`, merged from the responses of all shards to `for_shards(request)`."""
    lists = len(for_shards(request).embeddings)
    for answer in answers:
        if answer.version != request.version or len(answer.results) != lists:
            raise ValueError(
                f"found {len(answer.results)} results of {answer.version}, expected {lists} of {request.version}"
            )
    k = request.k * len(answers) if request.quotas else request.k
    merged = [_by_score([answer.results[row] for answer in answers], k) for row in range(lists)]
    if request.embeddings.ndim == 3:
        merged = _in_turns(merged, present_embeddings(request.embeddings).sum(axis=1), k=k)
    if request.quotas:
        groups = {
            item: of_item
            for answer in answers
            for found in answer.results
            for item, of_item in zip(found.item_ids, found.groups or [], strict=True)
        }
        merged = [_within(found, groups, request) for found in merged]
    return SearchResponse(request.version, merged)


def _within(found: SearchResult, groups: Mapping[int | str, list[list[Value]]], request: SearchRequest) -> SearchResult:
    of_items = [groups[item] for item in found.item_ids]
    kept = within(of_items, request.quotas or {}, request.k)
    return SearchResult(
        [found.item_ids[place] for place in kept], found.scores[kept], [of_items[place] for place in kept]
    )


def _by_score(parts: Sequence[SearchResult], k: int) -> SearchResult:
    scores = np.concatenate([np.asarray(part.scores, np.float32) for part in parts])
    ids = [item_id for part in parts for item_id in part.item_ids]
    best = np.argsort(-scores, kind="stable")
    # An item that was added to a running index may be in several shards: it keeps its best score.
    first: dict[int | str, int] = {}
    for at in best.tolist():
        first.setdefault(ids[at], at)
    kept = list(first.values())[:k]
    return SearchResult([ids[at] for at in kept], scores[kept])


def _in_turns(lists: Sequence[SearchResult], num_lists: npt.NDArray[np.int64], *, k: int) -> list[SearchResult]:
    merged = []
    begin = 0
    for count in num_lists.tolist():
        mine = lists[begin : begin + count]
        begin += count
        number_of = {
            item_id: number for number, item_id in enumerate(dict.fromkeys(i for m in mine for i in m.item_ids))
        }
        ids = list(number_of)
        depth = max(len(part.item_ids) for part in mine)
        scores = np.full((1, count, depth), -np.inf, np.float32)
        rows = np.full((1, count, depth), -1, np.int64)
        for m, part in enumerate(mine):
            rows[0, m, : len(part.item_ids)] = [number_of[item_id] for item_id in part.item_ids]
            scores[0, m, : len(part.item_ids)] = part.scores
        turn_scores, turn_rows = take_turns(scores, rows, k=k)
        found = turn_rows[0] >= 0
        merged.append(SearchResult([ids[row] for row in turn_rows[0, found].tolist()], turn_scores[0, found]))
    return merged
