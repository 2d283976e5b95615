"""A table of text for people: in a terminal, in a notebook, in an HTML page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape

from rich.console import Console
from rich.table import Table
from rich.text import Text

# Numbers, with a sign, a unit, an interval or a multiple behind them.
_NUMBER = re.compile(r"[-+−<]?\s?[\d.]")

# Letters from which on a cell is a sentence.
_SENTENCE = 80


@dataclass(frozen=True)
class Sheet:
    """Rows of text under a title.

    Attributes:
        title: what the rows are.
        columns: heads; a column whose filled cells are all numbers is set to the right.
        rows: cells, as many as columns.
        note: how to read them.
        bold: numbers of rows to stress.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    bold: frozenset[int] = frozenset()

    def print(self, console: Console) -> None:
        """Print to a terminal."""
        table = Table(title=Text(self.title), title_justify="left", title_style="bold")
        for column, is_number in zip(self.columns, self._are_numbers(), strict=True):
            table.add_column(Text(column), justify="right" if is_number else "left", overflow="fold")
        for number, row in enumerate(self.rows):
            table.add_row(*map(Text, row), style="bold" if number in self.bold else None)
        console.print(table)
        if self.note:
            console.print(Text(self.note, style="dim"))

    def html(self) -> str:
        """A `<table>` in a box that scrolls on narrow screens."""
        sides = ["right" if is_number else "left" for is_number in self._are_numbers()]
        head = "".join(
            f'<th scope="col" style="text-align:{side}">{escape(column)}</th>'
            for column, side in zip(self.columns, sides, strict=True)
        )
        body = []
        for number, row in enumerate(self.rows):
            first, *others = zip(row, sides, strict=True)
            weight = "bold" if number in self.bold else "normal"
            cells = f'<th scope="row" style="text-align:{first[1]};font-weight:{weight}">{escape(first[0])}</th>'
            cells += "".join(
                f'<td style="text-align:{side};font-weight:{weight}{_wrapped(cell)}">{escape(cell)}</td>'
                for cell, side in others
            )
            body.append(f"<tr>{cells}</tr>")
        note = f"<p><small>{escape(self.note)}</small></p>" if self.note else ""
        return (
            f'<div style="overflow-x:auto"><table>'
            f'<caption style="text-align:left"><b>{escape(self.title)}</b></caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>{note}"
        )

    def _repr_html_(self) -> str:
        return self.html()

    def _are_numbers(self) -> list[bool]:
        columns = zip(*self.rows, strict=True) if self.rows else ((),) * len(self.columns)
        filled = [[cell for cell in column if cell] for column in columns]
        return [bool(cells) and all(_NUMBER.match(cell) for cell in cells) for cells in filled]


def _wrapped(cell: str) -> str:
    """Sentences take several lines; figures and names do not."""
    return ";white-space:normal;min-width:24rem" if len(cell) > _SENTENCE else ""
