"""Steps that a warm start saves until it reaches the validation recall of a cold training on the same data."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from arriving import Days
from policies import Loop

from recsys.experiments.train import select

METRIC = "val/recall@100"
# Share of the cold run's recall that is reported too; cold runs of other seeds differ by half as much.
NEARLY = 0.99
# Steps between two validations, and validations without gain before a training ends.
EVERY, PATIENCE = 20, 12
# A larger validation part than that of the loop, for less noise. The cold training of the day before does not see it.
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
    """Comparison of a cold and a warm training on one day.

    Attributes:
        day: day of the data, from 0; the warm run starts from a cold run of the day before.
        best: validation recall of the cold run.
        cold_steps: steps until the cold run reached it.
        warm_best: validation recall of the warm run.
        warm_steps: steps until the warm run reached the recall of the cold one; None if it did not.
        nearly_steps: steps until it reached 99% of that; None if it did not.
    """

    day: int
    best: float
    cold_steps: int
    warm_best: float
    warm_steps: int | None
    nearly_steps: int | None

    def share(self, steps: int | None) -> float:
        """Return steps of the warm run as a share of the cold run's; infinite for None."""
        return float("inf") if steps is None else steps / self.cold_steps

    def __str__(self) -> str:
        reached = [("all", self.warm_steps), (f"{NEARLY:.0%}", self.nearly_steps)]
        told = [f"{part} never" if n is None else f"{part} after {n} ({self.share(n):.0%})" for part, n in reached]
        return (
            f"day {self.day + 1}: {METRIC} {self.best:.4f} after {self.cold_steps} steps cold; "
            f"warm {self.warm_best:.4f}: {', '.join(told)}"
        )


class Beginnings:
    """Cold and warm trainings on chosen days.

    Args:
        folder: folder of the runs.
        loop: policy whose training configuration is used.
        days: days of the world; a training reads the real events so far.
        chosen: days, from 0.
    """

    def __init__(self, folder: Path, loop: Loop, *, days: Days, chosen: tuple[int, ...]) -> None:
        self._folder, self._loop, self._days, self._chosen = folder, loop, days, chosen

    def at_the_end_of(self, day: int) -> None:
        """Run the trainings of a day that are not finished."""
        if day + 1 in self._chosen or day in self._chosen:
            self._train(day, "cold", None)
        if day in self._chosen:
            self._train(day, "warm", self._folder / f"{day - 1:03}-cold")

    def measured(self) -> list[Beginning]:
        """Return the comparison of each chosen day that was trained."""
        return [self._read(day) for day in self._chosen if (self._folder / f"{day:03}-warm").exists()]

    def _train(self, day: int, name: str, begin: Path | None) -> None:
        config = self._loop.training(self._days.happened, day, *LOOKING)
        config.warm_start = None if begin is None else str(begin)
        select(config, self._folder / f"{day:03}-{name}")

    def _read(self, day: int) -> Beginning:
        cold, warm = (validations(self._folder / f"{day:03}-{name}") for name in ("cold", "warm"))
        best = max(cold.values())
        first = min(step for step, value in cold.items() if value == best)
        reached, nearly = (
            min((step for step, value in warm.items() if value >= bar), default=None) for bar in (best, NEARLY * best)
        )
        return Beginning(day, best, first, max(warm.values()), reached, nearly)


def validations(run: Path) -> dict[int, float]:
    """Return steps -> validation recall of every validation during training."""
    found: dict[int, float] = {}
    for file in sorted((run / "logs").glob("*/metrics.csv")):
        with file.open() as lines:
            for row in csv.DictReader(lines):
                # The validation of the selected weights after training has step 0.
                if row.get(METRIC) and int(row["step"]):
                    found[int(row["step"]) + 1] = float(row[METRIC])
    return found
