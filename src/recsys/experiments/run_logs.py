"""Values that a run logged while it trained, from the CSV files of all its starts. Imports no torch."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Curve(NamedTuple):
    """Values of a metric after given numbers of training steps."""

    steps: list[int]
    values: list[float]


def read_logs(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of `logs/START/metrics.csv`, in the order of starts."""
    for file in sorted(folder.glob("logs/*/metrics.csv"), key=lambda path: int(path.parent.name)):
        with file.open(newline="") as rows:
            yield from csv.DictReader(rows)


def curves_of(rows: Iterable[Mapping[str, Any]], step: str = "step") -> dict[str, Curve]:
    """Return the curves of logged rows, in the order of logging.

    A restarted run repeats steps. Rows logged after training (validation of the selected checkpoint, a second training
    on train + val) count steps from zero again. Only rows with a step beyond all earlier ones count.

    Args:
        rows: logged values by name; empty or absent if a row does not have one. A row that is being written is skipped.
        step: name of the column that counts steps from 0.
    """
    curves: dict[str, Curve] = {}
    for row in rows:
        for name, value in row.items():
            if not str(name).startswith(("val/", "train/")):
                continue
            try:
                number, value = int(float(row[step])) + 1, float(value)
            except (KeyError, TypeError, ValueError):
                continue
            curve = curves.setdefault(name, Curve([], []))
            if math.isfinite(value) and (not curve.steps or number > curve.steps[-1]):
                curve.steps.append(number)
                curve.values.append(value)
    return curves
