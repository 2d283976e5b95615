"""Tables of the generator report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from recsys.reports.generators.blending import BlendPlan
from recsys.reports.generators.figures import Estimate, Figures
from recsys.reports.generators.narrative import SHOWN, Advice, interval, kept, percent, relative
from recsys.reports.generators.studied_generators import StudiedGenerator
from recsys.reports.presentation.report_table import ReportTable

_TITLE = "Generators under one budget"
_HEADS = ("generator", "advice", "recall", "hit rate", "user coverage", "unique hits", "lost if retired", "added last")
# Maximum number of pairs in the table.
_MOST_PAIRS = 12


def main(figures: Figures, advice: Sequence[Advice]) -> ReportTable:
    """Tabulate every generator with its intervals, in the order of the advice."""
    rows = []
    for said in advice:
        alone = figures.alone[figures.names.index(said.name)]
        changes = (relative(alone.lost, figures.everyone), relative(alone.last, figures.everyone))
        cells = [_with_interval(share) for share in (alone.recall, alone.rate, alone.full, alone.unique)]
        rows.append((said.name, SHOWN[said.verdict], *cells, *(_with_interval(change, True) for change in changes)))
    return ReportTable(_TITLE, _HEADS, tuple(rows), f"In brackets: 95% interval. {_note(figures)}")


def terminal(figures: Figures, advice: Sequence[Advice]) -> ReportTable:
    """Tabulate every generator without intervals, except that of the loss."""
    rows = []
    for said in advice:
        alone = figures.alone[figures.names.index(said.name)]
        lost, last = relative(alone.lost, figures.everyone), relative(alone.last, figures.everyone)
        cells = [percent(share.value) for share in (alone.recall, alone.rate, alone.full, alone.unique)]
        rows.append((said.name, SHOWN[said.verdict], *cells, _with_interval(lost, True), percent(last.value, True)))
    return ReportTable(_TITLE, _HEADS, tuple(rows), _note(figures))


def recommendation(advice: Sequence[Advice]) -> ReportTable:
    """Tabulate the advice with its reasons."""
    rows = tuple((said.name, SHOWN[said.verdict], said.why) for said in advice)
    return ReportTable("What to keep, and what to retire", ("generator", "advice", "why"), rows)


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
    budgets_kept, recall_kept, _ = kept(figures, plan, tolerance=tolerance)
    shown = (
        ("all, best budgets", figures.everyone, plan.everyone),
        ("those that stay, best budgets", recall_kept, budgets_kept),
        ("all, equal turns", figures.equal, plan.equal),
    )
    rows = [
        (name, percent(recall.value), interval(recall), *(str(budget) for budget in budgets))
        for name, recall, budgets in shown
    ]
    union = figures.union
    rows.append(
        ("all lists whole, without a budget", percent(union.value), interval(union), *("" for _ in figures.names))
    )
    note = (
        "Generators take turns, best candidate first, nothing twice, until a budget is spent; what one cannot spend is "
        "left to the others, and then to what is popular."
    )
    return ReportTable("Blends and their budgets", ("blend", "recall", "95%", *figures.names), tuple(rows), note)


def sources(figures: Figures, found: Sequence[StudiedGenerator], *, missing: Mapping[str, str]) -> ReportTable:
    """Tabulate the generators, their settings and their methods."""
    rows = [(s.name, "learned" if s.is_learned else "heuristic", s.detail, s.what) for s in found]
    rows += [(name, "left out", "", why) for name, why in missing.items()]
    note = (
        f"A candidate generator picks items for a user from all there are; what follows ranks only what generators "
        f"bring. Each gives up to {figures.k} items it knows something about, from the user's history before the test "
        "part, and nothing where it knows nothing. Then one looks at what the user went on to engage with: an item of "
        "the list among that is a hit."
    )
    return ReportTable("Generators", ("generator", "kind", "settings", "what it does"), tuple(rows), note)


def _note(figures: Figures) -> str:
    return (
        f"{figures.k} candidates each, {figures.num_users:,} users. Recall: share of what a user went on to engage "
        "with that is among them. Hit rate: share of the candidates that the user went on to engage with. User "
        "coverage: "
        f"users that get {figures.k} of its own. Unique hits: share of all hits that no other generator has. Lost if "
        "retired: of the best blend's recall, what goes with it when the others share its budget. Added last: what it "
        "adds when it joins all others in equal turns, at the same total."
    )


def _with_interval(estimate: Estimate, signed: bool = False) -> str:
    value, low, high = (percent(part, signed) for part in estimate)
    return value if low == high else f"{value} ({low[:-1]} to {high[:-1]})"
