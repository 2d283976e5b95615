"""Counters, gauges and histograms in Prometheus' text format. Imports no torch.

Of what Prometheus' own client offers this is the part that a server here needs: an observation is one bisection and two
additions under one lock, and nothing has to be installed.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence

# https://prometheus.io/docs/instrumenting/exposition_formats/
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[str, ...]


class _Metric:
    """Name, meaning and labels.

    Args:
        name: of the metric, by Prometheus' rules; counters end in `_total`, times in `_seconds`.
        help: what it says.
        labels: names of its labels.
    """

    kind = ""

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()) -> None:
        self.name, self.help, self.labels = name, help, tuple(labels)
        self._lock = threading.Lock()

    def expose(self) -> list[str]:
        """Lines of the exposition."""
        head = [f"# HELP {self.name} {_escape_help(self.help)}", f"# TYPE {self.name} {self.kind}"]
        return head + self._samples()

    def _samples(self) -> list[str]:
        raise NotImplementedError

    def _check(self, labels: Labels) -> None:
        if len(labels) != len(self.labels):
            raise ValueError(f"{self.name}: found labels {labels}, expected values of {self.labels}")

    def _line(self, suffix: str, labels: Labels, value: float, le: str | None = None) -> str:
        pairs = [f'{name}="{_escape(given)}"' for name, given in zip(self.labels, labels, strict=True)]
        if le is not None:
            pairs.append(f'le="{le}"')
        return (
            f"{self.name}{suffix}{{{','.join(pairs)}}} {_number(value)}"
            if pairs
            else f"{self.name}{suffix} {_number(value)}"
        )


class Counter(_Metric):
    """Only grows."""

    kind = "counter"

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()) -> None:
        super().__init__(name, help, labels)
        # A counter without labels is there from the start, so that its first increase is one.
        self._values: dict[Labels, float] = {} if labels else {(): 0.0}

    def add(self, *labels: str, by: float = 1.0) -> None:
        """Add `by` to the counter of these labels."""
        with self._lock:
            if labels not in self._values:
                self._check(labels)
                self._values[labels] = 0.0
            self._values[labels] += by

    def value(self, *labels: str) -> float:
        """What was counted."""
        return self._values.get(labels, 0.0)

    def _samples(self) -> list[str]:
        with self._lock:
            values = dict(self._values)
        return [self._line("", labels, value) for labels, value in sorted(values.items())]


class Gauge(_Metric):
    """What is the case at the moment: set, or asked for when it is read.

    Args:
        name, help, labels: as of every metric.
        read: gives labels -> value when the exposition is asked for, instead of `set`.
    """

    kind = "gauge"

    def __init__(
        self, name: str, help: str, labels: Sequence[str] = (), read: Callable[[], dict[Labels, float]] | None = None
    ) -> None:
        super().__init__(name, help, labels)
        self._read = read
        self._values: dict[Labels, float] = {}

    def set(self, value: float, *labels: str) -> None:
        """Set the gauge of these labels."""
        self._check(labels)
        with self._lock:
            self._values[labels] = value

    def _samples(self) -> list[str]:
        if self._read is not None:
            values = self._read()
            for labels in values:
                self._check(labels)
        else:
            with self._lock:
                values = dict(self._values)
        return [self._line("", labels, value) for labels, value in sorted(values.items())]


class Histogram(_Metric):
    """How often a value was at most each of the bounds.

    Args:
        name, help, labels: as of every metric.
        bounds: ascending; one for infinity is added.
    """

    kind = "histogram"

    def __init__(self, name: str, help: str, bounds: Sequence[float], labels: Sequence[str] = ()) -> None:
        super().__init__(name, help, labels)
        if not bounds or any(low >= high for low, high in zip(bounds, bounds[1:], strict=False)):
            raise ValueError(f"{name}: found bounds {list(bounds)}, expected ascending ones")
        self.bounds = tuple(float(bound) for bound in bounds)
        # Counts of each bucket (not yet added up), of infinity, and the sum of the values.
        self._values: dict[Labels, list[float]] = {}

    def observe(self, value: float, *labels: str) -> None:
        """Count a value."""
        bucket = bisect_left(self.bounds, value)
        with self._lock:
            counts = self._values.get(labels)
            if counts is None:
                self._check(labels)
                counts = self._values[labels] = [0.0] * (len(self.bounds) + 2)
            counts[bucket] += 1
            counts[-1] += value

    def _samples(self) -> list[str]:
        with self._lock:
            values = {labels: list(counts) for labels, counts in self._values.items()}
        lines = []
        for labels, counts in sorted(values.items()):
            total = 0.0
            for bound, count in zip((*map(_number, self.bounds), "+Inf"), counts, strict=False):
                total += count
                lines.append(self._line("_bucket", labels, total, bound))
            lines += [self._line("_sum", labels, counts[-1]), self._line("_count", labels, total)]
        return lines


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(float(value))


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")
