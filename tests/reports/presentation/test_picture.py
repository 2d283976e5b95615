"""Pictures that need nothing from outside, and say what they show."""

from __future__ import annotations

import base64
import re
from pathlib import Path

from matplotlib import pyplot
from matplotlib.image import imread

from recsys.reports.presentation.picture import WIDTH, Picture, canvas, headline


def picture() -> Picture:
    with canvas(2.0) as axis:
        axis.plot([1, 2], [3, 4])
        headline(
            axis, "A finding that is so long that one line of bold letters cannot hold all of it", caption="explanation"
        )
    return Picture.of(axis, 'Lines "from" 3 to <4>')


def test_the_drawing_is_in_the_tag(tmp_path: Path) -> None:
    drawn = picture()
    assert drawn.html() == drawn._repr_html_()
    assert ' alt="Lines &quot;from&quot; 3 to &lt;4&gt;"' in drawn.html()
    (data,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', drawn.html())
    svg = base64.b64decode(data).decode()
    assert svg.startswith("<svg")
    # Names of namespaces are no addresses that anybody reads; there is no other.
    assert {*re.findall(r"https?://[^\"' ]+", svg)} <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "<text" not in svg
    drawn.save(tmp_path / "a.png")
    assert imread(tmp_path / "a.png").shape[:2] == (400, round(200 * WIDTH))


def test_the_same_every_time_and_without_state() -> None:
    before = dict(pyplot.rcParams)
    assert picture().svg() == picture().svg()
    assert dict(pyplot.rcParams) == before
    assert pyplot.get_fignums() == []


def test_the_headline_fits_above_the_axes() -> None:
    figure = picture().figure
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.texts]
    assert [text.get_fontweight() for text in figure.texts] == ["bold", "bold", "normal"]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
    lowest = min(box.y0 for box in boxes)
    assert figure.axes[0].get_window_extent().y1 < lowest
    # Lines lie under each other.
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in zip(boxes, boxes[1:], strict=False))
