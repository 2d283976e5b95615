"""Findings of a comparison in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from recsys.evaluation.slices import SHOWN
from recsys.reports.comparison.differences import LEVEL, PART, Difference
from recsys.reports.comparison.measured import MeasuredRun

SLICES = {
    "head": "popular items (head)",
    "mid": "items in between (mid)",
    "tail": "rare items (tail)",
    "cold_items": "new items",
    "among_cold_items": "new items, ranked among themselves",
    "age_0_to_1_days": "items up to a day old",
    "age_1_to_7_days": "items of 1 to 7 days",
    "age_7_to_30_days": "items of 7 to 30 days",
    "age_30_to_90_days": "items of 30 to 90 days",
    "age_over_90_days": "items older than 90 days",
    "born_later": "items born in the test part",
    "cold_users": "new users",
    "warm_users": "users with training",
    "cold_users_with_profile": "new users with a profile",
    "cold_users_without_profile": "new users without a profile",
}
_MOST_SENTENCES = 5
JUDGED = {"better": "▲ better", "worse": "▼ worse", "unclear": "no difference shown"}
# Of the share of new items that are shown, neither more nor less is better in itself.
_SHARES = {"better": "▲ more", "worse": "▼ fewer", "unclear": JUDGED["unclear"]}


def p_text(value: float) -> str:
    """Return a p-value in the form that papers use."""
    return "< 0.001" if value < 0.001 else "1" if value > 0.9995 else f"{value:.3f}"


def gain(difference: Difference) -> str:
    """Return the relative gain, or the absolute gain if the baseline's mean is zero."""
    relative = difference.relative
    return f"{difference.paired.difference:+.4f}" if relative is None else f"{relative[0]:+.1%}"


def interval(difference: Difference) -> str:
    """Return the 95% interval of the gain, in the unit of the gain."""
    relative = difference.relative
    if relative is None:
        return f"{difference.paired.low:+.4f} to {difference.paired.high:+.4f}"
    return f"{relative[1]:+.1%} to {relative[2]:+.1%}"


def title_of(metric: str) -> str:
    """Return a readable name of a slice's metric, such as `rare items (tail)` for `tail/recall@10`."""
    name, _, rest = metric.rpartition("/")
    if is_share(metric):
        return "share of new items shown"
    return SLICES.get(name, rest)


def is_share(metric: str) -> bool:
    """Return whether a metric is the share of new items among those shown."""
    return metric.startswith(SHOWN)


def judged(difference: Difference) -> str:
    """Return the verdict of a difference in a few words."""
    return (_SHARES if is_share(difference.paired.metric) else JUDGED)[difference.verdict]


def verdicts(runs: Sequence[MeasuredRun], found: Sequence[Difference]) -> list[str]:
    """Return one sentence about all runs, and one per run: the first metric in full, then the other metrics in short.

    If many runs are compared with one baseline, only the best ones have their own sentence.
    """
    by_name = {run.name: run for run in runs}
    decisive = [difference for difference in found if difference.paired.metric == found[0].paired.metric]
    decisive.sort(key=lambda difference: -difference.paired.difference)
    pairs = [(difference.run, difference.baseline) for difference in decisive]
    corrected = f", corrected for {len(found)} comparisons" if len(found) > 1 else ""
    sentences = []
    if len({baseline for _, baseline in pairs}) == 1 < len(pairs):
        # The correction is mentioned once, in the overall sentence.
        sentences.append(_overall(decisive, corrected))
        corrected, pairs = "", pairs[:_MOST_SENTENCES]
    for run, baseline in pairs:
        first, *others = [d for d in found if (d.run, d.baseline) == (run, baseline)]
        parts = [_first(first, corrected)]
        for verdict, words in (("better", "better"), ("worse", "worse"), ("unclear", "no difference shown")):
            if names := [d.paired.metric for d in others if d.verdict == verdict]:
                also = "also " if verdict == first.verdict and verdict != "unclear" else ""
                parts.append(f"{also}{words} in {_joined(names)}")
        parts += _variety(by_name[run], by_name[baseline], metric=first.paired.metric)
        sentences.append("; ".join(parts) + ".")
    return sentences


def _overall(decisive: Sequence[Difference], corrected: str) -> str:
    """Return a sentence that compares all runs with one baseline."""
    parts = []
    for verdict, words in (("better", "better"), ("worse", "worse"), ("unclear", "not significant")):
        names = [difference.run for difference in decisive if difference.verdict == verdict]
        parts.append(f"{words}: {_joined(names) if names else 'none'}")
    against = f"Against {decisive[0].baseline} in {decisive[0].paired.metric}"
    return f"{against}, {'; '.join(parts)} (at p < {LEVEL}{corrected})."


def _first(difference: Difference, corrected: str) -> str:
    pair, size = difference.paired, f"{difference.paired.second:.4f} against {difference.paired.first:.4f}"
    evidence = f"95% interval {interval(difference)}, p {p_equals(difference.p_value)}{corrected}"
    if difference.verdict == "unclear":
        return (
            f"{difference.run} and {difference.baseline} do not differ significantly in {pair.metric} "
            f"({size}, {gain(difference)}, {evidence})"
        )
    by = gain(difference).lstrip("+-")
    return (
        f"{difference.run} is {difference.verdict} than {difference.baseline} in {pair.metric} by {by} "
        f"({size}, {evidence})"
    )


def _variety(run: MeasuredRun, baseline: MeasuredRun, *, metric: str) -> list[str]:
    """Return a sentence about the coverage and popularity of a run's lists."""
    cutoff = metric.rpartition("@")[2]
    parts = []
    for name, more, less in (
        (f"coverage@{cutoff}", "shows more of the corpus", "shows less of the corpus"),
        (f"popularity@{cutoff}", "shows more popular items", "shows less popular items"),
    ):
        mine, its = run.metrics.get(PART + name), baseline.metrics.get(PART + name)
        # Differences below a tenth are not mentioned.
        if mine is not None and its is not None and abs(mine - its) > 0.1 * abs(its):
            sizes = [f"{value:.1%}" if name.startswith("coverage") else f"{value:.1f}" for value in (mine, its)]
            parts.append(f"{more if mine > its else less} ({name} {' against '.join(sizes)})")
    return parts


def p_equals(p_value: float) -> str:
    """Return a p-value with its relation sign, to follow the letter p."""
    text = p_text(p_value)
    return text if text.startswith("<") else f"= {text}"


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
