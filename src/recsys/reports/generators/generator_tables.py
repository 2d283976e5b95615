"""Tables of the generator report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from recsys.reports.generators.blending import BlendPlan
from recsys.reports.generators.figures import Estimate, Figures
from recsys.reports.generators.narrative import SHOWN, Advice, interval, kept_blend, percent, relative
from recsys.reports.generators.studied_generators import StudiedGenerator
from recsys.reports.presentation.report_table import ReportTable

# Maximum number of pairs in the table.
_MOST_PAIRS = 12


def main(figures: Figures, advice: Sequence[Advice]) -> ReportTable:
    """Tabulate every generator with its intervals, in the order of the advice."""
    rows = []
    for item in advice:
        alone = figures.alone[figures.names.index(item.name)]
        cells = [_with_interval(share) for share in (alone.recall, alone.rate, alone.full, alone.unique)]
        changes = [_with_interval(relative(gain, figures.everyone), True) for gain in (alone.lost, alone.last)]
        rows.append((item.name, SHOWN[item.verdict], *cells, *changes))
    shares = ("recall", "hit rate", "user coverage", "unique hits")
    heads = ("generator", "advice", *shares, "lost if retired", "added last")
    note = (
        f"In brackets: 95% interval. {figures.k} candidates each, {figures.num_users:,} users. Recall: share of a "
        "user's later items that are among the candidates. Hit rate: share of the candidates that are hits. User "
        f"coverage: share of users with {figures.k} candidates of this generator. Unique hits: share of all hits that "
        "no other generator has. Lost if retired: share of the best blend's recall that is lost if the others share "
        "its budget. Added last: recall that it adds to all others in equal turns, with the same number of candidates."
    )
    return ReportTable("Generators under one budget", heads, tuple(rows), note)


def recommendation(advice: Sequence[Advice]) -> ReportTable:
    """Tabulate the advice with its reasons."""
    rows = tuple((item.name, SHOWN[item.verdict], item.why) for item in advice)
    return ReportTable("Generators to keep and to retire", ("generator", "advice", "why"), rows)


def overlaps(figures: Figures) -> ReportTable:
    """Tabulate pairs of generators, those that share most first."""
    pairs = sorted(figures.shared_hits, key=lambda pair: -figures.shared_hits[pair].value)
    rows = []
    for pair in pairs[:_MOST_PAIRS]:
        cells = [_with_interval(shared[pair]) for shared in (figures.shared_hits, figures.shared_lists)]
        rows.append((" and ".join(figures.names[number] for number in pair), *cells))
    note = (
        "Jaccard similarity: of the items that either has, how many both have; lists: mean over users. In brackets: "
        "95% interval."
    )
    if len(pairs) > _MOST_PAIRS:
        note += f" {len(pairs) - _MOST_PAIRS} pairs that share less are not shown."
    return ReportTable("Pairs that share most", ("pair", "hits", "lists"), tuple(rows), note)


def groups(figures: Figures) -> tuple[ReportTable, ...]:
    """Tabulate recall, and the loss if a generator is retired, in each group of users; nothing without groups."""
    segments = figures.segments.values()
    if not segments:
        return ()
    heads = ("generator", *(f"{name} ({group.num_users:,})" for name, group in figures.segments.items()))
    recall = [("best blend", *(_with_interval(group.blend) for group in segments))]
    losses = []
    for g, name in enumerate(figures.names):
        recall.append((name, *(_with_interval(group.recall[g]) for group in segments)))
        losses.append((name, *(_with_interval(relative(group.lost[g], group.blend), True) for group in segments)))
    note = "Share of the best blend's recall in the group; in brackets: 95% interval. Above zero: the group loses."
    return (
        ReportTable("Recall by group of users", heads, tuple(recall), "In brackets: 95% interval."),
        ReportTable("Lost if retired, by group of users", heads, tuple(losses), note),
    )


def new_items(figures: Figures) -> tuple[ReportTable, ...]:
    """Tabulate what each generator does for new items, the best recall first; nothing without relevant new items."""
    found = figures.new_items
    if found is None:
        return ()
    order = sorted(range(len(figures.names)), key=lambda g: -found.recall[g].value)
    rows = []
    for g in order:
        among = found.among[g]
        cells = (_with_interval(found.recall[g]), "" if among is None else _with_interval(among))
        rows.append((figures.names[g], *cells, _with_interval(found.shown[g])))
    note = (
        f"New items have no event before the test part. They are {_with_interval(found.relevant)} of the relevant "
        f"items, and {found.num_users:,} of {figures.num_users:,} users have one. Recall: share of a user's relevant "
        "new items that are among the candidates. Among new items: the same for candidates that are all new, which "
        "heuristics do not have. Shown: share of new items among the candidates, mean over all users. In brackets: "
        "95% interval."
    )
    heads = ("generator", "recall of new items", "among new items", "new items shown")
    return (ReportTable("New items", heads, tuple(rows), note),)


def blends(figures: Figures, plan: BlendPlan, *, tolerance: float) -> ReportTable:
    """Tabulate the blends with their budgets."""
    budgets_kept, recall_kept, _ = kept_blend(figures, plan, tolerance=tolerance)
    shown = (
        ("all, best budgets", figures.everyone, plan.everyone),
        ("kept generators, best budgets", recall_kept, budgets_kept),
        ("all, equal turns", figures.equal, plan.equal),
    )
    rows = [
        (name, percent(recall.value), interval(recall), *(str(budget) for budget in budgets))
        for name, recall, budgets in shown
    ]
    union = figures.union
    rows.append(
        ("all lists in full, without a budget", percent(union.value), interval(union), *("" for _ in figures.names))
    )
    note = (
        "Generators take turns. Each adds its best candidate that is not in the list yet, until its budget is spent. "
        "Unused budget goes to the other generators, then to popular items."
    )
    return ReportTable("Blends and their budgets", ("blend", "recall", "95%", *figures.names), tuple(rows), note)


def sources(figures: Figures, found: Sequence[StudiedGenerator], *, missing: Mapping[str, str]) -> ReportTable:
    """Tabulate the generators, their settings and their methods."""
    rows = [(s.name, "learned" if s.is_learned else "heuristic", s.detail, s.method) for s in found]
    rows += [(name, "left out", "", why) for name, why in missing.items()]
    note = (
        "A candidate generator selects items for a user from the corpus; later stages rank only these candidates. "
        f"Each generator gives up to {figures.k} items from the user's history before the test part, or fewer if "
        "it can score fewer. A candidate is a hit if the user engaged with it in the test part."
    )
    return ReportTable("Kinds and settings", ("generator", "kind", "settings", "method"), tuple(rows), note)


def _with_interval(estimate: Estimate, signed: bool = False) -> str:
    value, low, high = (percent(part, signed) for part in estimate)
    return value if low == high else f"{value} ({low[:-1]} to {high[:-1]})"
