"""Pictures of one run's failures and of its embedding space."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from recsys.reports.analysis.failures import Group
from recsys.reports.analysis.item_descriptions import ItemDescriptions
from recsys.reports.analysis.space import ItemSpace
from recsys.reports.presentation.colours import COLOURS, MARKS, OTHERS
from recsys.reports.presentation.labels import Label, label_points
from recsys.reports.presentation.picture import INK, Picture, canvas, headline

_CATEGORIES = len(COLOURS)
# More points would only make the file larger.
_MOST_POINTS = 5_000


def groups(found: Sequence[Group], k: int) -> Picture | None:
    """Draw the recall of groups of one kind as bars with intervals; None if there is no group.

    Args:
        found: groups of one kind.
        k: number of items shown to each user.
    """
    if not found:
        return None
    weak, strong = (pick(found, key=lambda group: group.recall) for pick in (min, max))
    with canvas(height=1.2 + 0.42 * len(found)) as axis:
        for place, group in enumerate(found):
            axis.barh(place, group.recall, 0.7, color=COLOURS[0], alpha=0.85)
            axis.plot([group.low, group.high], [place, place], color=INK, linewidth=1)
            axis.annotate(
                f"{group.recall:.4f}", (group.high, place), (5, 0), "data", "offset points", va="center", size=9
            )
        axis.set_yticks(range(len(found)), [f"{group.label}\n{group.num_users:,} users" for group in found])
        axis.set_ylim(len(found) - 0.5, -0.5)
        axis.tick_params(axis="y", length=0, labelcolor=INK, labelsize=9)
        axis.grid(axis="y", visible=False)
        axis.grid(axis="x")
        axis.set(xlim=(0, max(0.001, 1.15 * max(group.high for group in found))), xlabel=f"recall@{k}")
        axis.locator_params(axis="x", nbins=6)
        wins = f"Recall is highest for {strong.label}, lowest for {weak.label}"
        headline(axis, wins, caption=f"test recall@{k} by {found[0].kind}, with 95% interval")
    details = "; ".join(
        f"{g.label}: {g.recall:.4f} ({g.low:.4f} to {g.high:.4f}, {g.num_users:,} users)" for g in found
    )
    return Picture.of(axis, f"Bars of test recall@{k} by {found[0].kind}. {wins}. {details}.")


def embedding_space(space: ItemSpace, descriptions: ItemDescriptions, *, category: str | None = None) -> Picture:
    """Draw items on the two principal axes of their embeddings, coloured by category.

    Args:
        space: item embeddings of the run.
        descriptions: titles and categories of the run's items.
        category: feature to colour by; see `ItemDescriptions.categories`.
    """
    name, values = descriptions.categories(category)
    labels = values[space.item_idx]
    points, shares = space.plane()
    drawn = np.arange(len(points))
    if len(drawn) > _MOST_POINTS:
        drawn = np.sort(np.random.default_rng(0).choice(len(drawn), _MOST_POINTS, replace=False))
    common = [value for value, _ in Counter(v for v in labels if v is not None).most_common(_CATEGORIES)]
    same, chance = space.agreement(labels)
    with canvas(height=5.0) as axis:
        rest = drawn[~np.isin(labels[drawn].astype(str), common)]
        # Points are rasterised, because thousands of shapes would make a large file.
        axis.scatter(points[rest, 0], points[rest, 1], s=6, color=OTHERS, alpha=0.5, linewidths=0, rasterized=True)
        centres = []
        for value, colour, mark in zip(common, COLOURS, MARKS, strict=False):
            of_value = drawn[labels[drawn] == value]
            axis.scatter(
                points[of_value, 0],
                points[of_value, 1],
                s=11,
                color=colour,
                marker=mark,
                alpha=0.65,
                linewidths=0,
                rasterized=True,
            )
            x, y = np.median(points[labels == value], axis=0)
            axis.plot(x, y, mark, color=colour, markersize=11, markeredgecolor="white", markeredgewidth=1.5)
            centres.append(Label(str(value), float(x), float(y), colour))
        axis.grid(visible=False)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set(
            xlabel=f"first principal axis, {shares[0]:.0%} of variance",
            ylabel=f"second principal axis, {shares[1]:.0%}",
        )
        wins = f"{same:.0%} of an item's ten nearest items share its {name}; by chance {chance:.0%} would"
        headline(axis, wins, caption=f"items by {name}; large marks: the median of each; grey: others, or none")
        label_points(axis, centres)
        for text in axis.texts:
            text.set_bbox({"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1})
            text.set_fontweight("bold")
    details = ", ".join(f"{label.text} around ({label.x:.2f}, {label.y:.2f})" for label in centres)
    return Picture.of(axis, f"Scatter of item embeddings on two principal axes, by {name}. {wins}. {details}.")
