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

from recsys.core import distributed
from recsys.core.errors import UserError
from recsys.experiments.blend_selection import Chosen, blend_config, choose_blend, write_checkpoint
from recsys.experiments.tracking import RunFolder
from recsys.experiments.train import refit, select, train

log = logging.getLogger("recsys")


def train_best(variants: Mapping[str, DictConfig], path: Path, blend: bool = False) -> RunFolder:
    """Select in `path/variants/NAME` for each variant, and finish the one that is best on validation as the run `path`.

    Goes on where it was killed. The test part is looked at once, with the winner.

    Args:
        variants: complete configurations by name; all of one data set and one `evaluation.metric`.
        path: of the run folder, whose `config.yaml` will be the winner's.
        blend: whether the run may be a blend of several variants.

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
    if blend:
        chosen = _choose(variants, runs, metric, path / "variants/blend.json")
        if not chosen.is_one_run:
            return _finish_blend(variants, runs, chosen, scores, metric, path)
    if distributed.is_first():
        _print(scores, metric, best)
        _adopt(runs[best], path, {"variant": best, "variants": scores, "seconds": _seconds(runs)})
    distributed.barrier()
    return train(variants[best], path)


def _choose(variants: Mapping[str, DictConfig], runs: Mapping[str, RunFolder], metric: str, file: Path) -> Chosen:
    """The blend, kept in `file`: once its members are trained on validation too, it cannot be chosen again."""
    if not file.exists() and distributed.is_first():
        part = file.with_name(file.name + ".part")
        part.write_text(json.dumps(choose_blend(variants, runs, metric)._asdict(), indent=2) + "\n")
        os.replace(part, file)
    distributed.barrier()
    return Chosen(**json.loads(file.read_text()))


def _finish_blend(
    variants: Mapping[str, DictConfig],
    runs: Mapping[str, RunFolder],
    chosen: Chosen,
    scores: Mapping[str, float],
    metric: str,
    path: Path,
) -> RunFolder:
    """Train the members again where that is asked for, and make the run `path` of their weights."""
    members = {name: variants[name] for name in chosen.weights}
    name = " + ".join(f"{weight:.2g} {member}" for member, weight in chosen.weights.items())
    if chosen.prior_shift["weight"]:
        name += " + {weight:g} prior^{power:g} of {half_life_days:g} days".format(**chosen.prior_shift)
    if distributed.is_first():
        _print({**scores, name: chosen.metrics[metric]}, metric, name)
    for number, member in enumerate(members, 1):
        log.info("member %s (%d of %d)", member, number, len(members))
        refit(members[member], path / "variants" / member)
    config = blend_config(members, chosen.weights, chosen.prior_shift)
    run = RunFolder(path, config)
    if "selected" not in run.state and distributed.is_first():
        run.checkpoints.mkdir(exist_ok=True)
        for file in ("best.ckpt", "last.ckpt"):
            write_checkpoint(members, runs, run.checkpoints / file)
        run.write_metrics(chosen.metrics)
        state = {key: sum(runs[member].state[key] for member in members) for key in ("selected", "steps")}
        state["targets_per_second"] = min(runs[member].state["targets_per_second"] for member in members)
        state["peak_memory_bytes"] = max(runs[member].state["peak_memory_bytes"] for member in members)
        times = [until for member in members if (until := runs[member].state.get("train_until")) is not None]
        state["train_until"] = max(times, default=None)
        first = runs[next(iter(members))].state
        state |= {key: first[key] for key in ("dataset_fingerprint", "git_commit")}
        all_scores = {**scores, name: chosen.metrics[metric]}
        # What comes last makes the rest valid.
        run.update(
            status="running", variant=name, variants=all_scores, seconds=_seconds(runs), refitted=config.refit, **state
        )
    distributed.barrier()
    return train(config, path)


def _seconds(runs: Mapping[str, RunFolder]) -> float:
    return sum(float(run.state["seconds"]) for run in runs.values())


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
