"""Configuration keys that have a new name: the old name is refused with the new one."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Old key -> new key. A key appears here for as long as somebody may still have it in a script or a YAML file.
RENAMED = {
    "gates.clock.ahead_hours": "gates.clock.max_ahead_hours",
    "gates.gaps.longer": "gates.gaps.max_ratio",
    "gates.gaps.longest_days": "gates.gaps.max_gap_days",
    "gates.volume.least": "gates.volume.min_ratio",
    "gates.volume.most": "gates.volume.max_ratio",
    "gates.volume.deviations": "gates.volume.max_deviations",
    "gates.volume.fewest_days": "gates.volume.min_reference_days",
    "gates.activity.times": "gates.activity.max_ratio",
    "gates.activity.deviations": "gates.activity.max_deviations",
    "gates.activity.fewest_days": "gates.activity.min_reference_days",
    "gates.activity.fewest_users": "gates.activity.min_users",
    "gates.nulls.more": "gates.nulls.max_increase",
    "gates.unseen.more": "gates.unseen.max_increase",
    "gates.unseen.times": "gates.unseen.max_ratio",
    "gates.unseen.least": "gates.unseen.min_new_users_ratio",
    "gates.unseen.fewest": "gates.unseen.min_usual_new_users",
    "gates.duplicates.more": "gates.duplicates.max_increase",
    "gates.duplicates.busiest": "gates.duplicates.max_busiest_user_increase",
    "gates.labels.most": "gates.labels.max_distance",
    "gates.items.more": "gates.items.max_distance_increase",
    "gates.items.items": "gates.items.num_popular_items",
    "gates.items.risen": "gates.items.max_risen_increase",
    "gates.items.risen_items": "gates.items.num_risen_items",
    "gates.items.vanished": "gates.items.max_vanished_increase",
    "gates.items.fewest": "gates.items.min_expected_items",
    "gates.border.tolerance_days": "gates.border.max_overlap_days",
    "gates.repeats.more": "gates.repeats.max_increase",
    "gates.too_good.per_day": "gates.too_good.max_gain_per_day",
    "gates.too_good.least": "gates.too_good.min_absolute_gain",
    "gates.not_worse.margin": "gates.not_worse.non_inferiority_margin",
    "gates.not_worse.slice_margin": "gates.not_worse.slice_non_inferiority_margin",
    "gates.not_worse.level": "gates.not_worse.significance_level",
    "gates.not_worse.noticed": "gates.not_worse.detectable_loss",
    "gates.record.share": "gates.record.min_ratio",
    "gates.record.level": "gates.record.significance_level",
    "gates.record.noticed": "gates.record.detectable_loss",
    "gates.record.fewest_users": "gates.record.min_users",
    "gates.predictable.share": "gates.predictable.min_ratio",
    "gates.predictable.level": "gates.predictable.significance_level",
    "gates.predictable.noticed": "gates.predictable.detectable_loss",
    "gates.absolute.factor": "gates.absolute.min_ratio",
    "gates.coverage.share": "gates.coverage.min_ratio",
    "gates.popularity.growth": "gates.popularity.max_ratio",
    "gates.popularity.head": "gates.popularity.max_head_increase",
    "gates.overlap.least": "gates.overlap.min_overlap",
    "gates.embeddings.apart": "gates.embeddings.min_distance_ratio",
    "gates.embeddings.norms": "gates.embeddings.max_norm_spread_ratio",
    "gates.embeddings.spread": "gates.embeddings.min_score_spread_ratio",
    "gates.shadow.fewest": "gates.shadow.min_requests",
    "gates.shadow.worse": "gates.shadow.max_increase",
    "gates.shadow.overlap": "gates.shadow.min_overlap",
    "gates.shadow.moved": "gates.shadow.max_popularity_ratio",
    "gates.shadow.spread": "gates.shadow.min_score_spread_ratio",
    "gates.shadow.slower": "gates.shadow.max_latency_ratio",
    "gates.shadow_hits.margin": "gates.shadow_hits.non_inferiority_margin",
    "gates.shadow_hits.level": "gates.shadow_hits.significance_level",
    "gates.shadow_hits.noticed": "gates.shadow_hits.detectable_loss",
    "gates.index.least": "gates.index.min_recall",
    "gates.index.most_requests": "gates.index.max_requests",
    "gates.latency.slower": "gates.latency.max_ratio",
    "gates.latency.rounds": "gates.latency.num_requests",
    "gates.size.growth": "gates.size.max_bytes_ratio",
    "gates.size.fewest_items": "gates.size.min_items_ratio",
    "gates.size.most_items": "gates.size.max_items_ratio",
    "gates.size.kept_items": "gates.size.min_kept_items",
    "gates.fresh.behind_days": "gates.fresh.max_days_behind",
    "gates.fresh.past": "gates.fresh.min_span_ratio",
    "gates.reproduces.tolerance": "gates.reproduces.max_relative_difference",
}


def renamed(key: str) -> str | None:
    """Return the message that refuses an old key; None if the key was not renamed.

    Args:
        key: dotted key, such as `gates.volume.least`.
    """
    new = RENAMED.get(key)
    return None if new is None else f"{key}: renamed, use {new}"


def renamed_override(overrides: Iterable[str]) -> str | None:
    """Return the message for the first override of the command line that sets an old key; None if there is none.

    Args:
        overrides: words such as `gates.volume.least=0.5`, `+gates.volume.least=0.5` or `~gates.volume.least`.
    """
    keys = (re.sub(r"^[~+]+", "", word).partition("=")[0] for word in overrides)
    return next((message for key in keys if (message := renamed(key)) is not None), None)
