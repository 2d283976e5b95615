"""The sentences of a generator study follow from its figures."""

from __future__ import annotations

import dataclasses
import html
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import made
from rich.console import Console

from recsys.reports.generators.blending import BlendPlan, Funnel, plan_blends
from recsys.reports.generators.figures import Estimate, Figures, measure
from recsys.reports.generators.generator_report import GeneratorReport
from recsys.reports.generators.narrative import advise, interval, kept_blend, num_confirmed, percent, verdicts
from recsys.reports.generators.studied_generators import StudiedGenerator
from recsys.reports.generators.study import Study

NAMES = ["one", "twin", "other"]


def situation() -> tuple[Figures, BlendPlan]:
    """A generator, its twin, and one that finds what neither does; 40 users of whom half need each."""
    users = [[[1, 2, 3], [1, 2, 3], [5, 6, 7], []]] * 40
    lists = made(NAMES, users, [[1, 2], [5]] * 20, 3)
    chosen = plan_blends(Funnel(lists, keep=True), 3, tolerance=0.01)
    return measure(lists, chosen, segments={"all": np.ones(40, bool)}), chosen


def test_a_duplicate_generator_is_retired_and_the_others_are_kept() -> None:
    figures, chosen = situation()
    by_name = {advice.name: advice for advice in advise(figures, chosen, tolerance=0.01)}
    assert {name: item.verdict for name, item in by_name.items()} == {
        "one": "keep",
        "other": "keep",
        "twin": "retire",
    }
    assert by_name["twin"].why.startswith("It has no budget in the best blend")
    # With the twin, "one" can be retired without a loss. Without both, half of the users lose their hits.
    assert figures.alone[0].lost.value == 0
    assert figures.needed[1][0].value == pytest.approx(0.5)
    assert by_name["one"].why.startswith("Without it the blend of the kept generators finds 50% less")
    first, *others = verdicts(figures, chosen, tolerance=0.01, chosen_on="the validation part")
    assert first.endswith("Retire twin.")
    assert "The 2 kept generators have a recall of 100%" in others[0]
    assert "a change of 0% (95% interval 0% to 0%; a loss of 1.0% was allowed)" in others[0]


def with_stages(*gains: Estimate) -> Figures:
    figures, _ = situation()
    return dataclasses.replace(figures, stages=gains, stage_gains=gains)


SURE, UNSURE = Estimate(-0.001, -0.005, 0.003), Estimate(-0.02, -0.05, 0.01)


@pytest.mark.parametrize(
    ("gains", "expected"), [((), 0), ((SURE,), 1), ((SURE, UNSURE), 1), ((UNSURE, SURE), 0), ((SURE, SURE), 2)]
)
def test_the_first_unconfirmed_retirement_ends_the_sequence(gains: Any, expected: int) -> None:
    # All together find everything here, so a hundredth of that may be lost.
    assert num_confirmed(with_stages(*gains), 0.01) == expected


def test_an_unconfirmed_retirement_keeps_the_generator() -> None:
    figures, chosen = situation()
    figures = dataclasses.replace(figures, stages=(UNSURE,), stage_gains=(UNSURE,))
    by_name = {advice.name: advice for advice in advise(figures, chosen, tolerance=0.01)}
    assert by_name["twin"].verdict == "unclear"
    assert "cannot rule out a loss above 1.0%" in by_name["twin"].why
    assert kept_blend(figures, chosen, tolerance=0.01)[:2] == (chosen.everyone, figures.everyone)
    first, second, _ = verdicts(figures, chosen, tolerance=0.01, chosen_on="the validation part")
    assert first.endswith("Retire none.")
    assert second.startswith("The validation part selected twin as dispensable")
    assert "a change of −2.0% (95% interval −5.0% to +1.0%" in second


def test_the_terminal_says_what_the_page_says(tmp_path: Path) -> None:
    figures, chosen = situation()
    sources = [StudiedGenerator(name, name == "one", "method", "settings", False, _no_lists) for name in NAMES]
    found = Study(sources, {"missing": "no times"}, chosen, figures, 0.01, "the validation part", "data")
    report, console = GeneratorReport(found), Console(width=200, record=True, file=io.StringIO())
    report.print(console)
    report.write(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    texts = re.findall(r"<(?:h1|h2|caption|p|th|td)[ >](.*?)</(?:h1|h2|caption|p|th|td)>", page)
    # The first sentence of a picture's alternative text describes its axes, the second is the finding.
    findings = re.findall(r'alt="[^"]*?\. ([^".]*)\.', page)
    assert (len(texts) > 80, len(findings)) == (True, 12)
    said = "".join(console.export_text().split())
    plain = [html.unescape(re.sub("<[^>]*>|^[^<>]*>", "", text)) for text in (*texts, *findings)]
    assert [text for text in plain if "".join(text.split()) not in said] == []


def _no_lists(until: str) -> Any:
    raise AssertionError(until)


def test_percent() -> None:
    assert [percent(value) for value in (0.1234, 0.0123, 0.00123, 0)] == ["12%", "1.2%", "0.12%", "0%"]
    assert percent(-0.05, signed=True) == "−5.0%"
    assert interval(Estimate(0, -0.012, 0.2), signed=True) == "−1.2% to +20%"
