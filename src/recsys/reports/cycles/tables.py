"""Tables of a verdict, of the result of a cycle and of a lineage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from recsys.operations.cycle.state import Cycle
from recsys.operations.gates.verdict import Outcome, number
from recsys.operations.lineage import Lineage
from recsys.release.manifest import CONFIG
from recsys.reports.presentation.report_table import ReportTable

_STATUS = {"pass": "passed", "fail": "failed", "untested": "untested", "warn": "warned"}


def checks_table(outcomes: Sequence[Outcome]) -> ReportTable:
    """Return a row for each check of every gate."""
    rows = tuple(
        (row.gate, row.check, number(row.value), _limit(row), _STATUS[row.status], row.reason) for row in outcomes
    )
    bold = frozenset(at for at, row in enumerate(outcomes) if row.status in ("fail", "warn"))
    heads = ("gate", "check", "value", "limit", "result", "reason")
    return ReportTable("Checks of every gate", heads, rows, bold=bold)


def _limit(row: Outcome) -> str:
    return "" if row.threshold is None else f"{f'at {row.bound} ' if row.bound else ''}{number(row.threshold)}"


def result_table(cycle: Cycle) -> ReportTable:
    """Return the result of a cycle that has ended."""
    rows = [("outcome", str(cycle.outcome).replace("_", " ")), ("reason", cycle.why)]
    if cycle.accepted:
        rows.append(("accepted", f"by {cycle.accepted.who}: {cycle.accepted.why}"))
    rows += [("candidate", cycle.version or "none"), ("served before", cycle.served or "nothing")]
    for name in ("recall@10", "recall@100"):
        values = [f"{side} {metrics[name]:.4f}" for side, metrics in cycle.measured.items() if name in metrics]
        rows += [(name, ", ".join(values))] if values else []
    steps = (f"{step.replace('_', ' ')} {seconds:.1f} s" for step, seconds in cycle.seconds.items())
    return ReportTable(f"cycle {cycle.number}", ("", ""), (*rows, ("time", ", ".join(steps))))


def lineage_table(found: Lineage) -> ReportTable:
    """Return the origin of a release, and the times when it was served."""
    return ReportTable("Lineage", ("version", found.version), tuple(_lineage_rows(found)))


def _lineage_rows(found: Lineage) -> Iterator[tuple[str, str]]:
    yield "files", found.sound
    yield "model", f"{found.model}, released {found.created}"
    for part, files in found.parts.items():
        yield part, "\n".join(f"{sha[:16]}  {name}" for name, sha in files.items())
    yield "pair", found.pair
    yield "index", ", ".join(f"{name} {value}" for name, value in found.index.items())
    yield "run", "\n".join(f"{name}: {value}" for name, value in found.run.items())
    yield "config", f"{found.config_sha256[:16]}  {CONFIG}"
    yield "data", "\n".join(f"{name}: {value}" for name, value in found.data.items())
    yield "commit", found.git_commit or "unknown: not run from a checkout"
    if found.verdict is None:
        yield "gates", "no verdict on this run"
    else:
        yield "gates", f"{found.verdict['summary']} (against {found.verdict['against'] or 'nothing: none was served'})"
        if accepted := found.verdict["accepted"]:
            failures = "; ".join(f"{row['gate']}, {row['check']}" for row in accepted["overridden"])
            yield "accepted", f"by {accepted['who']} at {accepted['when']}: {accepted['why']}\nin spite of {failures}"
    for one in found.served:
        yield f"as {one.alias}", f"{one.since} to {one.until or 'now'}: {one.why}"
    if not found.served:
        yield "served", "never: no alias has pointed at it"
