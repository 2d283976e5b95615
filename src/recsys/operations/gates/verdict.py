"""What the gates found, for people and for programs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

Status = Literal["pass", "fail", "untested"]
VERDICT = "verdict.json"
_STYLES = {"pass": "green", "fail": "bold red", "untested": "yellow"}


@dataclass(frozen=True)
class Outcome:
    """One thing that a gate looked at.

    Attributes:
        check: such as `tail/recall@100`.
        value: what was found; None where nothing could be.
        threshold: what it is compared with.
        status: `untested` where there is too little to tell by: neither pass nor fail.
        reason: in words, with the figures behind it.
        gate: name in the configuration; whoever asks the gate fills it in.
    """

    check: str
    value: float | None
    threshold: float | None
    status: Status
    reason: str
    gate: str = ""

    def of(self, gate: str) -> Outcome:
        """The same under the name of its gate."""
        return replace(self, gate=gate)


def at_least(check: str, value: float, threshold: float, reason: str) -> Outcome:
    """Passes from the threshold on; what is no number fails."""
    return Outcome(check, value, threshold, "pass" if value >= threshold else "fail", reason)


def at_most(check: str, value: float, threshold: float, reason: str) -> Outcome:
    """Passes up to the threshold; what is no number fails."""
    return Outcome(check, value, threshold, "pass" if value <= threshold else "fail", reason)


def untested(check: str, reason: str, value: float | None = None, threshold: float | None = None) -> Outcome:
    """Nothing can be said."""
    return Outcome(check, value, threshold, "untested", reason)


@dataclass(frozen=True)
class Verdict:
    """What was judged, and every outcome.

    Attributes:
        run: folder of the candidate.
        candidate: version of its release; None where it could not be packed.
        against: version of the release that is served; None: nothing is.
        dataset_fingerprint: of the data that both were measured on.
        created: UTC, ISO 8601.
        outcomes: in the order of the gates.
        measured: `candidate` and `served` -> metric -> mean over the users that both were asked for.
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
        """Whether nothing failed. What is untested stops nobody, and is told."""
        return not self.failed

    @property
    def failed(self) -> list[Outcome]:
        """What stops the candidate."""
        return [outcome for outcome in self.outcomes if outcome.status == "fail"]

    @property
    def stopped_by(self) -> list[str]:
        """Names of the gates that failed, each once."""
        return list(dict.fromkeys(outcome.gate for outcome in self.failed))

    def to_json(self) -> dict[str, Any]:
        """Content of `verdict.json`; what is no finite number is null."""
        content = {name: value for name, value in asdict(self).items() if name != "outcomes"}
        rows = [
            {name: _finite(value) for name, value in asdict(outcome).items()}
            for outcome in self.outcomes
        ]  # fmt: skip
        return {**content, "passed": self.passed, "stopped_by": self.stopped_by, "outcomes": rows}

    @classmethod
    def load(cls, path: Path) -> Verdict:
        """Read `verdict.json`."""
        content = json.loads(path.read_text())
        outcomes = tuple(Outcome(**row) for row in content.pop("outcomes"))
        return cls(**{k: v for k, v in content.items() if k not in ("passed", "stopped_by")}, outcomes=outcomes)

    def save(self, folder: Path) -> Path:
        """Write `verdict.json` into the folder, whole or not at all."""
        path = folder / VERDICT
        aside = folder / f".{VERDICT}.part"
        aside.write_text(json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n")
        os.replace(aside, path)
        return path

    def print(self, console: Console | None = None) -> None:
        """Every outcome as a row, and how it ended."""
        console = console or Console()
        against = "nothing: none is served yet" if self.against is None else f"release {self.against}"
        table = Table(title=f"{self.run} against {against}", title_justify="left", title_style="bold")
        for title in ("gate", "check", "value", "threshold", "verdict", "why"):
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
        """One line: how it ended, and why."""
        count = {status: sum(row.status == status for row in self.outcomes) for status in _STYLES}
        told = f"{count['pass']} passed, {count['fail']} failed, {count['untested']} untested"
        if self.passed:
            return f"passed: {told}"
        return f"stopped by {', '.join(self.stopped_by)}: {told}"


def columns(outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[Any]]]:
    """Heads and rows of a table of the outcomes."""
    heads = ["gate", "check", "value", "threshold", "status", "reason"]
    return heads, [[getattr(outcome, head) for head in heads] for outcome in outcomes]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
