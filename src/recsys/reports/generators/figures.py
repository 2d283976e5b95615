"""Figures of generators and blends: means over users, with intervals from one paired bootstrap.

Shapes: U users, G generators, K candidates, B bootstrap samples, M columns.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from recsys.core.types import Float64Array
from recsys.evaluation.significance import bootstrap_means
from recsys.index.merging import RankedLists
from recsys.reports.generators.blending import BlendPlan, Funnel
from recsys.reports.generators.lists import Lists

Columns = dict[str, Float64Array]

NUM_SAMPLES = 2_000
_BLOCK = 512


class Estimate(NamedTuple):
    """A mean over users with its 95% percentile interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class GeneratorFigures:
    """Figures of a generator by itself and in combination with the others.

    Attributes:
        full: share of users with K candidates of this generator: user coverage.
        some: share of users with any candidate of it.
        rate: hits per candidate shown, a proxy of the save rate.
        recall: share of relevant items that it finds, mean over users.
        unique: share of the hits of all generators that no other generator has.
        lost: recall that the full blend loses if this generator is retired and the budgets are chosen again.
        last: recall that it adds to all others if lists take equal turns, under the same total budget.
    """

    full: Estimate
    some: Estimate
    rate: Estimate
    recall: Estimate
    unique: Estimate
    lost: Estimate
    last: Estimate


@dataclass(frozen=True)
class Segment:
    """Figures in a group of users.

    Attributes:
        num_users: number of users in the group.
        recall: recall of each generator.
        blend: recall of the blend of all generators.
        lost: loss if each generator is retired; see `GeneratorFigures`.
    """

    num_users: int
    recall: tuple[Estimate, ...]
    blend: Estimate
    lost: tuple[Estimate, ...]


@dataclass(frozen=True)
class NewItems:
    """Figures of new items, those without an event before the test part.

    Attributes:
        num_users: number of users with relevant new items.
        relevant: share of new items among the relevant ones.
        recall: share of the relevant new items that are among the candidates of each generator, mean over these users.
        among: the same for lists of new items alone; None for generators that have no such lists.
        shown: share of new items among the candidates of each generator, mean over all users.
    """

    num_users: int
    relevant: Estimate
    recall: tuple[Estimate, ...]
    among: tuple[Estimate | None, ...]
    shown: tuple[Estimate, ...]


@dataclass(frozen=True)
class Figures:
    """All figures of the report.

    Attributes:
        names: names of the generators.
        k: number of candidates of each generator, and of each blend.
        num_users: number of users with relevant items.
        alone: figures of each generator.
        shared_lists: mean Jaccard similarity of a user's two lists, over users with any; {(g, h): ...} for g < h.
        shared_hits: Jaccard similarity of all hits.
        segments: figures by group of users.
        everyone, equal: recall of the blends.
        stages: recall of the blends after successive retirements.
        stage_gains: that recall minus the recall of `everyone`.
        needed: for each stage, the first of which has all generators, the loss if one of the remaining is retired as
            well.
        budget_gain: recall of `everyone` minus that of `equal`.
        union: recall of all lists together, without a budget: the upper bound of any blend.
        new_items: figures of new items; None if none is relevant.
    """

    names: tuple[str, ...]
    k: int
    num_users: int
    alone: tuple[GeneratorFigures, ...]
    shared_lists: Mapping[tuple[int, int], Estimate]
    shared_hits: Mapping[tuple[int, int], Estimate]
    segments: Mapping[str, Segment]
    everyone: Estimate
    equal: Estimate
    stages: tuple[Estimate, ...]
    stage_gains: tuple[Estimate, ...]
    needed: tuple[Mapping[int, Estimate], ...]
    budget_gain: Estimate
    union: Estimate
    new_items: NewItems | None


