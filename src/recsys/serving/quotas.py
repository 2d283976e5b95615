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
# Users that are searched together, whose items are in memory at once, and cost of an item that is read for one of them,
# as a share of that of a returned one.
USERS_AT_ONCE, READ_COST = 8, 1 / 8


def within(groups: Sequence[Groups], quotas: Quotas, k: int) -> list[int]:
    """Return the places of up to k items, best first, that are within the quotas. An item without a value has none."""
    counts, full = [Counter[Any]() for _ in quotas], [set[Any]() for _ in quotas]
    limits = [quotas[name] for name in sorted(quotas)]
    kept: list[int] = []
    for place, of_item in enumerate(groups):
        # Most items are not kept, so this must be fast.
        if not all(map(set.isdisjoint, full, of_item)):
            continue
        kept.append(place)
        if len(kept) == k:
            break
        for count, filled, limit, values in zip(counts, full, limits, of_item, strict=True):
            count.update(set(values))
            filled.update(value for value in values if count[value] >= limit)
    return kept


def cost_of(num_users: int, num_items: int = MAX_DEPTH) -> int:
    """Return the extra work that quotas cause for some users, in the unit of `limits.cost`: one returned item."""
    return int(num_users * min(num_items, MAX_DEPTH) * READ_COST)


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
        results, groups, is_short = list[Hits](), list[list[Groups]](), False
        for found in search(depth):
            of_user = groups_of(found.item_ids)
            places = within(of_user, quotas, k)
            results.append(Hits([found.item_ids[place] for place in places], found.scores[places]))
            groups.append([of_user[place] for place in places])
            is_short = is_short or (len(places) < k and len(found.item_ids) == depth)
        if not is_short or depth >= MAX_DEPTH:
            return results, groups
