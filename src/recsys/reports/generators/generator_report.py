"""The generator report: sections with the same tables and sentences in the terminal and on one HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
from rich.console import Console

from recsys.core.io import atomic_write
from recsys.reports.generators import generator_plots as plots
from recsys.reports.generators import generator_tables as tables
from recsys.reports.generators import narrative as words
from recsys.reports.generators.figures import Estimate
from recsys.reports.generators.segments import NO_HISTORY
from recsys.reports.generators.study import Study
from recsys.reports.presentation.page import Section, page, print_page
from recsys.reports.presentation.picture import Picture


class GeneratorReport:
    """Report of a generator study.

    Args:
        study: results of the study.
    """

    def __init__(self, study: Study) -> None:
        self.study, self.figures = study, study.figures
        self.advice = words.advise(study.figures, study.plan, tolerance=study.tolerance)
        self.verdicts = words.verdicts(study.figures, study.plan, tolerance=study.tolerance, chosen_on=study.chosen_on)
        self.title = f"{len(study.figures.names)} candidate generators: which to keep and which to retire"
        self.foot = (
            "Settings of heuristics were chosen on the validation part, budgets and retired generators on "
            f"{study.chosen_on}. Figures are means over {study.figures.num_users:,} test users with later events, "
            "one request each, with the history before the test part. Intervals: 95%, one bootstrap "
            f"of users for all figures. Data {study.fingerprint}."
        )

    @cached_property
    def sections(self) -> list[Section]:
        """Pictures and tables under their headings, in the order of the report."""
        figures, study = self.figures, self.study
        sections = [
            Section("Generators", (), (tables.sources(figures, study.sources, missing=study.missing),)),
            Section("Value of each generator in the blend", self._value_in_blend()),
            Section("Each generator by itself", self._by_itself(), (tables.main(figures, self.advice),)),
            Section("Overlap between generators", self._overlaps(), (tables.overlaps(figures),)),
            Section("New items", (), tables.new_items(figures)),
            Section("Groups of users", self._user_groups(), tables.groups(figures)),
            Section("Blends", self._blends(), (tables.blends(figures, study.plan, tolerance=study.tolerance),)),
            Section("Recommendation", (), (tables.recommendation(self.advice),)),
        ]
        return [section for section in sections if section.pictures or section.tables]

    def print(self, console: Console) -> None:
        """Print the sentences and tables of the page to a terminal."""
        print_page(console, self.title, verdicts=self.verdicts, sections=self.sections, foot=self.foot)

    def write(self, file: Path) -> None:
        """Write the report as one self-contained HTML file."""
        atomic_write(file, page(self.title, self.verdicts, sections=self.sections, foot=self.foot))

    def _value_in_blend(self) -> tuple[Picture, ...]:
        figures, gone = self.figures, words.num_confirmed(self.figures, self.study.tolerance)
        numbers = {item.name: figures.names.index(item.name) for item in self.advice}

        def changes(values: Mapping[str, Estimate], finding: str, caption: str, label: str) -> Picture:
            above = [name for name, value in values.items() if value.low > 0]
            return plots.changes(
                values,
                figures.everyone,
                finding=f"{finding}: {words.joined(above) if above else 'none'}",
                caption=f"{caption}; blue and orange: significantly above and below zero",
                label=f"{label}, of the best blend's recall, 95% interval",
            )

        pictures = [
            changes(
                {name: figures.alone[g].lost for name, g in numbers.items()}, "Loss if one is retired",
                "recall lost if one generator is retired and the others share its budget", "lost if retired",
            ),
            changes(
                {name: figures.alone[g].last for name, g in numbers.items()}, "Gain if added last",
                f"recall that a generator adds to all others in equal turns, {figures.k} candidates in all",
                "added last",
            ),
        ]  # fmt: skip
        needed = {name: figures.needed[gone][g] for name, g in numbers.items() if g in figures.needed[gone]}
        if gone and needed:
            picture = changes(
                needed, "Loss if one more is retired",
                "recall that the blend of the kept generators loses if one more is retired", "lost if also retired",
            )  # fmt: skip
            pictures.insert(1, picture)
        return tuple(pictures)

    def _by_itself(self) -> tuple[Picture, ...]:
        figures, k = self.figures, self.figures.k
        kinds = [plots.LEARNED if source.is_learned else plots.HEURISTIC for source in self.study.sources]
        num_full = sum(alone.full.value > 0.995 for alone in figures.alone)
        fills = f"{num_full or 'None'} of {len(kinds)} give every user a full list"
        drawn = []
        for what, finding, caption, label in (
            ("recall", "Highest recall: {}", "share of later items among the candidates", f"recall, {k} candidates"),
            ("rate", "Highest hit rate: {}", "share of its candidates that are hits", "hit rate, hits per candidate"),
            ("full", fills, f"share of users with {k} candidates of this generator", "user coverage"),
            ("unique", "Most unique hits: {}", "share of all hits that no other generator has", "unique hits"),
        ):
            values = [getattr(alone, what) for alone in figures.alone]
            order = np.argsort([-value.value for value in values], kind="stable").tolist()
            picture = plots.bars(
                {figures.names[g]: values[g] for g in order},
                [kinds[g] for g in order],
                finding=finding.format(figures.names[order[0]]),
                caption=f"{caption}; blue: learned, grey: heuristics; line: 95% interval",
                label=label,
            )
            drawn.append(picture)
        return tuple(drawn)

    def _overlaps(self) -> tuple[Picture, ...]:
        names, drawn = self.figures.names, []
        for what, shared in (("hits", self.figures.shared_hits), ("lists", self.figures.shared_lists)):
            values = np.full((len(names), len(names)), np.nan)
            for (g, h), estimate in shared.items():
                values[g, h] = values[h, g] = estimate.value
            g, h = max(shared, key=lambda pair: shared[pair].value)
            finding = f"{names[g]} and {names[h]}: largest overlap of {what}"
            how = f"share of the {what} of two generators that both have (Jaccard similarity)"
            drawn.append(plots.matrix(values, names, columns=names, finding=finding, caption=how))
        return tuple(drawn)

    def _user_groups(self) -> tuple[Picture, ...]:
        names, groups = self.figures.names, self.figures.segments
        if not groups:
            return ()
        finding = "The best generator differs between groups"
        for name, group in groups.items():
            if name == NO_HISTORY:
                finding = f"New users: {names[int(np.argmax([recall.value for recall in group.recall]))]} is best"
        values = np.array([[recall.value for recall in group.recall] for group in groups.values()]).T
        columns = [name.replace(": ", ":\n").replace("back ", "back\n") for name in groups]
        how = "recall of each generator in each group of users"
        return (plots.matrix(values, names, columns=columns, finding=finding, caption=how),)

    def _blends(self) -> tuple[Picture, ...]:
        figures, study = self.figures, self.study
        kept, kept_recall, _ = words.kept_blend(figures, study.plan, tolerance=study.tolerance)
        gain = words.relative(figures.budget_gain, figures.equal)
        best = max(range(len(figures.names)), key=lambda g: figures.alone[g].recall.value)
        recall = {
            f"{figures.names[best]} alone": figures.alone[best].recall,
            "all, equal turns": figures.equal,
            "kept generators, best budgets": kept_recall,
            "all, best budgets": figures.everyone,
            "whole lists, no budget": figures.union,
        }
        return (
            plots.bars(
                recall, [plots.BLEND] * 4 + [plots.LIMIT],
                finding=f"Budgets change recall by {words.percent(gain.value, True)} against equal turns",
                caption=f"{figures.k} candidates in all; the last bar has no limit and bounds every blend",
                label="recall",
            ),
            plots.budgets(
                figures.names, {"all generators": study.plan.everyone, "kept": kept},
                learned=[source.is_learned for source in study.sources],
                finding=f"{figures.names[int(np.argmax(kept))]} has the largest budget",
                caption=f"chosen on {study.chosen_on}, in steps of a tenth, each for the generator that adds most",
            ),
        )  # fmt: skip
