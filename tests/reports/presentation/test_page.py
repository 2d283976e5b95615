"""One HTML file that needs no other."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from recsys.reports.presentation.page import Section, page
from recsys.reports.presentation.picture import Picture, canvas
from recsys.reports.presentation.report_table import ReportTable


class Tags(HTMLParser):
    """Checks that tags are closed in order, and keeps their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page() -> None:
    with canvas(1.0) as axis:
        axis.plot([1, 2])
    drawn = Picture.of(axis, "A line.")
    table = ReportTable("Numbers", ("a",), (("1",),))
    html = page(
        "a < b",
        ["b is <better>.", "And more."],
        sections=[Section("One", (drawn,), (table,)), Section("Two", (), (table,))],
        foot="x & y",
    )
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    names = [name for name, _ in tags.found]
    assert names.count("h1") == 1
    assert (names.count("h2"), names.count("img"), names.count("table")) == (2, 1, 2)
    assert ("html", {"lang": "en"}) in tags.found
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in tags.found
    for text in ("<title>a &lt; b</title>", "<p><b>b is &lt;better&gt;.</b></p>\n<p>And more.</p>", "x &amp; y"):
        assert text in html
    # The verdict comes before the evidence.
    assert html.index('class="verdict"') < html.index("<section>")
    for _, attributes in tags.found:
        assert not attributes.keys() & {"href", "srcset", "onload", "onclick"}
        assert (attributes.get("src") or "data:").startswith("data:")
    assert "script" not in names
    assert not re.search(r"@import|url\(|https?:", html)
