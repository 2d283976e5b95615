"""Blends of the lists of several generators under budgets, and the choice of budgets.

Shapes: U users, G generators, K candidates in all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recsys.core.types import Float64Array
from recsys.index.merging import RankedLists
from recsys.reports.generators.lists import Lists

Budgets = tuple[int, ...]
# Number of users whose lists are merged at once.
_BLOCK = 1024
# Number of steps in which a blend's budgets are assigned.
_STEPS = 10


class Funnel:
    """Blends of the lists of the same users.

    The generators take turns. Each gives its best candidate that was not given yet, until its budget is spent. The
    unused rest of a budget goes to the other generators with a budget, in turns again, and finally to popular items.

    Args:
        lists: lists of every generator.
        keep: keep the merged lists of all users in memory (about 10 bytes per candidate), for many blends.
    """

    def __init__(self, lists: Lists, keep: bool = False) -> None:
        self.lists = lists
        self._pools = list(self._blocks()) if keep else None
        self._recalls: dict[Budgets, float] = {}

    def recall(self, blends: Sequence[Budgets]) -> Float64Array:
        """Return each user's recall with each blend, [U, number of blends].

        Args:
            blends: budgets of each generator; a blend has as many candidates as its budgets add up to.
        """
        lists = self.lists
        recall = np.zeros((len(lists), len(blends)))
        for rows, pool in self._pools or self._blocks():
            hits = lists.hits[rows].reshape(pool.number.shape[0], -1)
            for number, budgets in enumerate(blends):
                places = pool.merge(sum(budgets), self._rounds(budgets))
                found = np.take_along_axis(hits, np.maximum(places, 0), axis=1) & (places >= 0)
                recall[rows, number] = found.sum(1) / lists.num_relevant[rows]
        return recall

    def mean_recall(self, budgets: Budgets) -> float:
        """Return the mean of `recall` over users; results are cached."""
        if budgets not in self._recalls:
            self._recalls[budgets] = float(self.recall([budgets]).mean())
        return self._recalls[budgets]

    def choose(self, among: Sequence[int], k: int) -> Budgets:
        """Return budgets that add up to `k`, chosen greedily in steps of a tenth by mean recall.

        Args:
            among: numbers of the generators that may have a budget.
            k: number of candidates in all.
        """
        budgets = (0,) * len(self.lists.names)
        while left := k - sum(budgets):
            step = min(left, max(1, k // _STEPS))
            options = [tuple(b + step * (g == number) for g, b in enumerate(budgets)) for number in among]
            budgets = max(options, key=self.mean_recall)
        return budgets

    def _rounds(self, budgets: Budgets) -> list[list[int]]:
        total, num_others = sum(budgets), len(budgets)
        beyond = [total if budget else 0 for budget in budgets]
        return [[*budgets, 0], [*beyond, 0], [0] * num_others + [total]]

    def _blocks(self) -> Iterator[tuple[slice, RankedLists]]:
        items = self.lists.items
        for begin in range(0, len(items), _BLOCK):
            block = items[begin : begin + _BLOCK].astype(np.int64)
            yield slice(begin, begin + len(block)), RankedLists(np.where(block > 0, block, -1))


@dataclass(frozen=True)
class BlendPlan:
    """Blends, chosen without the users that they are measured on.

    Attributes:
        everyone: budgets of the best blend of all generators.
        equal: budgets for equal turns of all generators.
        equal_without: budgets for equal turns without each generator.
        retired: numbers of dispensable generators, in the order of their retirement.
        stages: budgets of the best blend after the first retirement, the second, ...
        without: for each stage, the first of which has all generators: number of a generator -> budgets of the best
            blend without that one as well.
    """

    everyone: Budgets
    equal: Budgets
    equal_without: tuple[Budgets, ...]
    retired: tuple[int, ...]
    stages: tuple[Budgets, ...]
    without: tuple[Mapping[int, Budgets], ...]


def plan_blends(funnel: Funnel, k: int, *, tolerance: float) -> BlendPlan:
    """Choose budgets, and the generators that could be retired.

    Generators without a budget in the best blend are retired first; then, repeatedly, the one whose retirement costs
    least, as long as the re-optimised blend of the others loses at most the share `tolerance` of the full blend's
    recall.

    Args:
        funnel: blends over users whose future may be used; two generators or more.
        k: number of candidates in all.
        tolerance: share of the full blend's recall that all retirements together may lose.
    """
    every = range(len(funnel.lists.names))
    blends, left, retired, without = [funnel.choose(every, k)], list(every), list[int](), list[Mapping[int, Budgets]]()
    target = (1 - tolerance) * funnel.mean_recall(blends[0])
    while True:
        # The last generator cannot be retired.
        others = {g: [other for other in left if other != g] for g in left} if len(left) > 1 else {}
        without.append({g: funnel.choose(among, k) for g, among in others.items()})
        blend, options = blends[-1], without[-1]
        worst = max(options, key=lambda g: (not blend[g], funnel.mean_recall(options[g])), default=None)
        if worst is None or funnel.mean_recall(options[worst]) < target:
            break
        left.remove(worst)
        retired.append(worst)
        blends.append(options[worst])
    return BlendPlan(
        blends[0],
        equal_turns(every, len(every), k=k),
        tuple(equal_turns([other for other in every if other != g], len(every), k=k) for g in every),
        tuple(retired),
        tuple(blends[1:]),
        tuple(without),
    )


def equal_turns(among: Sequence[int], num_generators: int, *, k: int) -> Budgets:
    """Return budgets that add up to `k` and differ by one at most; the first generators get the larger ones."""
    each, more = divmod(k, max(len(among), 1))
    budgets = [0] * num_generators
    for place, number in enumerate(among):
        budgets[number] = each + (place < more)
    return tuple(budgets)
