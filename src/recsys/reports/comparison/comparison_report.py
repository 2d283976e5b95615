"""The whole comparison at once: for the terminal, and as one HTML page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from rich.console import Console

from recsys.core.errors import UserError
from recsys.evaluation.significance import Mean, means
from recsys.reports.comparison import learning, scatter
from recsys.reports.comparison import narrative as words
from recsys.reports.comparison import run_plots as plots
from recsys.reports.comparison import run_tables as sheets
from recsys.reports.comparison.differences import PART, Difference, chosen_metrics, differences, slice_metrics
from recsys.reports.comparison.measured import Measured, choose
from recsys.reports.comparison.styles import Look, looks_of
from recsys.reports.presentation.page import Section, page
from recsys.reports.presentation.picture import Picture
from recsys.reports.presentation.sheet import Sheet


class Report:
    """Runs of one test beside each other.

    Args:
        runs: two or more, of `recsys.reports.comparison.reading.read_runs`.
        metrics: such as `test/recall@10`, the first one decides; empty for the usual ones.
        baseline: name or folder of the run that the others are compared with; the first run by default.
        all_pairs: test every two runs, and not each against the baseline alone.

    Raises:
        UserError: there are fewer than two runs, or a metric or the baseline is not among what they have.
    """

    def __init__(
        self,
        runs: Sequence[Measured],
        metrics: Sequence[str] = (),
        baseline: str | None = None,
        all_pairs: bool = False,
    ) -> None:
        if len(runs) < 2:
            raise UserError(f"found {len(runs)} run ({runs[0].name}), expected at least two to compare")
        self.runs, self.all_pairs = list(runs), all_pairs
        self.baseline = choose(runs, baseline) if baseline is not None else self.runs[0]
        self.metrics = chosen_metrics(runs, metrics)
        self.slices = slice_metrics(runs, self.metrics[0])
        self.cutoff = self.metrics[0].rpartition("@")[2]

    @cached_property
    def differences(self) -> list[Difference]:
        """In the metrics.

        Raises:
            UserError: no test user has a value in two runs.
        """
        found = differences(self.runs, self.metrics, self.baseline, self.all_pairs)
        if not found:
            raise UserError(f"metric: no test user has a value of {', '.join(self.metrics)} in two runs")
        return found

    @cached_property
    def slice_differences(self) -> list[Difference]:
        """In the recall of slices, at the cut-off of the first metric."""
        return differences(self.runs, self.slices, self.baseline, self.all_pairs) if self.slices else []

    @cached_property
    def means(self) -> Mapping[str, Mean]:
        """The first metric of each run, with its interval; by name."""
        return {run.name: means(run.per_user, self.metrics[:1])[0] for run in self.runs}

    @cached_property
    def looks(self) -> Mapping[str, Look]:
        """How each run is drawn; by name."""
        return looks_of(self.runs, self.baseline, self.metrics[0])

    @cached_property
    def verdicts(self) -> list[str]:
        """The result in sentences."""
        return words.verdicts(self.runs, self.differences)

    def metrics_sheet(self) -> Sheet:
        """Test metrics of all runs."""
        return sheets.metrics(self.runs, self.metrics, self.baseline)

    def gains_sheet(self) -> Sheet:
        """Differences with intervals and p-values."""
        return sheets.gains(self.differences, "Differences")

    def slices_sheet(self) -> Sheet:
        """The same in slices of items and users."""
        return sheets.gains(self.slice_differences, f"Slices, recall@{self.cutoff}: differences")

    def cost_sheet(self) -> Sheet:
        """Seconds, steps, speed and memory."""
        return sheets.cost(self.runs)

    def settings_sheet(self) -> Sheet:
        """What was asked for, as far as it differs."""
        return sheets.settings(self.runs)

    def forest(self) -> Picture:
        """Differences with their intervals, of the runs that pictures name."""
        look = self.looks
        return plots.forest([d for d in self.differences if look[d.run].is_named and look[d.baseline].is_named])

    def recall_curves(self) -> Picture:
        """Recall over the number of items shown."""
        return plots.recall_curves(self.runs, self.looks, self.baseline.name)

    def accuracy_against(self, other: str) -> Picture | None:
        """Accuracy over `coverage` or `popularity`; None where fewer than two runs say it."""
        name = f"{other}@{self.cutoff}"
        if sum(PART + name in run.metrics for run in self.runs) < 2:
            return None
        return scatter.against(self.runs, self.looks, self.means, name)

    def slices_picture(self) -> Picture | None:
        """Recall in slices with intervals; None where files of users do not have it."""
        return plots.slices(self.runs, self.looks, self.slices) if self.slices else None

    def learning_curves(self) -> Picture | None:
        """Validation over training steps; None where no run has logs."""
        curve = learning.selecting_metric(self.runs, self.metrics[0])
        if curve is None:
            return None
        return learning.learning_curves(self.runs, self.looks, curve)

    def cost_picture(self) -> Picture | None:
        """Accuracy over seconds; None where no run says what it took."""
        if not any(run.state.seconds for run in self.runs):
            return None
        return scatter.cost(self.runs, self.looks, self.means)

    def print(self, console: Console) -> None:
        """Verdicts and tables to a terminal."""
        for verdict in self.verdicts:
            console.print(verdict, style="bold", markup=False, highlight=False)
        console.print()
        for sheet in self._sheets():
            sheet.print(console)
            console.print()

    def write(self, file: Path) -> None:
        """Verdicts, pictures and tables as one HTML file that needs no other."""
        metrics, gains, *in_slices, cost, settings = self._sheets()
        quality = self.forest(), self.recall_curves()
        variety = self.accuracy_against("coverage"), self.accuracy_against("popularity")
        training = self.learning_curves(), self.cost_picture()
        sections = [
            Section("Which run is better", quality, (metrics, gains)),
            Section("Accuracy and variety", _there(variety)),
            Section("Slices of items and users", _there((self.slices_picture(),)), tuple(in_slices)),
            Section("Learning and cost", _there(training), (cost,)),
            Section("What the runs were asked for", (), (settings,)),
        ]
        users = int(self.runs[0].metrics.get(f"{PART}num_users", 0))
        tested = f"{users:,} test users, " if users else ""
        data = self.runs[0].test.get("dataset_fingerprint")
        foot = f"{tested}data {data}. " + "; ".join(f"{run.name}: {run.row.path}" for run in self.runs)
        title = f"{len(self.runs)} runs compared by {self.metrics[0]}"
        content = page(title, self.verdicts, [s for s in sections if s.pictures or s.sheets], foot)
        part = file.with_name(file.name + ".part")
        part.write_text(content, encoding="utf-8")
        os.replace(part, file)

    def _sheets(self) -> list[Sheet]:
        in_slices = [self.slices_sheet()] if self.slices else []
        return [self.metrics_sheet(), self.gains_sheet(), *in_slices, self.cost_sheet(), self.settings_sheet()]


def _there(pictures: Sequence[Picture | None]) -> tuple[Picture, ...]:
    return tuple(picture for picture in pictures if picture is not None)
