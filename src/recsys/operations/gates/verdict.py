"""Outcomes of the gates and the verdict that they add up to, as a table for people and as a file for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from recsys.core.io import atomic_write

Status = Literal["pass", "fail", "untested"]
VERDICT = "verdict.json"
_STYLES = {"pass": "green", "fail": "bold red", "untested": "yellow"}


@dataclass(frozen=True)
class Outcome:
    """Result of one check of a gate.

    Attributes:
        check: name of the check, such as `tail/recall@100`.
        value: measured value; None if it could not be measured.
        threshold: bound of the value; None if there is no bound.
        status: `untested` means that there is too little data to decide; it is neither pass nor fail.
        reason: explanation with the figures behind it.
        gate: name of the gate in the configuration; a gate leaves it empty, and it is filled in afterwards.
    """

    check: str
    value: float | None
    _: KW_ONLY
    threshold: float | None
    status: Status
    reason: str
    gate: str = ""

    def of(self, gate: str) -> Outcome:
        """Return the same outcome with the name of its gate."""
        return replace(self, gate=gate)


def at_least(check: str, value: float, *, threshold: float, reason: str) -> Outcome:
    """Return an outcome that passes if the value is at or above the threshold; nan fails."""
    status: Status = "pass" if value >= threshold else "fail"
    return Outcome(check, value, threshold=threshold, status=status, reason=reason)


def at_most(check: str, value: float, *, threshold: float, reason: str) -> Outcome:
    """Return an outcome that passes if the value is at or below the threshold; nan fails."""
    status: Status = "pass" if value <= threshold else "fail"
    return Outcome(check, value, threshold=threshold, status=status, reason=reason)


def failed(check: str, value: float | None, *, threshold: float | None, reason: str) -> Outcome:
    """Return an outcome that fails."""
    return Outcome(check, value, threshold=threshold, status="fail", reason=reason)


def untested(check: str, reason: str, *, value: float | None = None, threshold: float | None = None) -> Outcome:
    """Return an outcome for a check that has too little data to decide."""
    return Outcome(check, value, threshold=threshold, status="untested", reason=reason)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """All outcomes of one candidate. Content of `verdict.json`.

    Attributes:
        run: run folder of the candidate.
        candidate: version of its release; None if no release could be made.
        against: version of the served release; None if nothing is served.
        dataset_fingerprint: data set that both were measured on.
        created: time in UTC, ISO 8601.
        outcomes: in the order of the gates.
        measured: `candidate` and `served` -> metric -> mean over the test users of both.
    """

    run: str
    candidate: str | None
    against: str | None
    dataset_fingerprint: str
    created: str
    outcomes: tuple[Outcome, ...]
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """True if nothing failed. An untested check stops nothing, but the summary counts it."""
        return not self.failed

    @property
    def failed(self) -> list[Outcome]:
        """Outcomes that stop the candidate."""
        return [outcome for outcome in self.outcomes if outcome.status == "fail"]

    @property
    def stopped_by(self) -> list[str]:
        """Names of the gates that failed, each once."""
        return list(dict.fromkeys(outcome.gate for outcome in self.failed))

    def to_json(self) -> dict[str, Any]:
        """Return the content of `verdict.json`; numbers that are not finite become null."""
        content = {name: value for name, value in asdict(self).items() if name != "outcomes"}
        rows = [{name: _finite(value) for name, value in asdict(outcome).items()} for outcome in self.outcomes]
        return {**content, "passed": self.passed, "stopped_by": self.stopped_by, "outcomes": rows}

    @classmethod
    def load(cls, path: Path) -> Verdict:
        """Read `verdict.json`."""
        content = json.loads(path.read_text())
        outcomes = tuple(Outcome(**row) for row in content.pop("outcomes"))
        return cls(**{k: v for k, v in content.items() if k not in ("passed", "stopped_by")}, outcomes=outcomes)

    def save(self, folder: Path) -> Path:
        """Write `verdict.json` into the folder and return its path."""
        path = folder / VERDICT
        atomic_write(path, json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n")
        return path

    def print(self, console: Console | None = None) -> None:
        """Print every outcome as a row of a table, and the summary below it."""
        console = console or Console()
        against = "nothing: no release is served yet" if self.against is None else f"release {self.against}"
        table = Table(title=f"{self.run} against {against}", title_justify="left", title_style="bold")
        for title in ("gate", "check", "value", "threshold", "verdict", "reason"):
            table.add_column(title, justify="right" if title in ("value", "threshold") else "left", overflow="fold")
        before = ""
        for row in self.outcomes:
            if before and row.gate != before:
                table.add_section()
            table.add_row(
                "" if row.gate == before else row.gate,
                row.check,
                _number(row.value),
                _number(row.threshold),
                Text(row.status, style=_STYLES[row.status]),
                row.reason,
            )
            before = row.gate
        console.print(table)
        console.print(Text(self.summary(), style=_STYLES["pass" if self.passed else "fail"]))

    def summary(self) -> str:
        """Return one line with the result and the number of outcomes of each status."""
        count = {status: sum(row.status == status for row in self.outcomes) for status in _STYLES}
        counts = f"{count['pass']} passed, {count['fail']} failed, {count['untested']} untested"
        if self.passed:
            return f"passed: {counts}"
        return f"stopped by {', '.join(self.stopped_by)}: {counts}"


def columns(outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[Any]]]:
    """Return column heads and rows of a table of the outcomes."""
    heads = ["gate", "check", "value", "threshold", "status", "reason"]
    return heads, [[getattr(outcome, head) for head in heads] for outcome in outcomes]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
