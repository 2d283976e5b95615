"""Training of several variants in one run: the one that is best on validation becomes the run, or a blend of them."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from recsys.core import distributed
from recsys.core.errors import UserError
from recsys.core.io import atomic_file, atomic_write
from recsys.experiments.assembly import freeze_suppressed, keep_replicated, open_data
from recsys.experiments.blend_selection import BlendChoice, blend_config, choose_blend, write_checkpoint
from recsys.experiments.level_fit import Level
from recsys.experiments.run_folder import CONFIG, METRICS, RunFolder, RunStatus
from recsys.experiments.run_lock import hold
from recsys.experiments.side_by_side import choose_jobs, train_all
from recsys.experiments.suitability import suitable_variants
from recsys.experiments.train import refit, select, train, try_out

log = logging.getLogger("recsys")

# Number of training events that a trial of a variant reads at most, unless one epoch has more.
MOST_TRIAL_EVENTS = 500_000
# Epochs of an automatic trial, and training events from which there is one: on less data all training is short, and a
# variant that learns slowly has learned nothing after so few steps.
TRIAL_EPOCHS, LEAST_TRIAL_EVENTS = 3, 100_000
# Number of validation users that choose the variants which are trained further.
TRIAL_USERS = 8_000
# File with the seconds that the variants took together.
SECONDS = "variants/seconds.json"


def train_best(variants: Mapping[str, DictConfig], path: Path, *, blend: bool = False) -> RunFolder:
    """Train the variants in `path/variants/NAME`, and finish the one that is best on validation as the run `path`.

    Variants that need what the data lacks are left out. A killed call continues where it was. Only the winner is
    evaluated on the test part.

    Args:
        variants: complete configurations by name, all of one data set and one `evaluation.metric`.
        path: folder of the run; its `config.yaml` will be the winner's.
        blend: whether the run may be a blend of several variants.

    Raises:
        UserError: If there is no variant, they are measured by different metrics or ask for divided tables, or the data
            suits none.
    """
    metrics = {config.evaluation.metric for config in variants.values()}
    if len(metrics) != 1:
        raise UserError(
            f"variants: found {len(metrics)} metrics {sorted(metrics)}, expected one evaluation.metric for all"
        )
    keep_replicated(variants, started=[name for name in variants if (path / "variants" / name / CONFIG).exists()])
    with hold(path):
        for config in variants.values():
            freeze_suppressed(config, path)
        return _train_best(variants, path, metric=metrics.pop(), blend=blend)


def _train_best(variants: Mapping[str, DictConfig], path: Path, *, metric: str, blend: bool) -> RunFolder:
    variants = suitable_variants(variants, path / "variants/left_out.json")
    # Training replaces `auto` by a number. A number that was given holds for blends too.
    fits_level = any(config.model.new_items_offset == "auto" for config in variants.values())
    config = next(iter(variants.values()))
    num_events = int(open_data(config).train_count.sum())
    jobs = choose_jobs(variants, num_events=num_events)
    with _counted(path):
        if (epochs := _trial_epochs(config, num_events=num_events)) and len(variants) > 2:
            variants = _better_ones(variants, path, metric=metric, epochs=epochs, fits_level=fits_level, jobs=jobs)
        runs = train_all(select, variants, path / "variants", what="training variant", jobs=jobs)
        scores = {name: run.metrics[metric] for name, run in runs.items()}
        best = max(scores, key=lambda name: scores[name])
        chosen = None
        if blend:
            chosen = _choose(variants, runs, metric=metric, file=path / "variants/blend.json", fits_level=fits_level)
        if chosen is not None and not chosen.is_one_run:
            best = _title(chosen)
            scores[best] = chosen.metrics[metric]
            runs = {name: runs[name] for name in chosen.weights}
        if distributed.is_first():
            _print(scores, metric=metric, best=best)
        if best not in runs:
            members = {name: variants[name] for name in runs}
            train_all(refit, members, path / "variants", what="refitting member", jobs=jobs)
    if chosen is None or best in runs:
        _adopt(
            runs[best],
            RunFolder(path, variants[best]),
            variant=best,
            variants=scores,
            seconds=_seconds(path, runs, jobs=jobs),
        )
        return train(variants[best], path)
    seconds = _seconds(path, runs, jobs=jobs)
    return train(_write_blend(members, runs, chosen=chosen, scores=scores, seconds=seconds, path=path), path)


def _trial_epochs(config: DictConfig, *, num_events: int) -> int:
    epochs = config.get("trial_epochs")
    if epochs == "auto":
        epochs = TRIAL_EPOCHS if num_events >= LEAST_TRIAL_EVENTS else None
    if epochs is None:
        return 0
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
        raise UserError(f"trial_epochs: found {epochs!r}, expected auto, null or a number from 1 on")
    return max(min(epochs, MOST_TRIAL_EVENTS // max(num_events, 1)), 1)


def _better_ones(
    variants: Mapping[str, DictConfig], path: Path, *, metric: str, epochs: int, fits_level: bool, jobs: int
) -> dict[str, DictConfig]:
    """Train the variants for some epochs, and return the two thirds whose training is worth its time.

    This is one round of successive halving (Jamieson and Talwalkar 2016). The members of the best blend come first,
    because two variants that err alike add little to each other, and then the best others: a variant that learns slowly
    may not add anything yet.
    """
    file = path / "variants/kept.json"
    if not file.exists():
        trial = functools.partial(try_out, epochs=epochs)
        runs = train_all(trial, variants, path / "variants", what="trying variant", jobs=jobs)
        chosen = choose_blend(variants, runs, metric=metric, fits_level=fits_level, most_users=TRIAL_USERS)
        kept = _two_thirds(chosen.weights, {name: run.metrics[metric] for name, run in runs.items()})
        if distributed.is_first():
            atomic_write(file, json.dumps(kept) + "\n")
    distributed.barrier()
    kept = json.loads(file.read_text())
    for name in variants:
        if name not in kept:
            log.info("variant %s is not trained further: after its trial others are better", name)
    return {name: config for name, config in variants.items() if name in kept}


def _two_thirds(weights: Mapping[str, float], scores: Mapping[str, float]) -> list[str]:
    order = sorted(scores, key=lambda name: (weights.get(name, 0.0), scores[name]), reverse=True)
    return order[: (2 * len(order) + 1) // 3]


def _choose(
    variants: Mapping[str, DictConfig],
    runs: Mapping[str, RunFolder],
    *,
    metric: str,
    file: Path,
    fits_level: bool,
) -> BlendChoice:
    """Choose the blend and store it in `file`, because this cannot be repeated after the members were refitted."""
    if not file.exists():
        # Every process ranks, because their counters are joined.
        chosen = choose_blend(variants, runs, metric=metric, fits_level=fits_level)
        if distributed.is_first():
            atomic_write(file, json.dumps(chosen._asdict(), indent=2) + "\n")
    distributed.barrier()
    return BlendChoice(**json.loads(file.read_text()))


def _title(chosen: BlendChoice) -> str:
    title = " + ".join(f"{weight:.2g} {member}" for member, weight in chosen.weights.items())
    if chosen.prior_shift["weight"]:
        title += " + {weight:g} prior^{power:g} of {half_life_days:g} days".format(**chosen.prior_shift)
    return title


def _write_blend(
    members: Mapping[str, DictConfig],
    runs: Mapping[str, RunFolder],
    *,
    chosen: BlendChoice,
    scores: Mapping[str, float],
    seconds: float,
    path: Path,
) -> DictConfig:
    """Make the run `path` of the members' weights, and return its configuration."""
    config = blend_config(
        members,
        chosen.weights,
        prior_shift=chosen.prior_shift,
        level=Level(chosen.new_items_scale, chosen.new_items_offset),
    )
    run = RunFolder(path, config)
    if not run.state.is_selected and distributed.is_first():
        run.claim()
        run.checkpoints.mkdir(exist_ok=True)
        for file in ("best.ckpt", "last.ckpt"):
            write_checkpoint(members, runs, path=run.checkpoints / file)
        run.write_metrics(chosen.metrics)
        states = [runs[member].state for member in members]
        # Written last, because it makes the rest of the folder valid.
        run.update(
            status=RunStatus.RUNNING,
            dataset_fingerprint=states[0].dataset_fingerprint,
            git_commit=states[0].git_commit,
            seconds=seconds,
            steps=sum(state.steps or 0 for state in states),
            selected=sum(state.selected or 0 for state in states),
            targets_per_second=min(state.targets_per_second or 0.0 for state in states),
            peak_memory_bytes=max(state.peak_memory_bytes or 0 for state in states),
            train_until=max((s.train_until for s in states if s.train_until is not None), default=None),
            refitted=config.refit,
            variant=_title(chosen),
            variants=dict(scores),
        )
    distributed.barrier()
    return config


