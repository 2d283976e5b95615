"""One HTML file that contains everything it shows. It loads nothing, and reads well on a phone and on paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recsys.reports.presentation.picture import Picture
from recsys.reports.presentation.report_table import ReportTable
from recsys.reports.presentation.templates import render


@dataclass(frozen=True)
class Section:
    """A part of a page: pictures, side by side if the page is wide enough, then tables."""

    heading: str
    pictures: tuple[Picture, ...] = ()
    tables: tuple[ReportTable, ...] = ()


def page(title: str, verdicts: Sequence[str], *, sections: Sequence[Section], foot: str) -> str:
    """Return a complete HTML document.

    Args:
        title: title of the window, and first heading.
        verdicts: sentences with the result, the most important one first.
        sections: evidence for the verdicts.
        foot: origin of the figures.
    """
    return render("page.html.jinja", title=title, verdicts=verdicts, sections=sections, foot=foot)
