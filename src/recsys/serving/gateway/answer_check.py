"""Checks of the answers of hosts: nothing that is odd about one host leaves it. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from recsys.serving.http.messages import SearchRequest, SearchResponse, SearchResult, Versions

Ids = Sequence[int | str]
# Returns those of the ids that a version does not have, and those that were taken down.
Screen = Callable[[str, Ids], tuple[Ids, Ids]]

# Bytes of an answer: of each result, and of each item with its score. Ids have at most some hundred characters.
_ANSWER_BYTES, _RESULT_BYTES, _ITEM_BYTES = 64 << 10, 256, 400
MAX_VERSION_BYTES = 1 << 20
_MAX_VERSIONS = 1000


def largest_answer(request: SearchRequest) -> int:
    """Return the largest number of bytes that an answer to a search can have."""
    users, embeddings = len(request.embeddings), 1 if request.embeddings.ndim < 3 else request.embeddings.shape[1]
    return _ANSWER_BYTES + users * embeddings * (
        _RESULT_BYTES + request.k * _ITEM_BYTES * (1 + len(request.quotas or ()))
    )


def oddity_of_versions(versions: Versions) -> str | None:
    """Return what is wrong with the versions that a host reports, or None."""
    if len(versions) > _MAX_VERSIONS or any(len(held.loaded) > _MAX_VERSIONS for held in versions.values()):
        return f"reports more than {_MAX_VERSIONS} versions"
    for model, held in versions.items():
        if held.serving is not None and held.serving not in held.loaded:
            return f"serves {held.serving} of {model} and has not loaded it"
    return None


def checked(request: SearchRequest, response: SearchResponse, screen: Screen | None) -> SearchResponse | str:
    """Return an answer without items that were taken down, or what is wrong with it."""
    if len(response.results) != len(request.embeddings):
        return f"answers with {len(response.results)} results, expected {len(request.embeddings)}"
    for number, found in enumerate(response.results):
        place = f"result {number}"
        scores = found.scores
        if scores.ndim != 1 or len(scores) != len(found.item_ids):
            return f"{place}: {list(scores.shape)} scores of {len(found.item_ids)} items"
        if len(scores) > request.k:
            return f"{place}: {len(scores)} items, expected at most {request.k}"
        if not np.isfinite(scores).all():
            return f"{place}: scores that are not finite"
        if len(set(found.item_ids)) != len(found.item_ids):
            return f"{place}: an item twice"
        # With several embeddings the best items of each take turns.
        if request.embeddings.ndim == 2 and (np.diff(scores) > 0).any():
            return f"{place}: scores that rise"
        if request.quotas and not _has_groups(found, len(request.quotas)):
            return f"{place}: no values of the columns with quotas"
    if screen is None:
        return response
    unknown, removed = screen(request.version, [item for found in response.results for item in found.item_ids])
    if unknown:
        return f"answers with {unknown[0]!r}, which is no item of {request.version}"
    if removed:
        gone = set(removed)
        return SearchResponse(response.version, [_without(found, gone) for found in response.results])
    return response


def _without(found: SearchResult, gone: set[int | str]) -> SearchResult:
    kept = [place for place, item in enumerate(found.item_ids) if item not in gone]
    groups = found.groups and [found.groups[place] for place in kept]
    return SearchResult([found.item_ids[place] for place in kept], found.scores[kept], groups)


def _has_groups(found: SearchResult, num_columns: int) -> bool:
    groups = found.groups or []
    return len(groups) == len(found.item_ids) and all(len(of_item) == num_columns for of_item in groups)
