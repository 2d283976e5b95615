"""The whole report: for the terminal, as one HTML page, and as W&B tables."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from rich.console import Console

from recsys.build import open_data
from recsys.data.dataset import Part, Requests
from recsys.errors import UserError
from recsys.funnel import plots, sheets, words
from recsys.funnel.blending import Funnel, Plan, plan
from recsys.funnel.figures import Estimate, Figures, measure
from recsys.funnel.lists import Lister, Lists, answerable, collect
from recsys.funnel.segments import segments
from recsys.funnel.sources import Source, open_sources, popular
from recsys.generators.interactions import Until
from recsys.presentation.page import Section, page
from recsys.presentation.picture import Picture
from recsys.presentation.sheet import Sheet
from recsys.tracking import wandb_online

# Of tables in files.
_WIDTH = 160


class Report:
    """Generators of one data set under one budget.

    What is chosen (settings, budgets, who goes) is chosen on validation and measured on test. Where a model has learned
    from validation too, one half of the test users takes its place, and the others are measured.

    Args:
        config: composed from `conf/generators.yaml`.
        say: gets lines about what is being done.

    Raises:
        UserError: there is nobody to ask for, or a generator cannot be used.
    """

    def __init__(self, config: DictConfig, say: Callable[[str], None]) -> None:
        self.config, self.tolerance = config, float(config.tolerance)
        if config.k < 1:
            raise UserError(f"k: found {config.k}, expected at least 1")
        if not 0 <= self.tolerance < 1:
            raise UserError(f"tolerance: found {config.tolerance}, expected a share, 0 or more and below 1")
        self.dataset = open_data(config)
        for part in ("val", "test"):
            if not len(answerable(self.dataset, part, config.exclude_seen, None, 0).user_idx):
                raise UserError(
                    f"{self.dataset.path}: nobody has anything to find in the {part} part; generators are chosen on "
                    "val and measured on test"
                )
        self.sources, self.missing = open_sources(config, self.dataset, say)
        choosing, measuring = self._lists(say)
        say(f"choosing budgets for {len(choosing):,} users")
        self.plan: Plan = plan(Funnel(choosing, keep=True), config.k, self.tolerance)
        say(f"measuring {len(measuring):,} users")
        self.figures: Figures = measure(measuring, self.plan, segments(self.dataset, measuring.requests))

    @property
    def chosen_on(self) -> str:
        """Whose future budgets were chosen by."""
        halves = any(source.knows_validation for source in self.sources)
        return "one half of the test users" if halves else "the validation part"

    @cached_property
    def advice(self) -> list[words.Advice]:
        """What to do with each generator."""
        return words.advise(self.figures, self.plan, self.tolerance)

    @cached_property
    def verdicts(self) -> list[str]:
        """The result in sentences."""
        return words.verdicts(self.figures, self.plan, self.tolerance, self.chosen_on)

    def sheets(self) -> dict[str, Sheet]:
        """All tables."""
        figures = self.figures
        return {
            "generators": sheets.main(figures, self.advice),
            "overlaps": sheets.overlaps(figures),
            "segments": sheets.segments(figures),
            "losses": sheets.losses(figures),
            "blends": sheets.blends(figures, self.plan),
            "sources": sheets.sources(self.sources, self.missing),
            "recommendation": sheets.recommendation(self.advice),
        }

    def print(self, console: Console) -> None:
        """Verdicts, and the main table, to a terminal."""
        sheets.terminal(self.figures, self.advice).print(console)
        sheets.blends(self.figures, self.plan).print(console)
        for verdict in self.verdicts:
            console.print(verdict, style="bold", markup=False, highlight=False)

    def write(self, file: Path) -> None:
        """Everything as one HTML file that needs no other."""
        tables = self.sheets()
        sections = [
            Section("How good is each on its own?", self._alone(), (tables["generators"],)),
            Section("Who finds what the others find?", self._shared(), (tables["overlaps"],)),
            Section("What is each worth beside the others?", self._worth()),
            Section("For whom?", self._for_whom(), (tables["segments"], tables["losses"])),
            Section("The blend", self._blends(), (tables["blends"],)),
            Section("Where the figures come from", (), (tables["sources"],)),
            Section("Recommendation", (), (tables["recommendation"],)),
        ]
        title = f"{len(self.figures.names)} candidate generators: which earn their place?"
        part = file.with_name(file.name + ".part")
        part.write_text(page(title, self.verdicts, sections, self._foot()), encoding="utf-8")
        os.replace(part, file)

    def mirror(self) -> None:
        """All tables to W&B, offline where there is no key, if a project is named."""
        logger = self.config.logger
        if logger.project is None:
            return
        import wandb

        os.environ.setdefault("WANDB_SILENT", "true")
        mode = "online" if wandb_online() else "offline"
        settings = {"project": logger.project, "entity": logger.entity, "group": logger.group}
        with wandb.init(**settings, tags=list(logger.tags), job_type="generators", mode=mode) as run:
            tables = {
                name: wandb.Table(columns=columns_of(sheet), data=[list(row) for row in sheet.rows])
                for name, sheet in self.sheets().items()
            }
            run.log(tables)
            for name, alone in zip(self.figures.names, self.figures.alone, strict=True):
                run.summary.update({f"{name}/{what}": figure.value for what, figure in vars(alone).items()})

    def _alone(self) -> tuple[Picture, ...]:
        figures, learned = self.figures, [source.is_learned for source in self.sources]
        names, k = figures.names, figures.k
        recall, rate, full = ([getattr(a, what) for a in figures.alone] for what in ("recall", "rate", "full"))
        best, widest = _best(names, recall), [n for n, f in zip(names, full, strict=True) if f.value > 0.995]
        reaches = f"{len(widest)} of {len(names)} fill the list of every user" if widest else "None fills every list"
        how = "blue: learned, grey: heuristics; lines: 95% interval over users"
        return (
            plots.bars(
                names,
                recall,
                learned,
                f"{best} finds most",
                f"share of what users went on to engage with; {how}",
                f"recall, {k} candidates",
            ),
            plots.bars(
                names,
                rate,
                learned,
                f"{_best(names, rate)} wastes least",
                f"share of its candidates that users went on to engage with; {how}",
                "hit rate: hits per candidate",
            ),
            plots.bars(
                names,
                full,
                learned,
                reaches,
                f"share of users that get {k} candidates of its own; {how}",
                "users with a full list",
            ),
            plots.bars(
                names,
                [a.unique for a in figures.alone],
                learned,
                f"{_best(names, [a.unique for a in figures.alone])} finds most that no other finds",
                f"of the hits of all generators, those that one alone has; {how}",
                "unique hits",
            ),
        )

    def _shared(self) -> tuple[Picture, ...]:
        figures = self.figures
        found = []
        for what, shared in (("hits", figures.shared_hits), ("lists", figures.shared_lists)):
            g, h = max(shared, key=lambda pair: shared[pair].value)
            finding = f"{figures.names[g]} and {figures.names[h]} share most {what}"
            how = f"of the {what} of either of two generators, the part that both have (Jaccard)"
            found.append(plots.overlap(figures.names, dict(shared), finding, how))
        return tuple(found)

    def _worth(self) -> tuple[Picture, ...]:
        figures = self.figures
        lost = [figures.names[n] for n, alone in enumerate(figures.alone) if alone.lost.low > 0]
        joins = [figures.names[n] for n, alone in enumerate(figures.alone) if alone.last.low > 0]
        how = "blue: above zero beyond chance, orange: below, grey: cannot be told"
        return (
            plots.changes(
                self.advice, figures, "lost",
                f"{words.joined(lost)} would be missed" if lost else "No single one would be missed",
                f"what the best blend loses without it, the others sharing its budget; {how}",
                "lost if retired, share of the blend's recall, 95% interval",
            ),
            plots.changes(
                self.advice, figures, "last",
                f"{words.joined(joins)} make equal turns better" if joins else "Nobody makes equal turns better",
                f"change when it joins all others in equal turns, at the same {figures.k} in all; {how}",
                "added last, share of the blend's recall, 95% interval",
            ),
        )  # fmt: skip

    def _for_whom(self) -> tuple[Picture, ...]:
        figures = self.figures
        if not figures.segments:
            return ()
        new = next((s for name, s in figures.segments.items() if name.startswith("new")), None)
        finding = (
            "Who finds most depends on the user"
            if new is None
            else f"New users: {_best(figures.names, new.recall)} finds most"
        )
        return (plots.segments(figures, finding, "recall of each generator in each group of users"),)

    def _blends(self) -> tuple[Picture, ...]:
        figures, learned = self.figures, [source.is_learned for source in self.sources]
        first = figures.names[int(np.argmax(self.plan.everyone))]
        gain = words.relative(figures.budget_gain, figures.equal)
        return (
            plots.blends(
                figures,
                f"Budgets change recall by {words.percent(gain.value, True)} against equal turns",
                f"each with {figures.k} candidates in all, but the last, which no budget limits",
            ),
            plots.budgets(
                figures, self.plan, learned, f"{first} gets the largest budget",
                f"chosen on {self.chosen_on}, tenth by tenth to who adds most",
            ),
        )  # fmt: skip

    def _foot(self) -> str:
        chosen = f"Settings of heuristics are chosen on validation, budgets and who goes on {self.chosen_on}"
        return (
            f"{chosen}; all figures are of {self.figures.num_users:,} other requests of test users with something to "
            f"find. Intervals: 95%, one bootstrap of users for all figures. Data {self.dataset.meta.fingerprint}."
        )

    def _lists(self, say: Callable[[str], None]) -> tuple[Lists, Lists]:
        config, data = self.config, self.dataset
        test = answerable(data, "test", config.exclude_seen, config.max_users, config.seed)
        if not any(source.knows_validation for source in self.sources):
            val = answerable(data, "val", config.exclude_seen, config.choosing_users, config.seed)
            return self._collect("val", val, say), self._collect("test", test, say)
        order = np.random.default_rng(config.seed).permutation(len(test.user_idx))
        half = len(order) // 2
        if not half:
            raise UserError("one test user alone cannot be split into those to choose by and those to measure")
        lists = self._collect("test", test, say)
        return lists.take(np.sort(order[:half])[: config.choosing_users]), lists.take(np.sort(order[half:]))

    def _collect(self, part: Part, requests: Requests, say: Callable[[str], None]) -> Lists:
        config = self.config
        until: Until = "train" if part == "val" else "val"
        say(f"{part}: {len(requests.user_idx):,} users x {len(self.sources)} generators x {config.k} candidates")
        listers = {source.name: _opened(source, until) for source in self.sources}
        fallback = popular(self.dataset, until, config.exclude_seen)
        return collect(listers, fallback, self.dataset, part, requests, config.k, config.exclude_seen)


def _opened(source: Source, until: Until) -> Lister:
    """What opens its source once it is asked."""
    return lambda requests, k: source.open(until)(requests, k)


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Says lines with the time since the beginning, so that one sees what takes long."""
    begin, console = time.monotonic(), Console(stderr=True, soft_wrap=True)
    yield lambda line: console.print(f"{time.monotonic() - begin:6.0f} s  {line}", markup=False, highlight=False)


def screen() -> Console:
    """Where tables go: as wide as they need to be in files."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def columns_of(sheet: Sheet) -> list[str]:
    """Heads of a table, those that repeat named by what they follow."""
    heads: list[str] = []
    for at, head in enumerate(sheet.columns):
        heads.append(f"{sheet.columns[at - 1]}, {head}" if head == "95%" else head)
    return heads


def _best(names: Sequence[str], values: Sequence[Estimate]) -> str:
    return names[max(range(len(names)), key=lambda number: values[number].value)]
