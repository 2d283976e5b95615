"""One command, several variants: each is trained and measured on validation, the best one becomes the run."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from recsys import distributed
from recsys.errors import UserError
from recsys.tracking import RunFolder
from recsys.training import select, train

log = logging.getLogger("recsys")


def train_best(variants: Mapping[str, DictConfig], path: Path) -> RunFolder:
    """Select in `path/variants/NAME` for each variant, and finish the one that is best on validation as the run `path`.

    Goes on where it was killed. The test part is looked at once, with the winner.

    Args:
        variants: complete configurations by name; all of one data set and one `evaluation.metric`.
        path: of the run folder, whose `config.yaml` will be the winner's.

    Raises:
        UserError: there is no variant, or they are measured by different metrics.
    """
    metrics = {config.evaluation.metric for config in variants.values()}
    if len(metrics) != 1:
        raise UserError(
            f"variants: found {len(metrics)} metrics {sorted(metrics)}, expected one evaluation.metric for all"
        )
    metric = metrics.pop()
    runs = {}
    for number, (name, config) in enumerate(variants.items(), 1):
        log.info("variant %s (%d of %d)", name, number, len(variants))
        runs[name] = select(config, path / "variants" / name)
    scores = {name: run.metrics[metric] for name, run in runs.items()}
    best = max(scores, key=lambda name: scores[name])
    if distributed.is_first():
        _print(scores, metric, best)
        _adopt(
            runs[best],
            path,
            {"variant": best, "variants": scores, "seconds": sum(r.state["seconds"] for r in runs.values())},
        )
    distributed.barrier()
    return train(variants[best], path)


def _adopt(run: RunFolder, path: Path, state: dict[str, Any]) -> None:
    """What `run` selected, as the beginning of the run `path`; `run.json` comes last and makes it valid."""
    if (path / "run.json").exists():
        return
    (path / "checkpoints").mkdir(parents=True, exist_ok=True)
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "metrics.json"):
        part = path / f"{name}.part"
        shutil.copyfile(run.path / name, part)
        os.replace(part, path / name)
    part = path / "run.json.part"
    part.write_text(json.dumps(run.state | {"status": "running"} | state, indent=2) + "\n")
    os.replace(part, path / "run.json")


def _print(scores: Mapping[str, float], metric: str, best: str) -> None:
    table = Table("variant", metric)
    for name, score in sorted(scores.items(), key=lambda pair: -pair[1]):
        table.add_row(f"[bold]{name}[/bold]" if name == best else name, f"{score:.4f}")
    Console().print(table)
