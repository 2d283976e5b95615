"""Tables of one run's failures and neighbours, with titles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from recsys.reports.analysis.failures import Group, Results
from recsys.reports.analysis.item_descriptions import ItemDescriptions
from recsys.reports.analysis.space import ItemSpace
from recsys.reports.presentation.report_table import ReportTable

_TITLES_SHOWN = 5


def weakest(groups: Sequence[Group], num: int = 10) -> ReportTable:
    """Tabulate the groups of users and items with the lowest recall."""
    chosen = sorted(groups, key=lambda group: group.recall)[:num]
    rows = tuple(
        (g.kind, g.label, f"{g.recall:.4f}", f"{g.low:.4f} to {g.high:.4f}", f"{g.num_users:,}", f"{g.num_pairs:,}")
        for g in chosen
    )
    columns = ("by", "group", "recall", "95% interval", "users", "items to find")
    return ReportTable(
        "Groups with the lowest recall", columns, rows, "Mean over the users with an item to find in the group."
    )


def missed_items(results: Results, descriptions: ItemDescriptions, *, num: int = 10) -> ReportTable:
    """Tabulate the items that most users missed."""
    wanted = np.bincount(results.item_idx, minlength=results.dataset.num_items + 1)
    found = np.bincount(results.item_idx, results.found, minlength=len(wanted)).astype(np.int64)
    order = np.argsort(found - wanted, kind="stable")[:num]
    rows = tuple(
        (descriptions.title(item), f"{wanted[item]:,}", f"{found[item]:,}", f"{results.dataset.train_count[item]:,}")
        for item in order.tolist()
        if wanted[item] > found[item]
    )
    columns = ("item", "users who engaged with it", "of these saw it", "training events")
    return ReportTable(f"Most often missed among {results.k} shown", columns, rows)


def failed_users(results: Results, descriptions: ItemDescriptions, *, num: int = 5) -> ReportTable:
    """Tabulate the users with the lowest recall, those with most relevant items first, and the items shown to them."""
    recall, num_wanted = results.recall, np.bincount(results.row)
    order = np.lexsort((-results.history_length, -num_wanted, recall))[:num]
    return _users(results, descriptions, rows=order.tolist(), title="Users with the lowest recall")


def served_users(results: Results, descriptions: ItemDescriptions, *, num: int = 5) -> ReportTable:
    """Tabulate the users with the highest recall, as examples of success."""
    found = np.bincount(results.row, results.found)
    order = np.lexsort((-found, -results.recall))[:num]
    return _users(results, descriptions, rows=order.tolist(), title="Users with the highest recall")


def neighbours(space: ItemSpace, descriptions: ItemDescriptions, *, items: Iterable[int], k: int = 5) -> ReportTable:
    """Tabulate the nearest items of some items with their cosines; items outside the corpus are left out."""
    rows = []
    for item in items:
        if item not in space:
            continue
        cosines, nearest = space.neighbours(item, k)
        named = [f"{descriptions.title(i)} ({c:.2f})" for c, i in zip(cosines.tolist(), nearest.tolist(), strict=True)]
        rows.append((descriptions.title(item), *named, *[""] * (k - len(named))))
    columns = ("item", *(f"nearest {number}" for number in range(1, k + 1)))
    return ReportTable("Nearest items", columns, tuple(rows), "In brackets: cosine of the two embeddings.")


def _users(results: Results, descriptions: ItemDescriptions, *, rows: Sequence[int], title: str) -> ReportTable:
    data, shown = results.dataset, []
    user_ids = data.user_ids
    for row in rows:
        user = int(results.requests.user_idx[row])
        begin, end = int(data.offsets[user]), int(results.requests.end[row])
        history = data.item_idx[max(begin, end - _TITLES_SHOWN) : end][::-1].tolist()
        wanted = results.item_idx[results.row == row]
        found = {*results.item_idx[(results.row == row) & results.found].tolist()}
        ranked = [item for item in results.shown[row].tolist() if item > 0]
        shown.append(
            (
                str(user_ids[user].as_py()),
                _joined(descriptions, history, total=end - begin),
                _joined(descriptions, wanted[:_TITLES_SHOWN].tolist(), total=len(wanted)),
                "; ".join(
                    ("✓ " if item in found else "") + descriptions.title(item) for item in ranked[:_TITLES_SHOWN]
                ),
                f"{results.recall[row]:.4f}",
            )
        )
    columns = ("user", "recent events (last first)", "engaged with next", "shown (first 5)", f"recall@{results.k}")
    return ReportTable(title, columns, tuple(shown), "✓: the user engaged with it.")


def _joined(descriptions: ItemDescriptions, items: Sequence[int], *, total: int) -> str:
    if not items:
        return "nothing"
    more = f"; and {total - len(items):,} more" if total > len(items) else ""
    return "; ".join(map(descriptions.title, items)) + more
