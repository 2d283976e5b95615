"""Candidate generators of one data set, asked, chosen from and measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from omegaconf import DictConfig

from recsys.baselines.interactions import Until
from recsys.core.errors import UserError
from recsys.data.dataset import Part, PreparedDataset, Requests
from recsys.experiments.assembly import open_data
from recsys.reports.generators.blending import Funnel, Plan, plan
from recsys.reports.generators.figures import Figures, measure
from recsys.reports.generators.lists import Lister, Lists, answerable, collect
from recsys.reports.generators.segments import segments
from recsys.reports.generators.sources import Source, open_sources, popular

Say = Callable[[str], None]


@dataclass(frozen=True)
class Study:
    """What was found out about generators.

    Attributes:
        sources: the generators, in the order of the figures.
        missing: those that the data is not for, and why.
        plan: the blends.
        figures: of generators and blends.
        tolerance: share of recall that may be lost by all that are retired.
        chosen_on: whose future the blends were chosen by, in words.
        fingerprint: names the data.
    """

    sources: Sequence[Source]
    missing: Mapping[str, str]
    plan: Plan
    figures: Figures
    tolerance: float
    chosen_on: str
    fingerprint: str


def study(config: DictConfig, say: Say) -> Study:
    """Ask generators for candidates, choose blends, and measure all of them.

    What is chosen (settings, budgets, who goes) is chosen on validation and measured on test. Where a model has learned
    from validation too, one half of the test users takes its place, and the others are measured.

    Args:
        config: composed from `conf/generators.yaml`.
        say: gets lines about what is being done.

    Raises:
        UserError: there is nobody to ask for, or a generator cannot be used.
    """
    if config.k < 1:
        raise UserError(f"k: found {config.k}, expected at least 1")
    if not 0 <= config.tolerance < 1:
        raise UserError(f"tolerance: found {config.tolerance}, expected a share, 0 or more and below 1")
    dataset = open_data(config)
    for part in ("val", "test"):
        if not len(answerable(dataset, part, config.exclude_seen, None, 0).user_idx):
            raise UserError(
                f"{dataset.path}: nobody has anything to find in the {part} part; generators are chosen on val and "
                "measured on test"
            )
    sources, missing = open_sources(config, dataset, say)
    in_halves = any(source.knows_validation for source in sources)
    choosing, measuring = (_halves if in_halves else _parts)(config, dataset, sources, say)
    say(f"choosing budgets for {len(choosing):,} users")
    chosen = plan(Funnel(choosing, keep=True), config.k, config.tolerance)
    say(f"measuring {len(measuring):,} users")
    figures = measure(measuring, chosen, segments(dataset, measuring.requests))
    chosen_on = "one half of the test users" if in_halves else "the validation part"
    return Study(sources, missing, chosen, figures, config.tolerance, chosen_on, dataset.meta.fingerprint)


def _parts(config: DictConfig, dataset: PreparedDataset, sources: Sequence[Source], say: Say) -> tuple[Lists, Lists]:
    """Validation to choose by, test to measure."""
    limits: Mapping[Part, int | None] = {"val": config.choosing_users, "test": config.max_users}
    val, test = (
        _collect(
            config, dataset, sources, part, answerable(dataset, part, config.exclude_seen, limit, config.seed), say
        )
        for part, limit in limits.items()
    )
    return val, test


def _halves(config: DictConfig, dataset: PreparedDataset, sources: Sequence[Source], say: Say) -> tuple[Lists, Lists]:
    """One half of the test users to choose by, the other to measure."""
    requests = answerable(dataset, "test", config.exclude_seen, config.max_users, config.seed)
    order = np.random.default_rng(config.seed).permutation(len(requests.user_idx))
    half = len(order) // 2
    if not half:
        raise UserError("one test user alone cannot be split into those to choose by and those to measure")
    lists = _collect(config, dataset, sources, "test", requests, say)
    return lists.take(np.sort(order[:half][: config.choosing_users])), lists.take(np.sort(order[half:]))


def _collect(
    config: DictConfig, dataset: PreparedDataset, sources: Sequence[Source], part: Part, requests: Requests, say: Say
) -> Lists:
    until: Until = "train" if part == "val" else "val"
    say(f"{part}: {len(requests.user_idx):,} users x {len(sources)} generators x {config.k} candidates")
    listers = {source.name: _opened(source, until) for source in sources}
    fallback = popular(dataset, until, config.exclude_seen)
    return collect(listers, fallback, dataset, part, requests, config.k, config.exclude_seen)


def _opened(source: Source, until: Until) -> Lister:
    """What opens its source once it is asked, so that one model is in memory at a time."""
    return lambda requests, k: source.open(until)(requests, k)
