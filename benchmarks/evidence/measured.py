"""Figures of the tables and the picture as `measured.json` keeps them, so that they outlive the run folders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from evidence.plan import DataSet, Plan

from recsys.core.io import atomic_write


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Part of the file. An unknown key is an error; a value that equals its default is not written."""


class Figure(Kept, frozen=True):
    """Mean of a metric over the seeds of a row.

    Attributes:
        deviation: standard deviation between the seeds; None for a single run.
        low: lower end of the 95% interval of the mean over users; kept for the metric of the picture.
        high: upper end of the interval.
    """

    mean: float
    deviation: float | None = None
    low: float | None = None
    high: float | None = None


class Comparison(Kept, frozen=True):
    """Gain of a row over a baseline.

    Attributes:
        baseline_mean: mean of the baseline when the two were compared. If the tables show another one for the baseline
            now, the comparison is out of date.
        difference: gain, in the unit of the metric.
    """

    metric: str
    baseline: str
    baseline_mean: float
    difference: float


class Difference(Comparison, frozen=True):
    """Gain with its interval.

    Attributes:
        low: lower end of the 95% interval over users.
        high: upper end of the interval.
        without_zero: True if 0 is outside the interval. The ends do not tell, because rounding can make them 0.
    """

    low: float
    high: float
    without_zero: bool


class Test(Comparison, frozen=True):
    """Gain with the p-value of no gain."""

    p_value: float


class Row(Kept, frozen=True):
    """A model over its seeds, or a tuned baseline.

    Attributes:
        commits: commits of the runs in the order of the seeds, each once; `+` stands for uncommitted changes.
        seconds: mean of the runs.
        memory_gib: largest peak of the runs.
        seeds: empty for a baseline.
        settings: tuned settings of a baseline.
        differences: gains over the baseline that the data set names.
        best: gain over the best baseline of each metric; p-values are corrected for these comparisons (Holm).
        bars: gains over the baselines that bars name.
    """

    commits: tuple[str | None, ...]
    seconds: float
    memory_gib: float
    figures: Mapping[str, Figure]
    seeds: tuple[int, ...] = ()
    parameters: int | None = None
    settings: Mapping[str, Any] = {}
    differences: tuple[Difference, ...] = ()
    best: tuple[Test, ...] = ()
    bars: tuple[Test, ...] = ()


Compared = TypeVar("Compared", bound=Comparison)


@dataclass(frozen=True)
class Table:
    """Rows of a data set that are measured, by name."""

    plan: Plan
    data: DataSet
    rows: Mapping[str, Row]

    @property
    def models(self) -> list[str]:
        return [name for name in self.data.variants if name in self.rows]

    @property
    def baselines(self) -> list[str]:
        return [name for name in self.plan.baselines if name in self.rows]

    @property
    def missing(self) -> list[str]:
        """Rows of the plan that are not measured, and seeds that a row lacks."""
        found = []
        for name in self.data.variants:
            done = self.rows[name].seeds if name in self.rows else ()
            if left := [str(seed) for seed in self.plan.seeds if seed not in done]:
                found.append(f"{name} (seeds {', '.join(left)})")
        return found + [name for name in self.plan.baselines if name not in self.rows]

    def mean(self, name: str, metric: str) -> float | None:
        figure = self.rows[name].figures.get(metric) if name in self.rows else None
        return None if figure is None else figure.mean

    def best_baseline(self, metric: str) -> str | None:
        means = {name: self.mean(name, metric) for name in self.baselines}
        return max((name for name in means if means[name] is not None), key=lambda name: means[name] or 0, default=None)

    def current(self, found: Sequence[Compared], metric: str, *, baseline: str) -> Compared | None:
        """Return the comparison with a baseline; None if there is none, or if the baseline has another mean now."""
        mean = self.mean(baseline, metric)
        for one in found:
            if (one.metric, one.baseline) == (metric, baseline) and short(one.baseline_mean) == short(mean):
                return one
        return None


def short(value: float | None) -> str:
    """Return a figure as the tables show it."""
    return "" if value is None else f"{value:.4f}".removeprefix("0")


def read_measured(path: Path, plan: Plan) -> dict[str, Table]:
    """Return the rows of each data set of the plan; none if there is no file.

    Raises:
        ValueError: If the file is damaged, or holds a row that the plan lacks.
    """
    try:
        content = msgspec.json.decode(path.read_bytes() if path.exists() else b"{}", type=dict[str, dict[str, Any]])
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}: not rows by data set ({error})") from error
    for data, nodes in content.items():
        known = (*plan.data[data].variants, *plan.baselines) if data in plan.data else ()
        for name in nodes:
            if name not in known:
                raise ValueError(f"{path}: {data}.{name}: not in the plan, expected {list(known or plan.data)}")
            try:
                nodes[name] = msgspec.convert(nodes[name], Row)
            except msgspec.ValidationError as error:
                raise ValueError(f"{path}: {data}.{name}: {error}") from error
    return {name: Table(plan, data, content.get(name, {})) for name, data in plan.data.items()}


def write_measured(path: Path, tables: Mapping[str, Table]) -> None:
    """Replace the file. Rows are sorted and each figure is a line, so that a diff shows what has changed."""
    content = {name: dict(sorted(tables[name].rows.items())) for name in sorted(tables) if tables[name].rows}
    text = msgspec.json.format(msgspec.json.encode(content), indent=2).decode()
    innermost = re.compile(r"[{\[][^{}\[\]]*[}\]]")
    text = innermost.sub(lambda found: re.sub(r"\n\s*", "", re.sub(r",\n\s*", ", ", found[0])), text)
    atomic_write(path, text + "\n")
