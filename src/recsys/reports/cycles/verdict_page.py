"""The verdict on a candidate as a page: what was compared, what stopped it and why, and what can be done about it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from recsys.core.instantiate import class_of
from recsys.operations.gates.verdict import Outcome, Verdict
from recsys.reports.cycles.fitting import fitting_settings
from recsys.reports.cycles.stop_advice import StopAdvice
from recsys.reports.cycles.tables import checks_table
from recsys.reports.cycles.verdict_plots import bounds_picture, days_picture
from recsys.reports.presentation.page import CommandLine, Section, page
from recsys.reports.presentation.report_table import ReportTable

_METRICS = ("recall@10", "recall@100", "ndcg@10")


def gate_purposes(gates: DictConfig) -> dict[str, str]:
    """Return gate -> first paragraphs of the documentation of its class; empty if it has none."""
    purposes = {}
    for name, node in gates.items():
        gate = None if node is None else class_of(node)
        words = re.split(r"\n\n(?:Args|Attributes):", inspect.getdoc(gate) or "")[0] if gate else ""
        purposes[str(name)] = " ".join(words.split())
    return purposes


def verdict_page(name: str, verdict: Verdict, *, purposes: Mapping[str, str], advice: StopAdvice | None = None) -> str:
    """Return a complete HTML document.

    Args:
        name: name of the cycle or run.
        verdict: verdict to show.
        purposes: gate -> its purpose in words.
        advice: commands that end the stop of a cycle; None if no cycle was judged.
    """
    shown = [*verdict.failed, *verdict.warnings]
    pictures = [bounds_picture(verdict.outcomes)]
    if verdict.days:
        pictures.append(days_picture(verdict))
    sections = [
        Section("Values and limits", tuple(picture for picture in pictures if picture is not None)),
        *(_gate_section(gate, shown, purpose=purposes.get(gate, "")) for gate in dict.fromkeys(r.gate for r in shown)),
        _what_to_do(verdict, advice),
        Section("Metrics of both", tables=(_metrics(verdict),)),
        Section("All checks", tables=(checks_table(verdict.outcomes),)),
    ]
    if verdict.former:
        sections.append(Section("Earlier verdicts on this candidate", tables=(_former(verdict),)))
    foot = (
        f"Run {verdict.run}, data {verdict.dataset_fingerprint}, judged {verdict.created}. The same is in verdict.json."
    )
    kept = [section for section in sections if section.pictures or section.tables or section.text]
    return page(f"{name}: {_result(verdict)}", _sentences(verdict), sections=kept, foot=foot)


def _result(verdict: Verdict) -> str:
    stopped = f"stopped by {', '.join(verdict.stopped_by)}"
    if verdict.passed:
        return "passed with warnings" if verdict.warnings else "passed"
    return f"{stopped}, then accepted" if verdict.accepted else stopped


def _sentences(verdict: Verdict) -> list[str]:
    candidate = verdict.candidate or "none, because the run could not be packed"
    served = f"release {verdict.against}, which was served" if verdict.against else "nothing, because none was served"
    sentences = [
        f"{'Passed' if verdict.passed else 'Stopped'}: {verdict.summary().partition(': ')[2]}.",
        *(f"{row.gate} stopped it: {row.check} is {row.measured} ({row.reason})." for row in verdict.failed),
        f"The candidate is release {candidate}. It was compared with {served}, on the same requests of the test part.",
    ]
    if verdict.new_from is not None:
        sentences.append(f"The data gates judged the events since {verdict.new_from} by those before.")
    if verdict.warnings:
        sentences.append("No release is served that bad data could harm, so data gates warned and stopped nothing.")
    if accepted := verdict.accepted:
        sentences.insert(0, f"Accepted by {accepted.who} at {accepted.when}: {accepted.why}")
    return sentences


def _gate_section(gate: str, rows: Sequence[Outcome], *, purpose: str) -> Section:
    own = [row for row in rows if row.gate == gate]
    facts = [f"{row.check} is {row.measured} ({row.reason})." for row in own]
    verb = "warns" if all(row.status == "warn" for row in own) else "stopped the candidate"
    return Section(f"{gate} {verb}", text=tuple(filter(None, [*facts, purpose])))


def _what_to_do(verdict: Verdict, advice: StopAdvice | None) -> Section:
    rows = verdict.failed or verdict.warnings
    if not rows or verdict.accepted:
        return Section("What to do")
    text = ["If the cause is a fault, correct the data or the settings of training."]
    if verdict.passed:
        text.append("The candidate was released. The settings below would have avoided the warnings.")
    settings, days = fitting_settings(rows), fitting_settings(rows, names_days=True)
    if days and days != settings:
        text.append("If the day was unusual for a known reason, exempt it from judgement:")
        text.append(CommandLine((advice and advice.fits_days) or " ".join(days)))
    if settings:
        text.append(f"If such values are legitimate from now on, {' '.join(settings)} fits what was measured:")
        text.append(CommandLine((advice and advice.fits) or " ".join(settings)))
    else:
        text.append("No setting of a gate fits what was measured.")
    if advice is not None and advice.accept and not verdict.passed:
        text.append("To release this candidate anyway, give a reason, which verdict and lineage record:")
        text.append(CommandLine(advice.accept))
        text.append("Keys that may hold secrets (admin_token, notify) are left out of the commands. Add yours.")
    return Section("What to do", text=tuple(text))


def _metrics(verdict: Verdict) -> ReportTable:
    sides = [side for side in ("candidate", "served") if side in verdict.measured]
    rows = tuple(
        (metric, *(f"{verdict.measured[side].get(metric, float('nan')):.4f}" for side in sides))
        for metric in _METRICS
        if any(metric in verdict.measured[side] for side in sides)
    )
    return ReportTable("Means over test users", ("metric", *sides), rows)


def _former(verdict: Verdict) -> ReportTable:
    rows: list[tuple[Any, ...]] = []
    for one in reversed(verdict.former):
        by = "" if one.accepted is None else f"{one.accepted.who}: {one.accepted.why}"
        rows.append((one.created, one.summary(), one.against or "nothing", by))
    return ReportTable("Newest first", ("when", "result", "compared with", "accepted by"), tuple(rows))
