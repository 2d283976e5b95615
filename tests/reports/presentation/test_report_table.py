"""Tables in a terminal and in HTML."""

from __future__ import annotations

import io

from rich.console import Console

from recsys.reports.presentation.report_table import ReportTable

SHEET = ReportTable(
    "Runs & more",
    ("run", "recall@10", "95% interval", "verdict"),
    (("a [b]", "0.1000", "-1.0% to +2.0%", "better"), ("<i>c</i>", "", "+1.0% to +2.0%", "")),
    note="A note.",
    bold=frozenset({1}),
)


def test_in_a_terminal() -> None:
    output = io.StringIO()
    SHEET.print(Console(file=output, width=100))
    lines = output.getvalue().splitlines()
    assert lines[0].strip() == "Runs & more"
    # Brackets are text, not markup; numbers stand to the right.
    assert "│ a [b]    │    0.1000 │ -1.0% to +2.0% │ better  │" in lines
    assert lines[-1].strip() == "A note."


def test_in_html() -> None:
    html = SHEET.html()
    assert html == SHEET._repr_html_()
    assert "<b>Runs &amp; more</b></caption>" in html
    assert '<th scope="row" style="text-align:left;font-weight:bold">&lt;i&gt;c&lt;/i&gt;</th>' in html
    assert '<td style="text-align:right;font-weight:normal">0.1000</td>' in html
    assert '<th scope="col" style="text-align:left">verdict</th>' in html
    assert html.endswith("<p><small>A note.</small></p>")


def test_without_rows() -> None:
    empty = ReportTable("Nothing", ("a", "b"), ())
    assert empty.html().count("<th ") == 2
    empty.print(Console(file=io.StringIO()))
