"""Results of the simulated months: figures, a table, a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from arriving import Incident
from beginning import Beginning
from policies import Retrained
from rich.console import Console
from rich.table import Table

from recsys.core.types import Float64Array

matplotlib.use("svg")
from matplotlib import pyplot

NEVER = "never"
# Neighbouring days are similar, so the bootstrap draws blocks of days.
_BLOCK = 7
_DRAWS = 5000
_COLOURS = {
    "never": "#8a939b",
    "weekly, cold": "#e0a030",
    "weekly, warm": "#3a9a5b",
    "daily, warm": "#0b62a4",
    "daily, warm, no gates": "#c0392b",
}


@dataclass
class DayRecord:
    """Results of one day.

    Attributes:
        day: day, from 0.
        users: number of users of the day.
        recall: policy -> metric -> value of the release that was served on that day.
        seconds: duration, without the time that a killed process lost.
        comparing: duration of the trainings that compare warm and cold starts.
        is_over: every policy that was due has retrained.
    """

    day: int
    users: int = 0
    recall: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0
    comparing: float = 0.0
    is_over: bool = False


@dataclass(frozen=True)
class Months:
    """Results of all days.

    Attributes:
        num_events: number of real events.
        days: records in order; the first has no recall.
        retrained: retrainings of each policy.
        incidents: incidents of the world.
        beginnings: comparisons of warm and cold starts.
    """

    num_events: int
    days: Sequence[DayRecord]
    retrained: Mapping[str, Sequence[Retrained]]
    incidents: Sequence[Incident]
    beginnings: Sequence[Beginning] = ()

    def recall(self, policy: str, metric: str = "recall@10") -> Float64Array:
        """Return the metric of each day on which a release was served."""
        return np.array([told.recall[policy][metric] for told in self.days if told.recall])

    def gain(self, policy: str, other: str, *, metric: str = "recall@10") -> tuple[float, float, float]:
        """Return the mean difference over the days, and its 95% interval from a bootstrap of weeks."""
        difference = self.recall(policy, metric) - self.recall(other, metric)
        block = min(_BLOCK, len(difference))
        rng = np.random.default_rng(0)
        begin = rng.integers(0, len(difference), (_DRAWS, -(-len(difference) // block)))
        rows = (begin[:, :, None] + np.arange(block)).reshape(_DRAWS, -1)[:, : len(difference)] % len(difference)
        low, high = np.quantile(difference[rows].mean(1), [0.025, 0.975])
        return float(difference.mean()), float(low), float(high)

    def to_json(self) -> dict[str, Any]:
        """Return plain containers."""
        return {
            "num_events": self.num_events,
            "seconds": sum(told.seconds for told in self.days),
            "policies": {name: self._summary(name) for name in self.retrained},
            "comparing_seconds": sum(told.comparing for told in self.days),
            "beginnings": [asdict(one) for one in self.beginnings],
            "days": [asdict(told) for told in self.days],
            "retrained": {name: [asdict(one) for one in made] for name, made in self.retrained.items()},
        }

    def _summary(self, policy: str) -> dict[str, Any]:
        made = self.retrained[policy]
        gain, low, high = self.gain(policy, NEVER)
        return {
            "recall@10": float(self.recall(policy).mean()),
            "recall@100": float(self.recall(policy, "recall@100").mean()),
            "gain": gain,
            "gain_low": low,
            "gain_high": high,
            "retrained": len(made),
            "outcomes": dict(Counter(one.outcome for one in made)),
            "seconds": sum(one.seconds for one in made),
        }

    def print(self, console: Console) -> None:
        """Print a table of the policies, and every candidate that was not kept."""
        heads = "policy", "recall@10", "beside never", "95% interval", "recall@100", "retrained", "stopped", "seconds"
        table = Table(*heads)
        for name in self.retrained:
            row = self._summary(name)
            table.add_row(
                name,
                f"{row['recall@10']:.4f}",
                f"{row['gain']:+.4f}",
                f"{row['gain_low']:+.4f} to {row['gain_high']:+.4f}",
                f"{row['recall@100']:.4f}",
                str(row["retrained"]),
                str(row["retrained"] - row["outcomes"].get("kept", 0)),
                f"{row['seconds']:.0f}",
            )
        console.print(table)
        for name, made in self.retrained.items():
            for one in made:
                if one.outcome != "kept":
                    met = ", ".join(i.name for i in self.incidents if i.first <= one.day <= i.mended) or "nothing known"
                    console.print(f"{name}, day {one.day + 1}: {one.why}; {met}", soft_wrap=True)
        for begun in self.beginnings:
            console.print(str(begun), soft_wrap=True)
        seconds = sum(told.seconds for told in self.days)
        console.print(f"{len(self.days)} days from the first model on, {self.num_events:,} events, {seconds:.0f} s")

    def draw(self, path: Path) -> None:
        """Draw recall by day (mean of seven days), stopped candidates and incidents."""
        figure, axis = pyplot.subplots(figsize=(10, 4.6), layout="constrained")
        day = np.array([told.day + 1 for told in self.days if told.recall])
        ends = []
        for name in self.retrained:
            values = self.recall(name)
            smooth = _smooth(values)
            axis.plot(day, smooth, color=_COLOURS.get(name), linewidth=2, zorder=3)
            ends.append((smooth[-1], name))
            stopped = [one.day + 1 for one in self.retrained[name] if one.outcome == "stopped"]
            places = np.searchsorted(day, stopped)
            axis.scatter(day[places], smooth[places], marker="x", s=36, color=_COLOURS.get(name), zorder=4)
        low, high = axis.get_ylim()
        at = -np.inf
        for value, name in sorted(ends):
            at = max(value, at + (high - low) * 0.05)
            axis.text(day[-1] + 0.7, at, name, color=_COLOURS.get(name), va="center", fontsize=10)
        for incident in self.incidents:
            if day[0] <= incident.first + 1 <= day[-1]:
                axis.axvspan(incident.first + 0.5, incident.mended + 0.5, color="#f3d9d5", linewidth=0, zorder=1)
                place = (incident.first + 0.5, high + (high - low) * 0.01)
                axis.text(*place, incident.name, fontsize=8, rotation=20, va="bottom", color="#7a3b32")
        axis.set_xlim(day[0] - 1, day[-1] + 0.5)
        axis.set_xlabel("day; x: a gate stopped the candidate of that evening", fontsize=9)
        axis.set_ylim(low, high)
        axis.set_ylabel("recall@10 of what is served, mean of seven days", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def _smooth(values: Float64Array) -> Float64Array:
    """Return the mean of each value and of up to six values before it."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    begin = np.maximum(end - _BLOCK, 0)
    return np.asarray((total[end] - total[begin]) / (end - begin))