class BootstrapSamples:
    """Bootstrap samples of users, the same for all columns."""

    def __init__(self, columns: Mapping[str, Float64Array], rows: npt.NDArray[np.bool_] | None = None) -> None:
        self._at = {name: number for number, name in enumerate(columns)}
        values = np.stack(list(columns.values()), axis=1)
        values = values if rows is None else values[rows]
        self.num_users = len(values)
        self._means, self._samples = values.mean(0), bootstrap_means(values, NUM_SAMPLES)

    def of(self, figure: Callable[..., Float64Array], *names: str) -> Estimate:
        """Return a function of column means: its value, and its interval over the samples."""
        places = [self._at[name] for name in names]
        value = float(figure(*(self._means[place] for place in places)))
        low, high = np.quantile(figure(*(self._samples[:, place] for place in places)), [0.025, 0.975])
        return Estimate(value, float(low), float(high))

    def mean(self, name: str) -> Estimate:
        """Return the mean of a column."""
        return self.of(lambda mean: mean, name)

    def difference(self, first: str, second: str) -> Estimate:
        """Return the mean of the first column minus that of the second."""
        return self.of(lambda one, other: one - other, first, second)

    def ratio(self, first: str, second: str) -> Estimate:
        """Return the sum of the first column over the sum of the second; 0 if the second is zero."""
        return self.of(lambda one, other: one / np.maximum(other, 1e-12), first, second)


def measure(
    lists: Lists,
    plan: BlendPlan,
    *,
    segments: Mapping[str, npt.NDArray[np.bool_]],
    among_new: Mapping[int, Float64Array] = MappingProxyType({}),
) -> Figures:
    """Measure generators and blends.

    Args:
        lists: lists of users on whom nothing was chosen.
        plan: blends.
        segments: rows of each group of users, by name.
        among_new: recall of each user in lists of new items alone, by generator; see `recall_among_new`.
    """
    columns = _of_lists(lists) | _of_blends(lists, plan)
    columns |= {f"among {g}": recall for g, recall in among_new.items()}
    samples, every = BootstrapSamples(columns), range(len(lists.names))
    alone = tuple(
        GeneratorFigures(
            samples.mean(f"full {g}"),
            samples.mean(f"some {g}"),
            samples.ratio(f"hits {g}", f"shown {g}"),
            samples.mean(f"recall {g}"),
            samples.ratio(f"unique {g}", "found"),
            samples.difference("everyone", f"0 without {g}"),
            samples.difference("equal", f"equal without {g}"),
        )
        for g in every
    )
    pairs = [(g, h) for g in every for h in every if g < h]
    return Figures(
        lists.names,
        lists.k,
        len(lists),
        alone,
        {(g, h): samples.ratio(f"jaccard {g} {h}", f"listed {g} {h}") for g, h in pairs},
        {(g, h): samples.ratio(f"both {g} {h}", f"either {g} {h}") for g, h in pairs},
        {name: _segment(columns, rows, every=every) for name, rows in segments.items()},
        samples.mean("everyone"),
        samples.mean("equal"),
        tuple(samples.mean(f"stage {number}") for number in range(len(plan.stages))),
        tuple(samples.difference(f"stage {number}", "everyone") for number in range(len(plan.stages))),
        tuple(
            {
                g: samples.difference(f"stage {number - 1}" if number else "everyone", f"{number} without {g}")
                for g in blends
            }
            for number, blends in enumerate(plan.without)
        ),
        samples.difference("everyone", "equal"),
        samples.mean("union"),
        _new_items(lists, samples, among=among_new),
    )


def _new_items(lists: Lists, samples: BootstrapSamples, *, among: Container[int]) -> NewItems | None:
    if not lists.num_new.any():
        return None
    every = range(len(lists.names))
    return NewItems(
        int((lists.num_new > 0).sum()),
        samples.ratio("new", "relevant"),
        tuple(samples.ratio(f"new recall {g}", "wants new") for g in every),
        tuple(samples.ratio(f"among {g}", "wants new") if g in among else None for g in every),
        tuple(samples.mean(f"new shown {g}") for g in every),
    )


def _segment(columns: Columns, rows: npt.NDArray[np.bool_], *, every: Sequence[int]) -> Segment:
    names = ["everyone", *(f"{kind} {g}" for g in every for kind in ("recall", "0 without"))]
    samples = BootstrapSamples({name: columns[name] for name in names}, rows)
    return Segment(
        samples.num_users,
        tuple(samples.mean(f"recall {g}") for g in every),
        samples.mean("everyone"),
        tuple(samples.difference("everyone", f"0 without {g}") for g in every),
    )


