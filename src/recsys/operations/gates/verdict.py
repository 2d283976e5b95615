"""Outcomes of the gates and the verdict that they add up to, as a table for people and as a file for programs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from recsys.core.io import atomic_write

Status = Literal["pass", "fail", "untested", "warn"]
VERDICT = "verdict.json"


@dataclass(frozen=True)
class Outcome:
    """Result of one check of a gate.

    Attributes:
        check: name of the check, such as `tail/recall@100`.
        value: measured value; None if it could not be measured.
        threshold: bound of the value; None if there is no bound.
        status: `untested` means that there is too little data to decide; it is neither pass nor fail. `warn` is a
            failure of a data gate while no release is served, which does not stop the candidate.
        reason: explanation with the figures behind it.
        gate: name of the gate in the configuration; a gate leaves it empty, and it is filled in afterwards.
        bound: `least` or `most` for a threshold that is a lower or upper bound.
        fits: parameter of the gate -> value with which this check would have passed.
    """

    check: str
    value: float | None
    _: KW_ONLY
    threshold: float | None
    status: Status
    reason: str
    gate: str = ""
    bound: Literal["least", "most", ""] = ""
    fits: Mapping[str, Any] = field(default_factory=dict)

    @property
    def measured(self) -> str:
        """Value and bound in words, such as `3.2, expected at most 1.67`."""
        if self.value is None or self.threshold is None:
            return "not measured" if self.value is None else number(self.value)
        return f"{number(self.value)}, expected {f'at {self.bound} ' if self.bound else ''}{number(self.threshold)}"

    def of(self, gate: str) -> Outcome:
        """Return the same outcome with the name of its gate."""
        return replace(self, gate=gate)


def at_least(
    check: str, value: float, *, threshold: float, reason: str, fits: Mapping[str, Any] | None = None
) -> Outcome:
    """Return an outcome that passes if the value is at or above the threshold; nan fails. See `Outcome`."""
    status: Status = "pass" if value >= threshold else "fail"
    return _bounded(Outcome(check, value, threshold=threshold, status=status, reason=reason, bound="least"), fits)


def at_most(
    check: str, value: float, *, threshold: float, reason: str, fits: Mapping[str, Any] | None = None
) -> Outcome:
    """Return an outcome that passes if the value is at or below the threshold; nan fails. See `Outcome`."""
    status: Status = "pass" if value <= threshold else "fail"
    return _bounded(Outcome(check, value, threshold=threshold, status=status, reason=reason, bound="most"), fits)


def _bounded(outcome: Outcome, fits: Mapping[str, Any] | None) -> Outcome:
    if outcome.status == "pass" or not fits:
        return outcome
    return replace(outcome, fits={name: fit for name, fit in fits.items() if _is_usable(fit)})


def _is_usable(fit: Any) -> bool:
    return math.isfinite(fit) if isinstance(fit, int | float) else bool(fit)


def failed(check: str, value: float | None, *, threshold: float | None, reason: str) -> Outcome:
    """Return an outcome that fails."""
    return Outcome(check, value, threshold=threshold, status="fail", reason=reason)


def untested(check: str, reason: str, *, value: float | None = None, threshold: float | None = None) -> Outcome:
    """Return an outcome for a check that has too little data to decide."""
    return Outcome(check, value, threshold=threshold, status="untested", reason=reason)


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """Decision of a person to release a candidate that gates stopped.

    Attributes:
        who: login name and host, or the name that was given.
        when: time in UTC, ISO 8601.
        why: reason that was given.
        overridden: failures that were known, each with gate, check, value, threshold and reason.
    """

    who: str
    when: str
    why: str
    overridden: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def of(cls, failures: Sequence[Outcome], *, who: str, when: str, why: str) -> Acceptance:
        """Return the acceptance of these failures."""
        names = ("gate", "check", "value", "threshold", "reason")
        return cls(who=who, when=when, why=why, overridden=[{n: getattr(row, n) for n in names} for row in failures])

    def covers(self, failures: Sequence[Outcome]) -> bool:
        """Return True if every one of these failures was known."""
        known = {(row["gate"], row["check"]) for row in self.overridden}
        return all((row.gate, row.check) in known for row in failures)


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
        days: date (UTC) -> events, from the first day of the reference to the last new one.
        new_from: first new date among them; None if the data has no times.
        accepted: decision to release the candidate in spite of its failures; None if there is none.
        former: earlier verdicts on the same run, oldest first.
    """

    run: str
    candidate: str | None
    against: str | None
    dataset_fingerprint: str
    created: str
    outcomes: tuple[Outcome, ...]
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    days: Mapping[str, int] = field(default_factory=dict)
    new_from: str | None = None
    accepted: Acceptance | None = None
    former: tuple[Verdict, ...] = ()

    @property
    def passed(self) -> bool:
        """True if nothing failed. An untested check or a warning stops nothing, but the summary counts it."""
        return not self.failed

    @property
    def failed(self) -> list[Outcome]:
        """Outcomes that stop the candidate."""
        return [outcome for outcome in self.outcomes if outcome.status == "fail"]

    @property
    def warnings(self) -> list[Outcome]:
        """Failures of data gates that stop nothing, because no release is served."""
        return [outcome for outcome in self.outcomes if outcome.status == "warn"]

    @property
    def stopped_by(self) -> list[str]:
        """Names of the gates that failed, each once."""
        return list(dict.fromkeys(outcome.gate for outcome in self.failed))

    def to_json(self) -> dict[str, Any]:
        """Return the content of `verdict.json`."""
        former = [verdict.to_json() for verdict in self.former]
        return {**to_plain(self), "passed": self.passed, "stopped_by": self.stopped_by, "former": former}

    @classmethod
    def load(cls, path: Path) -> Verdict:
        """Read `verdict.json`.

        Raises:
            OSError: If there is no such file.
            ValueError: If it is not a verdict.
        """
        return msgspec.json.decode(path.read_bytes(), type=cls)

    def save(self, folder: Path) -> Path:
        """Write `verdict.json` into the folder and return its path. A verdict that is there becomes a former one."""
        try:
            earlier = Verdict.load(folder / VERDICT)
        except (OSError, ValueError):
            return self.write(folder)
        return replace(self, former=(*earlier.former, replace(earlier, former=()))).write(folder)

    def write(self, folder: Path) -> Path:
        """Write `verdict.json` as it is into the folder and return its path; null stands for nan and infinity."""
        path = folder / VERDICT
        atomic_write(path, msgspec.json.format(msgspec.json.encode(self.to_json()), indent=2) + b"\n")
        return path

    def summary(self) -> str:
        """Return one line with the result and the number of outcomes of each status."""
        count = Counter(row.status for row in self.outcomes)
        counts = f"{count['pass']} passed, {count['fail']} failed, {count['untested']} untested"
        counts += f", {count['warn']} warned" if count["warn"] else ""
        if self.passed:
            return f"passed: {counts}"
        return f"stopped by {', '.join(self.stopped_by)}: {counts}"


def to_plain(content: Any) -> Any:
    """Return dictionaries, lists and numbers of Python. Gates may yield numbers of NumPy."""
    return msgspec.to_builtins(content, enc_hook=lambda value: value.item())


def explain(outcome: Outcome) -> str:
    """Return gate, check, value, bound and reason of an outcome in one line."""
    return f"{outcome.gate}, {outcome.check}: {outcome.measured} ({outcome.reason})"


def number(value: float | None) -> str:
    """Return a number with four digits; empty for None."""
    return "" if value is None else f"{value:.4g}"
