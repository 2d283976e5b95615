"""Laws fitted to the lines of growth.py, and their tables for the page. Sizes count in millions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from growth_plan import GIB, plans, row, short
from scipy.optimize import nnls

from recsys.core.io import atomic_write

Line = Mapping[str, Any]
# Name of a term -> its value for a size in millions and a number of processes.
TERMS: dict[str, Callable[[float, float], float]] = {
    "": lambda n, p: 1.0,
    "√n": lambda n, p: n**0.5,
    "/p": lambda n, p: 1 / p,
    "n": lambda n, p: n,
    "n/p": lambda n, p: n / p,
    "n√n": lambda n, p: n**1.5,
}


class Quantity(NamedTuple):
    """Measured quantity: its name, its value in a line, and the terms of its law (none: only in the table)."""

    name: str
    value: Callable[[Line], float]
    terms: tuple[str, ...] = ()


def key(name: str, scale: float = 1.0) -> Callable[[Line], float]:
    return lambda line: line[name] * scale


def ratio(name: str, by: str, scale: float = 1.0) -> Callable[[Line], float]:
    return lambda line: line[name] / line[by] * scale


LINEAR = ("", "n")
PEAK = Quantity("peak, GiB", key("peak_gib"), LINEAR)
QUANTITIES: dict[str, list[Quantity]] = {
    "preparation": [
        Quantity("CPU s", key("prepare_cpu_s"), LINEAR),
        Quantity("s", key("prepare_wall_s")),
        PEAK,
        Quantity("input, GiB", key("input_bytes", 1 / GIB), ("n",)),
        Quantity("prepared, GiB", key("output_bytes", 1 / GIB), ("n",)),
    ],
    "spark": [
        Quantity("CPU s", key("prepare_cpu_s"), LINEAR),
        Quantity("s", key("prepare_wall_s")),
        Quantity("driver, GiB", key("driver_gib"), ("",)),
        Quantity("files equal to DuckDB's, %", ratio("equal_files", "files", 100.0)),
    ],
    "training": [
        # Steps read and write the rows of a batch, whatever the number of rows.
        Quantity("CPU ms a step", ratio("steps_cpu_s", "steps", 1e3), ("",)),
        Quantity("targets a step", ratio("targets", "steps")),
        Quantity("targets a CPU s", ratio("targets", "steps_cpu_s")),
        Quantity("start, CPU s", key("open_cpu_s"), LINEAR),
        PEAK,
    ],
    "evaluation": [
        Quantity("CPU ms a user", ratio("search_cpu_s", "users", 1e3), LINEAR),
        Quantity("embeddings, CPU s", key("encode_cpu_s"), LINEAR),
        PEAK,
    ],
    "divided": [
        Quantity("peak of a process, GiB", key("process_gib"), ("", "/p", "n", "n/p")),
        Quantity("CPU s of all", key("cpu_s")),
    ],
    "index": [
        Quantity("build, CPU s", key("build_cpu_s"), ("n", "n√n")),
        PEAK,
        Quantity("file, GiB", key("index_bytes", 1 / GIB), ("n",)),
        Quantity("recall@100", key("recall")),
        Quantity("CPU ms a query", ratio("search_cpu_s", "queries", 1e3), ("", "√n", "n")),
    ],
    "serving": [
        Quantity("CPU ms a request", ratio("requests_cpu_s", "requests", 1e3), ("", "√n", "n")),
        Quantity("memory, GiB", key("memory_gib"), LINEAR),
        Quantity("release, GiB", key("release_bytes", 1 / GIB), LINEAR),
        Quantity("start, CPU s", key("ready_cpu_s"), LINEAR),
        Quantity("training and release, peak, GiB", key("make_peak_gib"), LINEAR),
    ],
}  # fmt: skip


class Law(NamedTuple):
    """Sum of terms with factors that are not negative.

    Attributes:
        terms: names in `TERMS`.
        factors: their factors.
        residuals: fitted value over measured value, minus 1, by ascending size.
    """

    terms: tuple[str, ...]
    factors: tuple[float, ...]
    residuals: tuple[float, ...]

    def __call__(self, millions: float, processes: float = 1) -> float:
        values = (TERMS[name](millions, processes) for name in self.terms)
        return sum(factor * value for factor, value in zip(self.factors, values, strict=True))

    def __str__(self) -> str:
        parts = zip(self.factors, self.terms, strict=True)
        return " + ".join(f"{factor:.3g} {name}".strip() for factor, name in parts if factor) or "0"


def fit(lines: Sequence[Line], quantity: Quantity, *, divided: bool = False) -> Law:
    """Return the law with the least sum of squared relative residuals."""
    sizes = [(line["size"] / 1e6, int(line["kind"]) if divided else 1) for line in lines]
    measured = np.array([quantity.value(line) for line in lines])
    design = np.array([[TERMS[name](*size) for name in quantity.terms] for size in sizes])
    factors, _ = nnls(design / measured[:, None], np.ones(len(lines)))
    return Law(quantity.terms, tuple(factors.tolist()), tuple((design @ factors / measured - 1).tolist()))


def fitted(lines: Sequence[Line]) -> dict[tuple[str, str, str], Law]:
    """Return the laws by stage, kind (of index only) and quantity."""
    laws = {}
    done = [line for line in ordered(lines) if "stopped" not in line]
    for (stage, kind), found in groupby(done, key=group):
        same = list(found)
        # One size says nothing about growth.
        several = len({line["size"] for line in same}) > 1
        for quantity in QUANTITIES[stage]:
            if quantity.terms and several:
                laws[stage, kind, quantity.name] = fit(same, quantity, divided=stage == "divided")
    return laws


def group(line: Line) -> tuple[str, str]:
    return line["stage"], line["kind"] if line["stage"] in ("index", "preparation") else ""


def ordered(lines: Sequence[Line]) -> list[Line]:
    stages = list(QUANTITIES)
    return sorted(lines, key=lambda line: (stages.index(line["stage"]), *group(line)[1:], line["size"], line["kind"]))


def tables(stage: str, lines: Sequence[Line], laws: Mapping[tuple[str, str, str], Law]) -> str:
    """Return the table of measurements of a stage, and that of its laws."""
    quantities = QUANTITIES[stage]
    kinds = {"preparation": ["DuckDB's limit"], "index": ["index"], "divided": ["processes"]}.get(stage, [])
    unit = "events" if stage in ("preparation", "spark") else "items"
    head = [f"million {unit}", *kinds, *(quantity.name for quantity in quantities)]
    found = [row(*head), "|---" * len(head) + "|"]
    for line in ordered([line for line in lines if line["stage"] == stage]):
        cells: list[object] = [f"{line['size'] / 1e6:g}", *([line["kind"]] if kinds else [])]
        if "stopped" in line:
            cells += [f"not measured: {line['stopped']}", *[""] * (len(quantities) - 1)]
        else:
            cells += [short(quantity.value(line)) for quantity in quantities]
        found.append(row(*cells))
    if not any(own == stage for own, _, _ in laws):
        return "\n".join([*found, "", "One size gives no law."])
    found += ["", row("law", "for n million " + unit, "residuals, smallest size first"), "|---|---|---|"]
    for (own, kind, name), law in laws.items():
        if own == stage:
            residuals = ", ".join(f"{round(value, 2) + 0.0:+.0%}" for value in law.residuals)
            found.append(row(f"{kind} {name}".strip(), law, residuals))
    return "\n".join(found)


def render(lines: Sequence[Line]) -> dict[str, str]:
    """Return the tables of each stage with measurements, and those of the plans if training is one of them."""
    laws = fitted(lines)
    names = [stage for stage in QUANTITIES if any(line["stage"] == stage for line in lines)]
    found = {stage: tables(stage, lines, laws) for stage in names}
    return found | (plans(laws, lines) if ("training", "", PEAK.name) in laws else {})


def replace(page: Path, parts: Mapping[str, str]) -> None:
    """Write each part between the markers of its name, `<!-- growth: NAME -->` and `<!-- end -->`."""

    def part(match: re.Match[str]) -> str:
        name = match[2]
        return f"{match[1]}\n\n{parts.get(name, 'Not measured yet.')}\n\n{match[3]}"

    pattern = re.compile(r"(<!-- growth: (\w+) -->).*?(<!-- end -->)", re.DOTALL)
    atomic_write(page, pattern.sub(part, page.read_text()))