def _of_lists(lists: Lists) -> Columns:
    every = range(len(lists.names))
    pairs = [(g, h) for g in every for h in every if g < h]
    of_each = ("full", "some", "hits", "shown", "recall", "unique", "new recall", "new shown")
    kinds = [f"{kind} {g}" for kind in of_each for g in every]
    kinds += [f"{kind} {g} {h}" for kind in ("jaccard", "listed", "both", "either") for g, h in pairs]
    columns = {name: np.zeros(len(lists)) for name in (*kinds, "found", "union")}
    columns |= {"new": lists.num_new.astype(np.float64), "relevant": lists.num_relevant.astype(np.float64)}
    columns["wants new"] = (lists.num_new > 0).astype(np.float64)
    for begin in range(0, len(lists), _BLOCK):
        rows = slice(begin, min(begin + _BLOCK, len(lists)))
        items, relevant = lists.items[rows, :-1].astype(np.int64), lists.num_relevant[rows]
        listed, hit = (_members(items, chosen) for chosen in (items > 0, lists.hits[rows, :-1]))
        finders = hit.sum(1)
        columns["found"][rows] = (finders > 0).sum(1)
        columns["union"][rows] = (finders > 0).sum(1) / relevant
        shown, hits = listed.sum(2), hit.sum(2)
        is_new = items > lists.num_seen
        new_hits = (is_new & lists.hits[rows, :-1]).sum(2) / np.maximum(lists.num_new[rows], 1)[:, None]
        new_shown = is_new.sum(2) / np.maximum((items > 0).sum(2), 1)
        common, common_hits = listed @ listed.transpose(0, 2, 1), hit @ hit.transpose(0, 2, 1)
        for g in every:
            columns[f"full {g}"][rows] = shown[:, g] == lists.k
            columns[f"some {g}"][rows] = shown[:, g] > 0
            columns[f"shown {g}"][rows], columns[f"hits {g}"][rows] = shown[:, g], hits[:, g]
            columns[f"recall {g}"][rows] = hits[:, g] / relevant
            columns[f"new recall {g}"][rows], columns[f"new shown {g}"][rows] = new_hits[:, g], new_shown[:, g]
            columns[f"unique {g}"][rows] = (hit[:, g] * (finders == 1)).sum(1)
        for g, h in pairs:
            union = shown[:, g] + shown[:, h] - common[:, g, h]
            columns[f"jaccard {g} {h}"][rows] = common[:, g, h] / np.maximum(union, 1)
            columns[f"listed {g} {h}"][rows] = union > 0
            columns[f"both {g} {h}"][rows] = common_hits[:, g, h]
            columns[f"either {g} {h}"][rows] = hits[:, g] + hits[:, h] - common_hits[:, g, h]
    return columns


def _members(items: npt.NDArray[np.int64], chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Return which of a user's items each list has among its chosen ones; float32 of 0 and 1, [U, G, G * K]."""
    number = RankedLists(np.where(items > 0, items, -1)).number
    num_users, num_lists, depth = items.shape
    members = np.zeros((num_users, num_lists, num_lists * depth), np.float32)
    user, of_list, place = np.nonzero(chosen)
    members[user, of_list, number[user, of_list, place]] = 1
    return members


def _of_blends(lists: Lists, plan: BlendPlan) -> Columns:
    blends = {"everyone": plan.everyone, "equal": plan.equal}
    blends |= {f"stage {number}": budgets for number, budgets in enumerate(plan.stages)}
    blends |= {f"{n} without {g}": budgets for n, found in enumerate(plan.without) for g, budgets in found.items()}
    blends |= {f"equal without {g}": budgets for g, budgets in enumerate(plan.equal_without)}
    recall = Funnel(lists).recall(list(blends.values()))
    return {name: recall[:, number] for number, name in enumerate(blends)}
