"""Quotas of a request: at most n items of each value of a column. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from recsys.release.runtime.item_search import Hits

Quotas = Mapping[str, int]
# Values of an item in the columns that have quotas, one list for each column in the order of their names.
Groups = list[list[Any]]

# A search reads four times as many items as wanted, and again four times as many while they do not suffice.
DEEPER, MAX_DEPTH = 4, 20_000


def within(groups: Sequence[Groups], quotas: Quotas, k: int) -> list[int]:
    """Return the places of up to k items, best first, that are within the quotas. An item without a value has none."""
    counts = [Counter[Any]() for _ in quotas]
    limits = [quotas[name] for name in sorted(quotas)]
    kept: list[int] = []
    for place, of_item in enumerate(groups):
        pairs = list(zip(counts, limits, of_item, strict=True))
        if all(count[value] < limit for count, limit, values in pairs for value in values):
            kept.append(place)
            for count, _, values in pairs:
                count.update(set(values))
            if len(kept) == k:
                break
    return kept


def search_within(
    search: Callable[[int], list[Hits]],
    groups_of: Callable[[Sequence[int | str]], list[Groups]],
    *,
    quotas: Quotas,
    k: int,
) -> tuple[list[Hits], list[list[Groups]]]:
    """Return the best k items of each user within the quotas, and their groups; fewer if 20,000 items hold fewer."""
    depth = k
    while True:
        depth = min(max(DEEPER * depth, k), max(MAX_DEPTH, k))
        hits = search(depth)
        groups = [groups_of(found.item_ids) for found in hits]
        kept = [within(of_user, quotas, k) for of_user in groups]
        short = any(len(places) < k and len(found.item_ids) == depth for places, found in zip(kept, hits, strict=True))
        if not short or depth >= MAX_DEPTH:
            break
    results = [
        Hits([found.item_ids[place] for place in places], found.scores[places])
        for found, places in zip(hits, kept, strict=True)
    ]
    return results, [[of_user[place] for place in places] for of_user, places in zip(groups, kept, strict=True)]
