"""Page of the verdict on a canary."""

from __future__ import annotations

from pathlib import Path

from recsys.core.io import atomic_write
from recsys.operations.rollout.canary_verdict import CanaryVerdict
from recsys.reports.presentation.colours import BETTER, OTHERS, UNCLEAR, WORSE
from recsys.reports.presentation.page import Section, page
from recsys.reports.presentation.picture import INK, Picture, canvas, headline
from recsys.reports.presentation.report_table import ReportTable

_COLOURS = {"promote": BETTER, "roll_back": WORSE, "keep_on": UNCLEAR}


def write_canary_page(verdict: CanaryVerdict, path: Path) -> Path:
    """Write the page of a verdict, and return its path."""
    atomic_write(path, canary_page(verdict))
    return path


def canary_page(verdict: CanaryVerdict) -> str:
    """Return a complete HTML document."""
    versions = ReportTable(
        "Versions",
        ("version", "part", "users", "answers", "with engagement", "share"),
        tuple(
            (
                row.version,
                "canary" if row.version == verdict.version else "served",
                f"{row.users:,}",
                f"{row.answers:,}",
                f"{row.engaged:,}",
                "" if row.rate is None else f"{row.rate:.2%}",
            )
            for row in verdict.versions
        ),
    )
    actions = sorted({action for row in verdict.generators for action in row.rates})
    generators = ReportTable(
        "Generators",
        ("version", "generator", "answers", *(f"with {action}" for action in actions), "items shown", "coverage"),
        tuple(
            (
                row.version,
                row.generator,
                f"{row.answers:,}",
                *(f"{row.rates.get(action, 0):.2%}" for action in actions),
                f"{row.items:,}",
                "" if row.coverage is None else f"{row.coverage:.1%}",
            )
            for row in verdict.generators
        ),
    )
    course = _course(verdict)
    decision = verdict.decision.replace("_", " ")
    return page(
        f"Canary {verdict.version}: {decision}",
        [
            f"{decision.capitalize()}: {verdict.reason}.",
            f"p {verdict.p_worse:.2g} that it is not worse, p {verdict.p_better:.2g} that it loses "
            f"{verdict.margin:.1%} or more (always valid, alpha {verdict.alpha:.0%}).",
        ],
        sections=[
            Section("Engagement", pictures=() if course is None else (course,), tables=(versions,)),
            Section("What was shown", tables=(generators,)),
        ],
        foot=f"{verdict.requests:,} answers; engagement is {verdict.action or 'any outcome'}. The same is in "
        "canary-verdict.json.",
    )


def _course(verdict: CanaryVerdict) -> Picture | None:
    """Draw the confidence sequence; None if there were never enough data."""
    known = [
        (one.requests, 100 * one.difference, 100 * one.lower, 100 * one.upper)
        for one in verdict.course
        if one.difference is not None and one.lower is not None and one.upper is not None
    ]
    if not known:
        return None
    requests, differences, lower, upper = zip(*known, strict=True)
    colour = _COLOURS[verdict.decision]
    with canvas(height=3.4) as axis:
        axis.fill_between(requests, lower, upper, color=OTHERS, alpha=0.5)
        axis.plot(requests, differences, color=colour, linewidth=2, marker="o" if len(known) == 1 else "")
        axis.axhline(0, color=INK, linewidth=1)
        axis.axhline(-100 * verdict.margin, color=INK, linewidth=1, linestyle="--")
        axis.set_xlabel("answers")
        axis.set_ylabel("difference in %")
        finding = f"Engagement of the canary: {differences[-1]:+.1f}%"
        headline(axis, finding, caption="band: confidence sequence; dashed: the margin")
    return Picture.of(axis, f"{finding}, between {lower[-1]:+.1f}% and {upper[-1]:+.1f}%.")
