"""What a warm start saves: steps until the validation recall that a cold training ends with, on the same data."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from arriving import Days
from policies import Loop

from recsys.experiments.train import select

METRIC = "val/recall@100"
# Share of the cold run's recall that is told beside all of it: cold runs of other seeds differ by half as much.
NEARLY = 0.99
# Steps between two looks, and looks without gain before a training ends.
EVERY, PATIENCE = 20, 12
# More of validation than the loop has, for less noise; validated by steps. Yesterday's training ends before it begins.
LOOKING = (
    "split.train=0.82",
    "split.val=0.15",
    "test=false",
    "trainer.max_epochs=12",
    "trainer.check_val_every_n_epoch=null",
    f"+trainer.val_check_interval={EVERY}",
    f"callbacks.early_stopping.patience={PATIENCE}",
)


@dataclass(frozen=True)
class Beginning:
    """Attributes:
    day: of the data, from 0; the warm run begins from a cold one of the day before.
    best: validation recall of the cold run.
    cold_steps: until it was reached.
    warm_best: validation recall of the warm run.
    warm_steps: until the warm run reached the cold one's; None: it did not.
    nearly_steps: until it reached 99% of that; None: it did not.
    """

    day: int
    best: float
    cold_steps: int
    warm_best: float
    warm_steps: int | None
    nearly_steps: int | None

    def share(self, steps: int | None) -> float:
        """Steps of the warm run as a share of the cold run's; infinite where there are none."""
        return float("inf") if steps is None else steps / self.cold_steps

    def __str__(self) -> str:
        """As it is told."""
        reached = [("all", self.warm_steps), (f"{NEARLY:.0%}", self.nearly_steps)]
        told = [f"{part} never" if n is None else f"{part} after {n} ({self.share(n):.0%})" for part, n in reached]
        return (
            f"day {self.day + 1}: {METRIC} {self.best:.4f} after {self.cold_steps} steps cold; "
            f"warm {self.warm_best:.4f}: {', '.join(told)}"
        )


class Beginnings:
    """Trainings, cold and warm, of chosen days.

    Args:
        folder: of the runs.
        loop: how to train.
        days: that pass; a training sees what has happened when it is asked for.
        chosen: days, from 0.
    """

    def __init__(self, folder: Path, loop: Loop, days: Days, chosen: tuple[int, ...]) -> None:
        self._folder, self._loop, self._days, self._chosen = folder, loop, days, chosen

    def at_the_end_of(self, day: int) -> None:
        """Train what has to be trained on a day; what is trained already stays."""
        if day + 1 in self._chosen or day in self._chosen:
            self._train(day, "cold", None)
        if day in self._chosen:
            self._train(day, "warm", self._folder / f"{day - 1:03}-cold")

    def measured(self) -> list[Beginning]:
        """Of each chosen day that was trained."""
        return [self._read(day) for day in self._chosen if (self._folder / f"{day:03}-warm").exists()]

    def _train(self, day: int, name: str, begin: Path | None) -> None:
        config = self._loop.training(self._days.happened, day, *LOOKING)
        config.warm_start = None if begin is None else str(begin)
        select(config, self._folder / f"{day:03}-{name}")

    def _read(self, day: int) -> Beginning:
        cold, warm = (looks(self._folder / f"{day:03}-{name}") for name in ("cold", "warm"))
        best = max(cold.values())
        first = min(step for step, value in cold.items() if value == best)
        reached, nearly = (
            min((step for step, value in warm.items() if value >= bar), default=None) for bar in (best, NEARLY * best)
        )
        return Beginning(day, best, first, max(warm.values()), reached, nearly)


def looks(run: Path) -> dict[int, float]:
    """Steps -> validation recall, of every look during training."""
    found: dict[int, float] = {}
    for file in sorted((run / "logs").glob("*/metrics.csv")):
        with file.open() as lines:
            for row in csv.DictReader(lines):
                # A look at the selected weights, behind training, bears step 0.
                if row.get(METRIC) and int(row["step"]):
                    found[int(row["step"]) + 1] = float(row[METRIC])
    return found
