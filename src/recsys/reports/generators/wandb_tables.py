"""Figures of a generator study as W&B tables."""

from __future__ import annotations

import os
from collections.abc import Sequence

from omegaconf import DictConfig

from recsys.experiments.wandb_mirror import wandb_online
from recsys.reports.generators.figures import Estimate
from recsys.reports.generators.narrative import SHOWN, advise
from recsys.reports.generators.study import Study

Cells = list[str | int | float]


def mirror(study: Study, logger: DictConfig) -> None:
    """Log the tables and the figures of each generator if a project is named; offline if there is no key."""
    if logger.project is None:
        return
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    with wandb.init(
        project=logger.project,
        entity=logger.entity,
        group=logger.group,
        tags=list(logger.tags),
        job_type="generators",
        mode="online" if wandb_online() else "offline",
    ) as run:
        for name, (head, rows) in tables(study).items():
            run.log({name: wandb.Table(columns=[*map(str, head)], data=rows)})
        for name, alone in zip(study.figures.names, study.figures.alone, strict=True):
            run.summary.update({f"{name}/{what}": figure.value for what, figure in vars(alone).items()})


def tables(study: Study) -> dict[str, tuple[list[str], list[Cells]]]:
    """Return column heads and rows of each table by name. Each figure is followed by the ends of its interval."""
    figures, names = study.figures, study.figures.names
    verdict = {item.name: SHOWN[item.verdict] for item in advise(figures, study.plan, tolerance=study.tolerance)}
    generators: list[Cells] = [
        [
            name,
            "learned" if source.is_learned else "heuristic",
            verdict[name],
            *_cells(list(vars(alone).values())),
            budget,
        ]
        for name, source, alone, budget in zip(names, study.sources, figures.alone, study.plan.everyone, strict=True)
    ]
    groups: list[Cells] = [
        [group, segment.num_users, name, *_cells([recall, lost])]
        for group, segment in figures.segments.items()
        for name, recall, lost in zip(names, segment.recall, segment.lost, strict=True)
    ]
    pairs: list[Cells] = [
        [names[g], names[h], *_cells([figures.shared_lists[g, h], figures.shared_hits[g, h]])]
        for g, h in figures.shared_lists
    ]
    new = figures.new_items
    new_items: list[Cells] = [
        [name, *_cells([recall, shown])]
        for name, recall, shown in (() if new is None else zip(names, new.recall, new.shown, strict=True))
    ]
    return {
        "new items": (["generator", *_heads(["recall", "shown"])], new_items),
        "generators": (["generator", "kind", "advice", *_heads([*vars(figures.alone[0])]), "budget"], generators),
        "groups": (["users", "number", "generator", *_heads(["recall", "lost"])], groups),
        "pairs": (["first", "second", *_heads(["lists", "hits"])], pairs),
    }


def _heads(names: Sequence[str]) -> list[str]:
    return [head for name in names for head in (name, f"{name}, low", f"{name}, high")]


def _cells(estimates: Sequence[Estimate]) -> Cells:
    return [value for estimate in estimates for value in estimate]
