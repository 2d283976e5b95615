"""One HTML file with everything in it: it reads nothing from anywhere, on a phone or on paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from recsys.reports.presentation.picture import Picture
from recsys.reports.presentation.sheet import Sheet

_CSS = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0; }
main { max-width: 66rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0.5rem 0; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 0.6rem; border-top: 1px solid #ddd; padding-top: 1rem; }
.verdict { background: #f2f6fa; border-left: 4px solid #0072b2; padding: 0.6rem 1rem; margin: 1rem 0; }
.verdict p { margin: 0.4rem 0; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.2rem; }
figure { margin: 0; }
table { border-collapse: collapse; font-size: 0.875rem; margin: 0.6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem 0.25rem 0; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
small { color: #5f5f5f; }
"""
# Also tells the browser that nothing may be loaded.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Section:
    """A part of a page: pictures side by side where there is room, then tables."""

    heading: str
    pictures: tuple[Picture, ...] = ()
    sheets: tuple[Sheet, ...] = ()


def page(title: str, verdicts: Sequence[str], sections: Sequence[Section], foot: str) -> str:
    """A complete HTML document.

    Args:
        title: of the window and at the top.
        verdicts: sentences that say the result, the most important one first.
        sections: the evidence.
        foot: where the figures come from.
    """
    first, *others = map(escape, verdicts)
    said = f"<p><b>{first}</b></p>" + "".join(f"<p>{verdict}</p>" for verdict in others)
    parts = []
    for section in sections:
        pictures = "".join(f"<figure>{picture.html()}</figure>" for picture in section.pictures)
        shown = f'<div class="pictures">{pictures}</div>' if pictures else ""
        sheets = "".join(sheet.html() for sheet in section.sheets)
        parts.append(f"<section><h2>{escape(section.heading)}</h2>{shown}{sheets}</section>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{_CSS}</style></head>\n<body><main><h1>{escape(title)}</h1>"
        f'<div class="verdict">{said}</div>\n{"".join(parts)}\n<p><small>{escape(foot)}</small></p>'
        "</main></body></html>\n"
    )
