"""The verdict on a canary: promote, keep on or roll back, while its users come. Imports no torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from recsys.core.errors import UserError
from recsys.core.io import atomic_write
from recsys.operations.rollout.engagement import Engagement, EngagementReader
from recsys.operations.rollout.sequential import SequentialTest

Decision = Literal["promote", "keep_on", "roll_back"]
# Moments of the course that are kept for the report.
_MOST_MOMENTS = 400


@dataclass(frozen=True, kw_only=True)
class CanarySettings:
    """Settings of `judge` in `conf/rollout.yaml`."""

    enabled: bool
    action: str | None
    margin: float
    alpha: float
    max_requests: int
    max_hours: float
    every: float
    finish: bool

    def __post_init__(self) -> None:
        if not 0 < self.margin < 1:
            raise UserError(f"judge.margin: found {self.margin}, expected a share between 0 and 1")
        if not 0 < self.alpha < 0.5:
            raise UserError(f"judge.alpha: found {self.alpha}, expected a probability between 0 and 0.5")
        for name in ("max_requests", "max_hours", "every"):
            if getattr(self, name) <= 0:
                raise UserError(f"judge.{name}: found {getattr(self, name)}, expected more than 0")

    @property
    def test(self) -> SequentialTest:
        """The sequential test."""
        return SequentialTest(margin=self.margin, alpha=self.alpha)


class Moment(msgspec.Struct, array_like=True):
    """Requests until a moment, relative difference of engagement, and its bounds; None if they are infinite."""

    requests: int
    difference: float | None
    lower: float | None
    upper: float | None


class VersionEngagement(msgspec.Struct):
    """Users, answers, answers with engagement and their share, of one version."""

    version: str
    users: int
    answers: int
    engaged: int
    rate: float | None


class GeneratorRow(msgspec.Struct):
    """Answers of one generator of one version: share with each action, and items shown.

    `coverage` is the share of the items of the release; None if the release cannot be read.
    """

    version: str
    generator: str
    answers: int
    rates: dict[str, float]
    items: int
    coverage: float | None


class CanaryVerdict(msgspec.Struct, kw_only=True):
    """Result of the test, and what it was made from.

    Attributes:
        decision: what to do.
        reason: why, in one sentence.
        version, previous: the canary, and the version that it is compared with.
        action: outcome that counts; None for any.
        margin, alpha, max_requests: settings of the test.
        requests: answers of both versions.
        p_worse: always-valid p-value of "the canary is not worse".
        p_better: always-valid p-value of "the canary loses the margin or more".
        course: the test from its begin to its end.
    """

    decision: Decision
    reason: str
    version: str
    previous: str
    action: str | None
    margin: float
    alpha: float
    max_requests: int
    requests: int
    p_worse: float
    p_better: float
    versions: list[VersionEngagement]
    generators: list[GeneratorRow]
    course: list[Moment]

    def write(self, path: Path) -> None:
        """Write the verdict as JSON."""
        atomic_write(path, msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")

    def text(self) -> str:
        """Return the report for a terminal."""
        lines = []
        for row in self.versions:
            name = "canary" if row.version == self.version else "served"
            rate = "no answers" if row.rate is None else f"{row.rate:.2%} of {row.answers:,} answers with engagement"
            lines.append(f"{name} {row.version}: {rate}, {row.users:,} users")
        for one in self.generators:
            rates = ", ".join(f"{action} {rate:.2%}" for action, rate in one.rates.items()) or "no outcomes"
            share = "" if one.coverage is None else f" ({one.coverage:.1%} of all)"
            lines.append(
                f"  {one.version} {one.generator}: {one.answers:,} answers, {rates}; {one.items:,} items shown{share}"
            )
        return "\n".join([*lines, f"{self.decision.replace('_', ' ')}: {self.reason}"])


class CanaryJudge:
    """Applies the test to what the reader finds, and keeps the course. `num_items` returns the items of a version."""

    def __init__(
        self,
        reader: EngagementReader,
        settings: CanarySettings,
        *,
        num_items: Callable[[str], int | None] = lambda version: None,  # noqa: ARG005
    ) -> None:
        self._reader, self._settings, self._num_items = reader, settings, num_items
        self._course: list[Moment] = []

    def look(self) -> CanaryVerdict:
        """Return the verdict of this moment."""
        found, settings = self._reader.read(), self._settings
        version, previous = self._reader.versions
        bounds = settings.test.bounds(found.sums[version], found.sums[previous])
        difference, lower, upper = (float(value) for value in bounds[:3])
        moment = Moment(found.requests, *(_finite(value) for value in (difference, lower, upper)))
        if not math.isfinite(upper):
            moment.difference = None
        self._course.append(moment)
        if len(self._course) > _MOST_MOMENTS:
            self._course = self._course[1::2]
        decision: Decision = "keep_on"
        known = f"engagement {difference:+.1%}, between {lower:+.1%} and {upper:+.1%} after {found.requests:,} answers"
        if not math.isfinite(upper):
            known = f"too few users or outcomes after {found.requests:,} answers"
        elif lower > -settings.margin:
            decision = "promote"
            known += f"; a loss of {settings.margin:.1%} or more is excluded"
        elif upper < 0:
            decision = "roll_back"
            known += "; the canary is worse"
        return CanaryVerdict(
            decision=decision,
            reason=known,
            version=version,
            previous=previous,
            action=settings.action,
            margin=settings.margin,
            alpha=settings.alpha,
            max_requests=settings.max_requests,
            requests=found.requests,
            p_worse=float(bounds.p_worse),
            p_better=float(bounds.p_better),
            versions=_versions(found),
            generators=[
                GeneratorRow(
                    one.version, one.generator, one.answers, dict(one.rates), one.items,
                    None if (items := self._num_items(one.version)) is None else one.items / max(items, 1),
                )
                for one in found.generators
            ],
            course=list(self._course),
        )  # fmt: skip

    def judge(self, *, report: Callable[[CanaryVerdict], None], check: Callable[[], None]) -> CanaryVerdict:
        """Look again and again until there is a decision, or a limit of requests or time is reached.

        `report` gets every verdict; `check` is called every second and may raise.
        """
        give_up = time.monotonic() + 3600 * self._settings.max_hours
        while True:
            verdict = self.look()
            report(verdict)
            if verdict.decision != "keep_on" or verdict.requests >= self._settings.max_requests:
                return verdict
            again = time.monotonic() + self._settings.every
            while (left := again - time.monotonic()) > 0:
                check()
                if time.monotonic() > give_up:
                    return verdict
                time.sleep(min(left, 1.0))


def _versions(found: Engagement) -> list[VersionEngagement]:
    return [
        VersionEngagement(
            version, int(sums.users), int(sums.n), int(sums.y), float(sums.y / sums.n) if sums.n else None
        )
        for version, sums in found.sums.items()
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def settings_of(config: Any) -> CanarySettings:
    """Return the settings of a configuration."""
    return CanarySettings(**{str(name): value for name, value in config.items()})
