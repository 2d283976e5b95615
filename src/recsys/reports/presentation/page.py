"""One HTML file that contains everything it shows. It loads nothing, and reads well on a phone and on paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from recsys.reports.presentation.picture import Picture
from recsys.reports.presentation.report_table import ReportTable
from recsys.reports.presentation.templates import render


class CommandLine(str):
    """A paragraph that is a command for a shell."""

    is_command = True


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        heading: heading of the part.
        pictures: pictures, side by side if the page is wide enough.
        tables: tables below the pictures.
        text: paragraphs and command lines below the heading.
    """

    heading: str
    pictures: tuple[Picture, ...] = ()
    tables: tuple[ReportTable, ...] = ()
    text: tuple[str, ...] = ()


def page(title: str, verdicts: Sequence[str], *, sections: Sequence[Section], foot: str) -> str:
    """Return a complete HTML document.

    Args:
        title: title of the window, and first heading.
        verdicts: sentences with the result, the most important one first.
        sections: evidence for the verdicts.
        foot: origin of the figures.
    """
    return render("page.html.jinja", title=title, verdicts=verdicts, sections=sections, foot=foot)


def print_page(
    console: Console, title: str, *, verdicts: Sequence[str], sections: Sequence[Section], foot: str
) -> None:
    """Print the text of a page to a terminal, with the finding of each picture, and the verdicts at the end.

    Args:
        console: terminal.
        title: first heading.
        verdicts: sentences with the result.
        sections: parts of the page.
        foot: origin of the figures.
    """
    console.rule(Text(title, style="bold"), align="left")
    for section in sections:
        console.print(Text(f"\n{section.heading}", style="bold underline"))
        for paragraph in section.text:
            console.print(Text(paragraph))
        for picture in section.pictures:
            console.print(Text(f"{picture.finding}."))
        for table in section.tables:
            table.print(console)
    console.print(Text(f"\n{foot}\n", style="dim"))
    for verdict in verdicts:
        console.print(verdict, style="bold", markup=False, highlight=False)
