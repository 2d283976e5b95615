"""The generator report, for the terminal and as one HTML page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console

from recsys.core.io import atomic_write
from recsys.core.progress import Progress, say
from recsys.reports.generators import generator_plots as plots
from recsys.reports.generators import generator_tables as tables
from recsys.reports.generators import narrative as words
from recsys.reports.generators.figures import Estimate
from recsys.reports.generators.study import Study
from recsys.reports.presentation.page import Section, page
from recsys.reports.presentation.picture import Picture

# Width of tables in files.
_WIDTH = 160
_HOW = "blue: learned, grey: heuristics; line: 95% interval"


class GeneratorReport:
    """Report of a generator study.

    Args:
        study: results of the study.
    """

    def __init__(self, study: Study) -> None:
        self.study, self.figures = study, study.figures
        self.advice = words.advise(study.figures, study.plan, tolerance=study.tolerance)
        self.verdicts = words.verdicts(study.figures, study.plan, tolerance=study.tolerance, chosen_on=study.chosen_on)
        self._kept, self._kept_recall, _ = words.kept_blend(study.figures, study.plan, tolerance=study.tolerance)
        self._num_gone = words.num_confirmed(study.figures, study.tolerance)
        self._learned = [source.is_learned for source in study.sources]

    def print(self, console: Console) -> None:
        """Print the verdicts and the main tables to a terminal."""
        tables.terminal(self.figures, self.advice).print(console)
        console.print()
        tables.blends(self.figures, self.study.plan, tolerance=self.study.tolerance).print(console)
        console.print()
        for verdict in self.verdicts:
            console.print(verdict, style="bold", markup=False, highlight=False)

    def write(self, file: Path) -> None:
        """Write the report as one self-contained HTML file."""
        figures, study = self.figures, self.study
        by_group = (tables.segments(figures), tables.losses(figures)) if figures.segments else ()
        sections = [
            Section("Generators", (), (tables.sources(figures, study.sources, missing=study.missing),)),
            Section("Value of each generator in the blend", self._value_in_blend()),
            Section("Each generator by itself", self._by_itself(), (tables.main(figures, self.advice),)),
            Section("Overlap between generators", self._overlaps(), (tables.overlaps(figures),)),
            Section("Groups of users", self._user_groups(), by_group),
            Section(
                "Blends",
                self._blends(),
                (tables.blends(figures, study.plan, tolerance=study.tolerance),),
            ),
            Section("Recommendation", (), (tables.recommendation(self.advice),)),
        ]
        title = f"{len(figures.names)} candidate generators: which to keep and which to retire"
        content = page(
            title, self.verdicts, sections=[s for s in sections if s.pictures or s.tables], foot=self._foot()
        )
        atomic_write(file, content)

    def _value_in_blend(self) -> tuple[Picture, ...]:
        figures, how = (
            self.figures,
            "blue and orange: significantly above and below zero",
        )
        names = [item.name for item in self.advice]
        alone = [figures.alone[figures.names.index(name)] for name in names]

        def changes(values: Mapping[str, Estimate], finding: str, caption: str, label: str) -> Picture:
            label = f"{label}, of the best blend's recall, 95% interval"
            return plots.changes(
                list(values),
                list(values.values()),
                base=figures.everyone,
                finding=finding,
                caption=f"{caption}; {how}",
                label=label,
            )

        lost = {name: figure.lost for name, figure in zip(names, alone, strict=True)}
        last = {name: figure.last for name, figure in zip(names, alone, strict=True)}
        beside = figures.needed[self._num_gone]
        needed = {name: beside[g] for name in names if (g := figures.names.index(name)) in beside}
        pictures = [
            changes(
                lost, f"Loss if one is retired: {_above(lost)}",
                "recall lost if one generator is retired and the others share its budget", "lost if retired",
            )
        ]  # fmt: skip
        if self._num_gone and needed:
            pictures.append(
                changes(
                    needed, f"Loss if one more is retired: {_above(needed)}",
                    "recall that the blend of the kept generators loses if one more is retired", "lost if also retired",
                )
            )  # fmt: skip
        pictures.append(
            changes(
                last, f"Gain if added last: {_above(last)}",
                f"recall that a generator adds to all others in equal turns, {figures.k} candidates in all",
                "added last",
            )
        )  # fmt: skip
        return tuple(pictures)

    def _by_itself(self) -> tuple[Picture, ...]:
        figures, names, k = self.figures, self.figures.names, self.figures.k

        def bars(values: Sequence[Estimate], finding: str, caption: str, label: str) -> Picture:
            return plots.bars(
                names, values, learned=self._learned, finding=finding, caption=f"{caption}; {_HOW}", label=label
            )

        recall, rate, full, unique = (
            [getattr(alone, what) for alone in figures.alone] for what in ("recall", "rate", "full", "unique")
        )
        num_full = sum(share.value > 0.995 for share in full)
        fills = f"{num_full or 'None'} of {len(names)} give every user a full list"
        finds, hit, alone = (self._best(values) for values in (recall, rate, unique))
        return (
            bars(recall, f"Highest: {finds}", "share of later items among the candidates", f"recall, {k} candidates"),
            bars(rate, f"Highest: {hit}", "share of its candidates that are hits", "hit rate, hits per candidate"),
            bars(full, fills, f"share of users with {k} candidates of this generator", "user coverage"),
            bars(unique, f"Most: {alone}", "share of all hits that no other generator has", "unique hits"),
        )

    def _overlaps(self) -> tuple[Picture, ...]:
        names, found = self.figures.names, []
        for what, shared in (("hits", self.figures.shared_hits), ("lists", self.figures.shared_lists)):
            g, h = max(shared, key=lambda pair: shared[pair].value)
            finding = f"{names[g]} and {names[h]}: largest overlap of {what}"
            how = f"share of the {what} of two generators that both have (Jaccard similarity)"
            found.append(plots.overlap(names, shared, finding=finding, caption=how))
        return tuple(found)

    def _user_groups(self) -> tuple[Picture, ...]:
        groups = self.figures.segments
        if not groups:
            return ()
        new = next((group for name, group in groups.items() if name.startswith("new")), None)
        finding = (
            "The best generator differs between groups"
            if new is None
            else f"New users: {self._best(new.recall)} is best"
        )
        return (plots.segments(self.figures, finding, caption="recall of each generator in each group of users"),)

    def _blends(self) -> tuple[Picture, ...]:
        figures, plan = self.figures, self.study.plan
        gain = words.relative(figures.budget_gain, figures.equal)
        largest = figures.names[int(np.argmax(self._kept))]
        return (
            plots.blends(
                figures, self._kept_recall,
                finding=f"Budgets change recall by {words.percent(gain.value, True)} against equal turns",
                caption=f"{figures.k} candidates in all; the last bar has no limit and bounds every blend",
            ),
            plots.budgets(
                figures, plan, kept=self._kept, learned=self._learned, finding=f"{largest} has the largest budget",
                caption=f"chosen on {self.study.chosen_on}, in steps of a tenth, each for the generator that adds most",
            ),
        )  # fmt: skip

    def _foot(self) -> str:
        return (
            "Settings of heuristics were chosen on the validation part, budgets and retired generators on "
            f"{self.study.chosen_on}. Figures are means over {self.figures.num_users:,} test users with later events, "
            "one request each, with the history before the test part. Intervals: 95%, one bootstrap "
            f"of users for all figures. Data {self.study.fingerprint}."
        )

    def _best(self, values: Sequence[Estimate]) -> str:
        return self.figures.names[max(range(len(values)), key=lambda number: values[number].value)]


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Yield a function that writes a line of progress; a bar with the time so far stays below it in a terminal."""
    with Progress("generators", first=60.0):
        yield say


def screen() -> Console:
    """Return a console for tables: as wide as the terminal, or as wide as needed in a file."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def _above(values: Mapping[str, Estimate]) -> str:
    names = [name for name, value in values.items() if value.low > 0]
    return words.joined(names) if names else "none"