@contextmanager
def _counted(path: Path) -> Iterator[None]:
    """Add the time of the block to that of the trainings of variants, which may overlap."""
    begin = time.monotonic()
    try:
        yield
    finally:
        if distributed.is_first():
            (path / SECONDS).parent.mkdir(exist_ok=True)
            atomic_write(path / SECONDS, json.dumps(round(_counted_before(path) + time.monotonic() - begin, 1)) + "\n")


def _counted_before(path: Path) -> float:
    return float(json.loads((path / SECONDS).read_text())) if (path / SECONDS).exists() else 0.0


def _seconds(path: Path, runs: Mapping[str, RunFolder], *, jobs: int) -> float:
    """Return the time of all starts. A killed start has not counted its own, but the runs know theirs."""
    return max(_counted_before(path), sum(run.state.seconds for run in runs.values()) / jobs)


def _adopt(run: RunFolder, target: RunFolder, **changes: Any) -> None:
    """Copy what `run` selected into the run `target`. `run.json` is written last, because it makes the folder valid."""
    if target.state.status is None and distributed.is_first():
        target.claim()
        target.checkpoints.mkdir(exist_ok=True)
        for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", METRICS):
            with atomic_file(target.path / name) as aside:
                shutil.copyfile(run.path / name, aside)
        dataclasses.replace(run.state, status=RunStatus.RUNNING, **changes).write(target.path)
    distributed.barrier()


def _print(scores: Mapping[str, float], *, metric: str, best: str) -> None:
    table = Table("variant", metric)
    for name, score in sorted(scores.items(), key=lambda pair: -pair[1]):
        table.add_row(f"[bold]{name}[/bold]" if name == best else name, f"{score:.4f}")
    Console().print(table)
