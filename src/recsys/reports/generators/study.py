"""Study of the candidate generators of one data set: collect candidates, choose blends, measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from omegaconf import DictConfig

from recsys.baselines.interactions import Until
from recsys.core.errors import UserError
from recsys.core.progress import say
from recsys.data.dataset import Part, PreparedDataset, Requests
from recsys.experiments.assembly import open_data
from recsys.reports.generators.blending import BlendPlan, Funnel, plan_blends
from recsys.reports.generators.figures import Figures, measure
from recsys.reports.generators.lists import Lister, Lists, answerable, collect, recall_among_new
from recsys.reports.generators.segments import segments
from recsys.reports.generators.studied_generators import StudiedGenerator, open_generators, popular


@dataclass(frozen=True)
class Study:
    """Results of a study of generators.

    Attributes:
        sources: generators, in the order of the figures.
        missing: generators that cannot use the data, with the reason.
        plan: blends.
        figures: figures of generators and blends.
        tolerance: share of recall that all retired generators together may lose.
        chosen_on: description of the users on whom blends were chosen.
        fingerprint: fingerprint of the data.
    """

    sources: Sequence[StudiedGenerator]
    missing: Mapping[str, str]
    plan: BlendPlan
    figures: Figures
    tolerance: float
    chosen_on: str
    fingerprint: str


def study(config: DictConfig) -> Study:
    """Collect the candidates of all generators, choose blends, and measure both.

    Settings, budgets and retired generators are chosen on validation and measured on test. If a model has learned from
    validation too, choices are made on one half of the test users and the other half is measured.

    Args:
        config: configuration composed from `conf/generators.yaml`.

    Raises:
        UserError: If there are no users to measure on, or a generator cannot be used.
    """
    if config.k < 1:
        raise UserError(f"k: found {config.k}, expected at least 1")
    if not 0 <= config.tolerance < 1:
        raise UserError(f"tolerance: found {config.tolerance}, expected a share, 0 or more and below 1")
    dataset = open_data(config)
    for part in ("val", "test"):
        if not len(answerable(dataset, part, exclude_seen=config.exclude_seen, max_users=None, seed=0).user_idx):
            raise UserError(
                f"{dataset.path}: nobody has anything to find in the {part} part; generators are chosen on val and "
                "measured on test"
            )
    sources, missing = open_generators(config, dataset)
    in_halves = any(source.knows_validation for source in sources)
    choosing, measuring = (_halves if in_halves else _parts)(config, dataset, sources=sources)
    say(f"choosing budgets for {len(choosing):,} users")
    chosen = plan_blends(Funnel(choosing, keep=True), config.k, tolerance=config.tolerance)
    say(f"measuring {len(measuring):,} users")
    among = {
        g: recall_among_new(source.among_new, measuring, dataset, exclude_seen=config.exclude_seen)
        for g, source in enumerate(sources)
        if source.among_new is not None and measuring.num_new.any()
    }
    figures = measure(measuring, chosen, segments=segments(dataset, measuring.requests), among_new=among)
    chosen_on = "one half of the test users" if in_halves else "the validation part"
    return Study(sources, missing, chosen, figures, config.tolerance, chosen_on, dataset.meta.fingerprint)


def _parts(config: DictConfig, dataset: PreparedDataset, *, sources: Sequence[StudiedGenerator]) -> tuple[Lists, Lists]:
    """Return the lists of the validation part, for choices, and of the test part, for measurement."""
    limits: Mapping[Part, int | None] = {"val": config.choosing_users, "test": config.max_users}
    val, test = (
        _collect(
            config,
            dataset,
            sources=sources,
            part=part,
            requests=answerable(dataset, part, exclude_seen=config.exclude_seen, max_users=limit, seed=config.seed),
        )
        for part, limit in limits.items()
    )
    return val, test


def _halves(
    config: DictConfig, dataset: PreparedDataset, *, sources: Sequence[StudiedGenerator]
) -> tuple[Lists, Lists]:
    """Return the lists of one half of the test users, for choices, and of the other half, for measurement."""
    requests = answerable(
        dataset, "test", exclude_seen=config.exclude_seen, max_users=config.max_users, seed=config.seed
    )
    order = np.random.default_rng(config.seed).permutation(len(requests.user_idx))
    half = len(order) // 2
    if not half:
        raise UserError("one test user cannot be split into one part for choices and one for measurement")
    lists = _collect(config, dataset, sources=sources, part="test", requests=requests)
    return lists.take(np.sort(order[:half][: config.choosing_users])), lists.take(np.sort(order[half:]))


def _collect(
    config: DictConfig,
    dataset: PreparedDataset,
    *,
    sources: Sequence[StudiedGenerator],
    part: Part,
    requests: Requests,
) -> Lists:
    until: Until = "train" if part == "val" else "val"
    say(f"{part}: {len(requests.user_idx):,} users x {len(sources)} generators x {config.k} candidates")
    listers = {source.name: _opened(source, until) for source in sources}
    fallback = popular(dataset, until, exclude_seen=config.exclude_seen)
    return collect(
        listers, fallback, dataset=dataset, part=part, requests=requests, k=config.k, exclude_seen=config.exclude_seen
    )


def _opened(source: StudiedGenerator, until: Until) -> Lister:
    """Return a lister that opens its generator on first use, so that only one model is in memory at a time."""
    return lambda requests, k: source.open(until)(requests, k)
