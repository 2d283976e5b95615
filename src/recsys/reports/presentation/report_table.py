"""A table of text for terminals, notebooks and HTML pages."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from recsys.reports.presentation.templates import render

# A number, perhaps with a sign, a unit or an interval.
_NUMBER = re.compile(r"[-+−<]?\s?[\d.]")

# Longer cells are sentences.
_SENTENCE = 80


class Link(str):
    """A cell that is a link in HTML, and its text elsewhere."""

    href: str

    def __new__(cls, text: str, href: str) -> Link:
        """Return the cell with this text and address."""
        cell = super().__new__(cls, text)
        cell.href = href
        return cell


@dataclass(frozen=True)
class ReportTable:
    """Rows of text under a title.

    Attributes:
        title: title of the table.
        columns: column heads. A column is right-aligned if all its filled cells are numbers.
        rows: cells, as many in each row as there are columns.
        note: explanation below the table.
        bold: numbers of the rows to print in bold.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    bold: frozenset[int] = frozenset()

    def print(self, console: Console) -> None:
        """Print the table to a terminal."""
        table = Table(title=Text(self.title), title_justify="left", title_style="bold")
        for column, is_number in zip(self.columns, self._are_numbers(), strict=True):
            table.add_column(Text(column), justify="right" if is_number else "left", overflow="fold")
        for number, row in enumerate(self.rows):
            table.add_row(*map(Text, row), style="bold" if number in self.bold else None)
        console.print(table)
        if self.note:
            console.print(Text(self.note, style="dim"))

    def html(self) -> str:
        """Return a `<table>` element in a box that scrolls on narrow screens."""
        return render(
            "table.html.jinja",
            title=self.title,
            columns=self.columns,
            rows=self.rows,
            note=self.note,
            bold=self.bold,
            sides=["right" if is_number else "left" for is_number in self._are_numbers()],
            sentence=_SENTENCE,
        )

    def _repr_html_(self) -> str:
        return self.html()

    def _are_numbers(self) -> list[bool]:
        columns = zip(*self.rows, strict=True) if self.rows else ((),) * len(self.columns)
        filled = [[cell for cell in column if cell] for column in columns]
        return [bool(cells) and all(_NUMBER.match(cell) for cell in cells) for cells in filled]
