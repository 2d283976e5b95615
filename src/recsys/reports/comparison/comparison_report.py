"""The comparison of runs as a whole, for the terminal and as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from rich.console import Console

from recsys.core.errors import UserError
from recsys.core.io import atomic_write
from recsys.evaluation.significance import Mean, means
from recsys.reports.comparison import learning, scatter
from recsys.reports.comparison import narrative as words
from recsys.reports.comparison import run_plots as plots
from recsys.reports.comparison import run_tables as tables
from recsys.reports.comparison.differences import PART, Difference, chosen_metrics, differences, slice_metrics
from recsys.reports.comparison.measured import MeasuredRun, choose
from recsys.reports.comparison.styles import RunStyle, styles_of
from recsys.reports.presentation.page import Section, page
from recsys.reports.presentation.picture import Picture
from recsys.reports.presentation.report_table import ReportTable


class ComparisonReport:
    """Comparison of runs of one test.

    Args:
        runs: two or more runs, read by `recsys.reports.comparison.reading.read_runs`.
        metrics: metrics such as `test/recall@10`, the deciding one first; empty for the usual ones.
        baseline: name or folder of the run that the others are compared with; the first run by default.
        all_pairs: compare every two runs, not only each run with the baseline.

    Raises:
        UserError: If there are fewer than two runs, or the runs lack a metric or the baseline.
    """

    def __init__(
        self,
        runs: Sequence[MeasuredRun],
        metrics: Sequence[str] = (),
        *,
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
        """Differences in the metrics.

        Raises:
            UserError: If no test user has a value in two runs.
        """
        found = differences(self.runs, self.metrics, baseline=self.baseline, all_pairs=self.all_pairs)
        if not found:
            raise UserError(f"metric: no test user has a value of {', '.join(self.metrics)} in two runs")
        return found

    @cached_property
    def slice_differences(self) -> list[Difference]:
        """Differences in the metrics of slices, at the cut-off of the first metric."""
        return (
            differences(self.runs, self.slices, baseline=self.baseline, all_pairs=self.all_pairs) if self.slices else []
        )

    @cached_property
    def means(self) -> Mapping[str, Mean]:
        """The first metric of each run with its interval, by name."""
        return {run.name: means(run.per_user, self.metrics[:1])[0] for run in self.runs}

    @cached_property
    def styles(self) -> Mapping[str, RunStyle]:
        """Style of each run in pictures, by name."""
        return styles_of(self.runs, self.baseline, metric=self.metrics[0])

    @cached_property
    def verdicts(self) -> list[str]:
        """Results in sentences."""
        return words.verdicts(self.runs, self.differences)

    def metrics_table(self) -> ReportTable:
        """Return the test metrics of all runs."""
        return tables.metrics(self.runs, self.metrics, baseline=self.baseline)

    def gains_table(self) -> ReportTable:
        """Return the differences with intervals and p-values."""
        return tables.gains(self.differences, "Differences")

    def slices_table(self) -> ReportTable:
        """Return the differences in the recall of slices, and in the share of new items shown."""
        return tables.gains(self.slice_differences, f"Slices at {self.cutoff}: differences")

    def cost_table(self) -> ReportTable:
        """Return seconds, steps, speed and memory of each run."""
        return tables.cost(self.runs)

    def settings_table(self) -> ReportTable:
        """Return the settings in which the runs differ."""
        return tables.settings(self.runs)

    def forest(self) -> Picture:
        """Return the picture of differences with their intervals, for the runs with names."""
        look = self.styles
        return plots.forest([d for d in self.differences if look[d.run].is_named and look[d.baseline].is_named])

    def recall_curves(self) -> Picture:
        """Return the picture of recall over the number of items shown."""
        return plots.recall_curves(self.runs, self.styles, baseline=self.baseline.name)

    def accuracy_against(self, other: str) -> Picture | None:
        """Return the picture of accuracy over `coverage` or `popularity`; None if fewer than two runs have it."""
        name = f"{other}@{self.cutoff}"
        if sum(PART + name in run.metrics for run in self.runs) < 2:
            return None
        return scatter.against(self.runs, self.styles, found=self.means, other=name)

    def slices_picture(self) -> Picture | None:
        """Return the picture of recall in slices; None if the files per user lack it."""
        recalls = [name for name in self.slices if not words.is_share(name)]
        return plots.slices(self.runs, self.styles, names=recalls) if recalls else None

    def learning_curves(self) -> Picture | None:
        """Return the picture of validation over training steps; None if no run has logs."""
        curve = learning.selecting_metric(self.runs, self.metrics[0])
        if curve is None:
            return None
        return learning.learning_curves(self.runs, self.styles, curve=curve)

    def cost_picture(self) -> Picture | None:
        """Return the picture of accuracy over seconds; None if no run recorded its duration."""
        if not any(run.state.seconds for run in self.runs):
            return None
        return scatter.cost(self.runs, self.styles, found=self.means)

    def print(self, console: Console) -> None:
        """Print verdicts and tables to a terminal."""
        for verdict in self.verdicts:
            console.print(verdict, style="bold", markup=False, highlight=False)
        console.print()
        for table in self._tables():
            table.print(console)
            console.print()

    def write(self, file: Path) -> None:
        """Write verdicts, pictures and tables as one self-contained HTML file."""
        metrics, gains, *in_slices, cost, settings = self._tables()
        quality = self.forest(), self.recall_curves()
        variety = self.accuracy_against("coverage"), self.accuracy_against("popularity")
        training = self.learning_curves(), self.cost_picture()
        sections = [
            Section("Which run is better", quality, (metrics, gains)),
            Section("Accuracy and variety", _existing(variety)),
            Section("Slices of items and users", _existing((self.slices_picture(),)), tuple(in_slices)),
            Section("Learning and cost", _existing(training), (cost,)),
            Section("Settings", (), (settings,)),
        ]
        users = int(self.runs[0].metrics.get(f"{PART}num_users", 0))
        tested = f"{users:,} test users, " if users else ""
        data = self.runs[0].test.get("dataset_fingerprint")
        foot = f"{tested}data {data}. " + "; ".join(f"{run.name}: {run.row.path}" for run in self.runs)
        title = f"{len(self.runs)} runs compared by {self.metrics[0]}"
        content = page(title, self.verdicts, sections=[s for s in sections if s.pictures or s.tables], foot=foot)
        atomic_write(file, content)

    def _tables(self) -> list[ReportTable]:
        in_slices = [self.slices_table()] if self.slices else []
        return [self.metrics_table(), self.gains_table(), *in_slices, self.cost_table(), self.settings_table()]


def _existing(pictures: Sequence[Picture | None]) -> tuple[Picture, ...]:
    return tuple(picture for picture in pictures if picture is not None)
