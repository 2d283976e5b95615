"""The plan of the evidence: data sets, variants, seeds, baselines, published figures and bars, from one YAML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

# Stands for all baselines on the command line, and is their folder.
BASELINES = "baselines"


@dataclass(frozen=True)
class Variant:
    """A row of a trained model: a run for each seed."""

    name: str
    title: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Published:
    """Figures of a paper on the same file."""

    model: str
    source: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Bar:
    """A figure that a row must reach, or a baseline that it must beat with a p-value below `p`."""

    row: str
    metric: str
    at_least: float | None = None
    above: str | None = None
    p: float = 0.05


@dataclass(frozen=True)
class DataSet:
    """A data set with its protocol.

    Attributes:
        protocol: name of the split in the independent scorer.
        overrides: overrides of every command; `{data}` is the folder of the data sets.
        variants: names of its variants, in the order of the table.
        baseline: baseline that the differences of the table are taken from.
    """

    name: str
    title: str
    protocol: str
    overrides: tuple[str, ...]
    variants: tuple[str, ...]
    baseline: str
    note: str = ""
    published: tuple[Published, ...] = ()
    bars: tuple[Bar, ...] = ()


@dataclass(frozen=True)
class Job:
    """One run: a variant with a seed, or a baseline."""

    data: DataSet
    row: str
    seed: int | None
    words: tuple[str, ...]

    def folder(self, runs: Path) -> Path:
        if self.seed is None:
            return runs / self.data.name / BASELINES / self.row
        return runs / self.data.name / self.row / f"seed{self.seed}"

    @property
    def title(self) -> str:
        return f"{self.data.name}, {self.row}" + ("" if self.seed is None else f", seed {self.seed}")

    def command(self, runs: Path, data: Path) -> list[str]:
        """Arguments of `recsys`."""
        given = [word.format(data=data) for word in (*self.data.overrides, *self.words)]
        if self.seed is None:
            folder = self.folder(runs).parent
            return [BASELINES, *given, f"generators=[{self.row}]", f"hydra.run.dir={folder}"]
        return ["train", *given, f"seed={self.seed}", "logger=csv", f"hydra.run.dir={self.folder(runs)}"]


@dataclass(frozen=True)
class Plan:
    """Content of the file.

    Attributes:
        metrics: metrics of the tables, such as `test/recall@10`.
    """

    metrics: tuple[str, ...]
    seeds: tuple[int, ...]
    baselines: tuple[str, ...]
    variants: Mapping[str, Variant]
    data: Mapping[str, DataSet] = field(default_factory=dict)

    def title(self, row: str) -> str:
        return self.variants[row].title if row in self.variants else row.replace("_", " ")

    def jobs(
        self,
        *,
        data: Sequence[str] | None = None,
        rows: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[Job]:
        """Return the runs of some data sets and rows, baselines first.

        Raises:
            ValueError: If a name is unknown.
        """
        known = (*self.variants, *self.baselines, BASELINES)
        for kind, given, names in (("data", data, tuple(self.data)), ("rows", rows, known)):
            if unknown := set(given or ()) - set(names):
                raise ValueError(f"--{kind}: no {sorted(unknown)}, expected some of {', '.join(names)}")
        found = []
        for name in data or self.data:
            one = self.data[name]
            for baseline in self.baselines:
                if rows is None or baseline in rows or BASELINES in rows:
                    found.append(Job(one, baseline, None, ()))
            for variant in one.variants:
                if rows is None or variant in rows:
                    words = self.variants[variant].overrides
                    found += [Job(one, variant, seed, words) for seed in seeds or self.seeds]
        return found


def read_plan(path: Path) -> Plan:
    """Read the file; an unknown key or name is an error that says where it is."""
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    variants = {
        name: Variant(name, node["title"], tuple(node["overrides"])) for name, node in content["variants"].items()
    }
    metrics, baselines = tuple(content["metrics"]), tuple(content["baselines"])
    data = {}
    for name, node in content["data"].items():
        node = dict(node)
        published = tuple(Published(**one) for one in node.pop("published", ()))
        bars = tuple(Bar(**one) for one in node.pop("bars", ()))
        lists = {key: tuple(node.pop(key)) for key in ("overrides", "variants")}
        data[name] = DataSet(name, **node, **lists, published=published, bars=bars)
        rows = {*lists["variants"], *(bar.row for bar in bars)} - {*variants}
        others = {data[name].baseline, *(bar.above for bar in bars if bar.above)} - {*baselines}
        if rows or others:
            raise ValueError(f"{path}: data.{name}: no row {sorted(rows | others)}, expected {[*variants, *baselines]}")
    return Plan(metrics, tuple(content["seeds"]), baselines, variants, data)
