"""Tables of the generator report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from recsys.reports.generators.blending import BlendPlan
from recsys.reports.generators.figures import Estimate, Figures
from recsys.reports.generators.narrative import SHOWN, Advice, interval, kept_blend, percent, relative
from recsys.reports.generators.studied_generators import StudiedGenerator
from recsys.reports.presentation.report_table import ReportTable

_TITLE = "Generators under one budget"
_HEADS = ("generator", "advice", "recall", "hit rate", "user coverage", "unique hits", "lost if retired", "added last")
# Maximum number of pairs in the table.
_MOST_PAIRS = 12


def main(figures: Figures, advice: Sequence[Advice]) -> ReportTable:
    """Tabulate every generator with its intervals, in the order of the advice."""
    rows = []
    for item in advice:
        alone = figures.alone[figures.names.index(item.name)]
        changes = (relative(alone.lost, figures.everyone), relative(alone.last, figures.everyone))
        cells = [_with_interval(share) for share in (alone.recall, alone.rate, alone.full, alone.unique)]
        rows.append((item.name, SHOWN[item.verdict], *cells, *(_with_interval(change, True) for change in changes)))
    return ReportTable(_TITLE, _HEADS, tuple(rows), f"In brackets: 95% interval. {_note(figures)}")


def terminal(figures: Figures, advice: Sequence[Advice]) -> ReportTable:
    """Tabulate every generator without intervals, except that of the loss."""
    rows = []
    for item in advice:
        alone = figures.alone[figures.names.index(item.name)]
        lost, last = relative(alone.lost, figures.everyone), relative(alone.last, figures.everyone)
        cells = [percent(share.value) for share in (alone.recall, alone.rate, alone.full, alone.unique)]
        rows.append((item.name, SHOWN[item.verdict], *cells, _with_interval(lost, True), percent(last.value, True)))
    return ReportTable(_TITLE, _HEADS, tuple(rows), _note(figures))


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


def segments(figures: Figures) -> ReportTable:
    """Tabulate the recall of each generator in each group of users."""
    groups = figures.segments.values()
    rows = [("best blend", *(_with_interval(group.blend) for group in groups))]
    rows += [
        (name, *(_with_interval(group.recall[number]) for group in groups)) for number, name in enumerate(figures.names)
    ]
    return ReportTable("Recall by group of users", _groups(figures), tuple(rows), "In brackets: 95% interval.")


def losses(figures: Figures) -> ReportTable:
    """Tabulate the loss of each group of users if a generator is retired."""
    rows = [
        (
            name,
            *(_with_interval(relative(group.lost[number], group.blend), True) for group in figures.segments.values()),
        )
        for number, name in enumerate(figures.names)
    ]
    note = "Share of the best blend's recall in the group; in brackets: 95% interval. Above zero: the group loses."
    return ReportTable("Lost if retired, by group of users", _groups(figures), tuple(rows), note)


def _groups(figures: Figures) -> tuple[str, ...]:
    return ("generator", *(f"{name} ({group.num_users:,})" for name, group in figures.segments.items()))


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
    return ReportTable("Generators", ("generator", "kind", "settings", "method"), tuple(rows), note)


def _note(figures: Figures) -> str:
    return (
        f"{figures.k} candidates each, {figures.num_users:,} users. Recall: share of a user's later items that "
        "are among the candidates. Hit rate: share of the candidates that are hits. User coverage: share of users with "
        f"{figures.k} candidates of this generator. Unique hits: share of all hits that no other generator has. Lost "
        "if retired: share of the best blend's recall that is lost if the others share its budget. Added last: recall "
        "that it adds to all others in equal turns, with the same number of candidates."
    )


def _with_interval(estimate: Estimate, signed: bool = False) -> str:
    value, low, high = (percent(part, signed) for part in estimate)
    return value if low == high else f"{value} ({low[:-1]} to {high[:-1]})"
