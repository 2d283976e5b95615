"""Tables of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from recsys.funnel.blending import Plan
from recsys.funnel.figures import Estimate, Figures
from recsys.funnel.sources import Source
from recsys.funnel.words import SHOWN, Advice, interval, percent, relative
from recsys.presentation.sheet import Sheet


def main(figures: Figures, advice: Sequence[Advice]) -> Sheet:
    """Every generator in one row, in the order of the advice."""
    rows = []
    for said in advice:
        alone = figures.alone[figures.names.index(said.name)]
        shares = (alone.full, alone.recall, alone.rate, alone.unique)
        cells = [cell for share in shares for cell in (percent(share.value), interval(share))]
        for change in (alone.last, alone.lost):
            part = relative(change, figures.everyone)
            cells += [percent(part.value, True), interval(part, True)]
        rows.append((said.name, SHOWN[said.verdict], *cells))
    heads = ("full lists", "recall", "hit rate", "unique hits", "added last", "lost if retired")
    columns = ("generator", "advice", *(cell for head in heads for cell in (head, "95%")))
    note = (
        f"{figures.k} candidates each, {figures.num_users:,} users. Full lists: users that get {figures.k} of its own. "
        "Recall: of what a user went on to engage with, how much is among them. Hit rate: of the candidates, how many "
        "the user went on to engage with. Unique hits: of all hits, those of no other generator. Added last: change of "
        "recall when it joins all others in equal turns, at the same total. Lost if retired: what the best blend loses "
        "when it goes and the others share its budget. The last two are shares of the best blend's recall."
    )
    return Sheet("Generators under one budget", columns, tuple(rows), note)


def terminal(figures: Figures, advice: Sequence[Advice]) -> Sheet:
    """The same without the intervals of all but the last figure."""
    whole = main(figures, advice)
    kept = [at for at, head in enumerate(whole.columns) if head != "95%"] + [len(whole.columns) - 1]
    columns = tuple(whole.columns[at] for at in kept)
    return Sheet(whole.title, columns, tuple(tuple(row[at] for at in kept) for row in whole.rows), whole.note)


def recommendation(advice: Sequence[Advice]) -> Sheet:
    """What to do, and why."""
    rows = tuple((said.name, SHOWN[said.verdict], said.why) for said in advice)
    return Sheet("What to keep, and what to retire", ("generator", "advice", "why"), rows)


def overlaps(figures: Figures) -> Sheet:
    """Pairs of generators, those that share most first."""
    pairs = sorted(figures.shared_hits, key=lambda pair: -figures.shared_hits[pair].value)
    rows = []
    for pair in pairs:
        cells = []
        for shared in (figures.shared_lists[pair], figures.shared_hits[pair]):
            cells += [percent(shared.value), interval(shared)]
        rows.append((" and ".join(figures.names[number] for number in pair), *cells))
    note = "Jaccard similarity: of the items that either has, how many both have. Lists: mean over users with either."
    return Sheet("What pairs share", ("pair", "lists", "95%", "hits", "95%"), tuple(rows), note)


def segments(figures: Figures) -> Sheet:
    """Recall of each generator in each group of users."""
    rows = []
    for name, segment in figures.segments.items():
        cells = [_with_interval(recall) for recall in (segment.blend, *segment.recall)]
        rows.append((name, f"{segment.num_users:,}", *cells))
    columns = ("users who are", "number", "best blend", *figures.names)
    return Sheet("Recall by group of users", columns, tuple(rows), "In brackets: 95% interval.")


def losses(figures: Figures) -> Sheet:
    """What each group of users loses when a generator goes."""
    rows = []
    for name, segment in figures.segments.items():
        cells = [_with_interval(relative(lost, segment.blend), True) for lost in segment.lost]
        rows.append((name, f"{segment.num_users:,}", *cells))
    note = "Share of the best blend's recall in the group; in brackets: 95% interval. Above zero: the group loses."
    return Sheet("Lost if retired, by group of users", ("users who are", "number", *figures.names), tuple(rows), note)


def blends(figures: Figures, plan: Plan) -> Sheet:
    """Blends with their budgets."""
    shown = (
        ("all, best budgets", figures.everyone, plan.everyone),
        ("those that stay, best budgets", figures.kept, plan.kept),
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
    return Sheet("Blends and their budgets", ("blend", "recall", "95%", *figures.names), tuple(rows), note)


def sources(found: Sequence[Source], missing: Mapping[str, str]) -> Sheet:
    """What the generators are."""
    rows = [(source.name, "learned" if source.is_learned else "heuristic", source.detail) for source in found]
    rows += [(name, "left out", why) for name, why in missing.items()]
    return Sheet("What the generators are", ("generator", "kind", "what"), tuple(rows))


def _with_interval(estimate: Estimate, signed: bool = False) -> str:
    return f"{percent(estimate.value, signed)} ({interval(estimate, signed)})"
