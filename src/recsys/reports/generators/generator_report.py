"""The generator report, for the terminal and as one HTML page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console

from recsys.core.io import atomic_write
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
    """A study of generators for people to read.

    Args:
        study: results of the study.
    """

    def __init__(self, study: Study) -> None:
        self.study, self.figures = study, study.figures
        self.advice = words.advise(study.figures, study.plan, tolerance=study.tolerance)
        self.verdicts = words.verdicts(study.figures, study.plan, tolerance=study.tolerance, chosen_on=study.chosen_on)
        self._kept, self._kept_recall, _ = words.kept(study.figures, study.plan, tolerance=study.tolerance)
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
            Section("What is compared", (), (tables.sources(figures, study.sources, missing=study.missing),)),
            Section("What is each worth beside the others?", self._worth()),
            Section("How good is each on its own?", self._alone(), (tables.main(figures, self.advice),)),
            Section("Who finds what the others find as well?", self._shared(), (tables.overlaps(figures),)),
            Section("For whom?", self._for_whom(), by_group),
            Section(
                "The blend: one list from all",
                self._blends(),
                (tables.blends(figures, study.plan, tolerance=study.tolerance),),
            ),
            Section("Recommendation", (), (tables.recommendation(self.advice),)),
        ]
        title = f"{len(figures.names)} candidate generators: which earn their place?"
        content = page(
            title, self.verdicts, sections=[s for s in sections if s.pictures or s.tables], foot=self._foot()
        )
        atomic_write(file, content)

    def _worth(self) -> tuple[Picture, ...]:
        figures, how = self.figures, "blue: above zero beyond chance, orange: below, grey: cannot be told"
        names = [said.name for said in self.advice]
        alone = [figures.alone[figures.names.index(name)] for name in names]

        def changes(values: Mapping[str, Estimate], finding: str, what: str, label: str) -> Picture:
            label = f"{label}, of the best blend's recall, 95% interval"
            return plots.changes(
                list(values),
                list(values.values()),
                base=figures.everyone,
                finding=finding,
                what=f"{what}; {how}",
                label=label,
            )

        lost = {name: figure.lost for name, figure in zip(names, alone, strict=True)}
        last = {name: figure.last for name, figure in zip(names, alone, strict=True)}
        beside = figures.needed[self._num_gone]
        needed = {name: beside[g] for name in names if (g := figures.names.index(name)) in beside}
        pictures = [
            changes(
                lost, f"Missed if it alone goes: {_above(lost)}",
                "what the best blend loses when one goes and the others share its budget", "lost if retired",
            )
        ]  # fmt: skip
        if self._num_gone and needed:
            pictures.append(
                changes(
                    needed, f"Missed among those that stay: {_above(needed)}",
                    "what the blend of those that stay loses when one more goes", "lost if retired as well",
                )
            )  # fmt: skip
        pictures.append(
            changes(
                last, f"Adds something new: {_above(last)}",
                f"what one adds when it joins all others last, in equal turns, {figures.k} candidates in all",
                "added last",
            )
        )  # fmt: skip
        return tuple(pictures)

    def _alone(self) -> tuple[Picture, ...]:
        figures, names, k = self.figures, self.figures.names, self.figures.k

        def bars(values: Sequence[Estimate], finding: str, what: str, label: str) -> Picture:
            return plots.bars(
                names, values, learned=self._learned, finding=finding, what=f"{what}; {_HOW}", label=label
            )

        recall, rate, full, unique = (
            [getattr(alone, what) for alone in figures.alone] for what in ("recall", "rate", "full", "unique")
        )
        num_full = sum(share.value > 0.995 for share in full)
        fills = f"{num_full or 'None'} of {len(names)} fill every user's list"
        finds, hit, alone = (self._best(values) for values in (recall, rate, unique))
        went_on = "users went on to engage with"
        return (
            bars(recall, f"{finds} finds most", f"of what {went_on}", f"recall, {k} candidates"),
            bars(rate, f"{hit} is hit most often", f"of its candidates, {went_on}", "hit rate, hits per candidate"),
            bars(full, fills, f"users that get {k} candidates of its own", "user coverage"),
            bars(unique, f"{alone} finds most alone", "of all hits, those that no other generator has", "unique hits"),
        )

    def _shared(self) -> tuple[Picture, ...]:
        names, found = self.figures.names, []
        for what, shared in (("hits", self.figures.shared_hits), ("lists", self.figures.shared_lists)):
            g, h = max(shared, key=lambda pair: shared[pair].value)
            finding = f"{names[g]} and {names[h]}: most alike in {what}"
            how = f"of the {what} of either of two generators, what both have (Jaccard similarity)"
            found.append(plots.overlap(names, shared, finding=finding, what=how))
        return tuple(found)

    def _for_whom(self) -> tuple[Picture, ...]:
        groups = self.figures.segments
        if not groups:
            return ()
        new = next((group for name, group in groups.items() if name.startswith("new")), None)
        finding = (
            "Who finds most depends on the user" if new is None else f"New users: {self._best(new.recall)} finds most"
        )
        return (plots.segments(self.figures, finding, what="recall of each generator in each group of users"),)

    def _blends(self) -> tuple[Picture, ...]:
        figures, plan = self.figures, self.study.plan
        gain = words.relative(figures.budget_gain, figures.equal)
        largest = figures.names[int(np.argmax(self._kept))]
        return (
            plots.blends(
                figures, self._kept_recall,
                finding=f"Budgets change recall by {words.percent(gain.value, True)} against equal turns",
                what=f"{figures.k} candidates in all; the last, without a limit, is what no blend can exceed",
            ),
            plots.budgets(
                figures, plan, kept=self._kept, learned=self._learned, finding=f"{largest} gets most of the list",
                what=f"chosen on {self.study.chosen_on}, tenth by tenth for whoever adds most",
            ),
        )  # fmt: skip

    def _foot(self) -> str:
        return (
            "Settings of heuristics were chosen on the validation part, budgets and who goes on "
            f"{self.study.chosen_on}. Figures are of {self.figures.num_users:,} test users who went on to engage with "
            "something; each is asked for once, with the history before the test part. Intervals: 95%, one bootstrap "
            f"of users for all figures. Data {self.study.fingerprint}."
        )

    def _best(self, values: Sequence[Estimate]) -> str:
        return self.figures.names[max(range(len(values)), key=lambda number: values[number].value)]


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Yield a function that prints a line with the seconds since the beginning, to show which step takes long."""
    begin, console = time.monotonic(), Console(stderr=True, soft_wrap=True)
    yield lambda line: console.print(f"{time.monotonic() - begin:6.0f} s  {line}", markup=False, highlight=False)


def screen() -> Console:
    """Return a console for tables: as wide as the terminal, or as wide as needed in a file."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def _above(values: Mapping[str, Estimate]) -> str:
    """Return the names of those whose interval lies above zero."""
    names = [name for name, value in values.items() if value.low > 0]
    return words.joined(names) if names else "none"
