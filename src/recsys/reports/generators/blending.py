"""One list from those of several generators, each with a budget, and which budgets are best.

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
# Users of whom lists are merged at once.
_BLOCK = 1024
# Budgets are chosen in so many steps.
_STEPS = 10


class Funnel:
    """Blends of the lists of the same users.

    The generators take turns, each gives its best candidate that was not given yet, until its budget is spent. What a
    generator cannot spend is left to the others that have a budget, in turns again; and where all have run out, to what
    is popular.

    Args:
        lists: of every generator.
        keep: hold what merging needs for all users at once, since many blends are tried: some 10 bytes for a candidate.
    """

    def __init__(self, lists: Lists, keep: bool = False) -> None:
        self.lists = lists
        self._pools = list(self._blocks()) if keep else None
        self._recalls: dict[Budgets, float] = {}

    def recall(self, blends: Sequence[Budgets]) -> Float64Array:
        """Share of what each user could be shown that each blend finds, [U, number of blends].

        Args:
            blends: budgets of each generator; a blend has as many candidates as they add up to.
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
        """Mean of `recall` over users, remembered."""
        if budgets not in self._recalls:
            self._recalls[budgets] = float(self.recall([budgets]).mean())
        return self._recalls[budgets]

    def choose(self, among: Sequence[int], k: int) -> Budgets:
        """Budgets that add up to `k`, tenth by tenth to the generator with which most is found; the first among equals.

        Args:
            among: numbers of the generators that may have a budget.
            k: candidates in all.
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
class Plan:
    """Blends that were chosen without a look at what they are measured on.

    Attributes:
        everyone: budgets of the best blend of all generators.
        equal: all generators take turns, without budgets.
        equal_without: the same without each generator.
        retired: numbers of those that could go, the first to go first.
        stages: budgets of the best blend of those that are left after the first of them has gone, the second, ...
        without: of those that are left after none of them has gone, the first, ...: number -> budgets of the best blend
            without that one as well.
    """

    everyone: Budgets
    equal: Budgets
    equal_without: tuple[Budgets, ...]
    retired: tuple[int, ...]
    stages: tuple[Budgets, ...]
    without: tuple[Mapping[int, Budgets], ...]


def plan(funnel: Funnel, k: int, tolerance: float) -> Plan:
    """Choose budgets, and who could go.

    First those go that the best blend gives nothing; then, of those that are left, the one without which most is found,
    as long as the blend of the others, its budgets chosen anew, finds at most the share `tolerance` less than that of
    all.

    Args:
        funnel: over users whose future may be looked at; two generators or more.
        k: candidates in all.
        tolerance: share of the recall of all that may be lost by all that go together.
    """
    every = range(len(funnel.lists.names))
    blends, left, retired, without = [funnel.choose(every, k)], list(every), list[int](), list[Mapping[int, Budgets]]()
    target = (1 - tolerance) * funnel.mean_recall(blends[0])
    while True:
        # The last one cannot go.
        others = {g: [other for other in left if other != g] for g in left} if len(left) > 1 else {}
        without.append({g: funnel.choose(among, k) for g, among in others.items()})
        blend, options = blends[-1], without[-1]
        worst = max(options, key=lambda g: (not blend[g], funnel.mean_recall(options[g])), default=None)
        if worst is None or funnel.mean_recall(options[worst]) < target:
            break
        left.remove(worst)
        retired.append(worst)
        blends.append(options[worst])
    return Plan(
        blends[0],
        equal_turns(every, len(every), k),
        tuple(equal_turns([other for other in every if other != g], len(every), k) for g in every),
        tuple(retired),
        tuple(blends[1:]),
        tuple(without),
    )


def equal_turns(among: Sequence[int], num_generators: int, k: int) -> Budgets:
    """Budgets of `k` in all that differ by one at most; the first have more."""
    each, more = divmod(k, max(len(among), 1))
    budgets = [0] * num_generators
    for place, number in enumerate(among):
        budgets[number] = each + (place < more)
    return tuple(budgets)
