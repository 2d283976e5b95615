"""Retraining policies, each with its own store and history.

Every retraining is one cycle of `recsys retrain` in this process.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arriving import Days
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from recsys.core.errors import UserError
from recsys.experiments.conf_files import CONF
from recsys.operations.cycle.cycle import run_cycle
from recsys.operations.cycle.plan import PRODUCTION, CyclePlan
from recsys.operations.gates.staging import open_release
from recsys.operations.gates.verdict import VERDICT
from recsys.release.runtime.retriever import Retriever

# A small model with an accuracy that a fault can reduce. Training does not see the test part, so that is small.
RECIPE = (
    "data=parquet",
    "evaluation.baselines=false",
    "+data.features.interactions.action.role=event",
    "+data.features.items.title.ignore=true",
    "+data.features.items.born.kind=numeric",
    "split.train=0.965",
    "split.val=0.01",
    "user_tower=mean",
    "model.dim=32",
    "history.half_life_days=14",
    "batch_size=64",
    "negatives.max_targets=256",
    "optimizer.lr=0.005",
    "optimizer.warmup_steps=20",
    "callbacks=ema",
    "callbacks.ema.decay=0.99",
    "evaluation.metric=val/recall@100",
    "logger=csv",
    "+trainer.enable_progress_bar=false",
)
COLD = ("trainer.max_epochs=8", "callbacks.early_stopping.patience=2")
WARM = ("trainer.max_epochs=1",)


@dataclass(frozen=True)
class Policy:
    """A retraining policy.

    Attributes:
        name: name in tables.
        every: days between two retrainings; None: never.
        warm: training starts from the weights of the served release.
        gated: candidates that the gates stop are not served.
        training: further overrides of its trainings.
    """

    name: str
    every: int | None
    warm: bool = True
    gated: bool = True
    training: tuple[str, ...] = ()

    def is_due(self, day: int, first: int) -> bool:
        """Return True if the policy retrains at the end of a day, with a first release of the end of day `first`."""
        return self.every is not None and day > first and (day - first) % self.every == 0

    @property
    def slug(self) -> str:
        """Name of the policy's folder."""
        return self.name.replace(",", "").replace(" ", "_")


POLICIES = (
    Policy("never", None),
    Policy("weekly, cold", 7, warm=False),
    Policy("weekly, warm", 7),
    Policy("daily, warm", 1),
    Policy("daily, warm, no gates", 1, gated=False),
)
# Seconds to wait for the lock of a process that was just killed.
_WAIT = 60.0
FIRST = Policy("first", None, warm=False)


@dataclass(frozen=True)
class Retrained:
    """Result of one retraining.

    Attributes:
        day: day at whose end it ran.
        outcome: outcome of the cycle.
        stopped_by: gates that failed.
        why: reason, if the candidate was not kept.
        seconds: duration of the cycle.
    """

    day: int
    outcome: str
    stopped_by: tuple[str, ...]
    why: str
    seconds: float


class Loop:
    """Store and retraining cycles of one policy.

    Args:
        folder: folder of all policies.
        policy: policy.
        days: days of the world.
        recipe: overrides of every training.
    """

    def __init__(self, folder: Path, policy: Policy, *, days: Days, recipe: Iterable[str] = RECIPE) -> None:
        self.policy, self.folder, self._days, self._recipe = policy, folder / policy.slug, days, tuple(recipe)
        self._cache = folder / "cache"

    @property
    def served(self) -> Retriever:
        """Release that is served now."""
        return open_release(self.folder / "store", PRODUCTION)

    def begin_as(self, first: Loop) -> None:
        """Start with the release and the history of another loop."""
        if self.folder.exists():
            return
        aside = self.folder.with_suffix(".part")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(first.folder / "store", aside / "store")
        for name in ("state.json", "cycles.jsonl"):
            (aside / "retraining/two_tower").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(first.folder / "retraining/two_tower" / name, aside / "retraining/two_tower" / name)
        aside.rename(self.folder)

    def retrain(self, day: int) -> None:
        """Run the cycle at the end of a day, or the rest of it, unless it is finished."""
        if any(told["files"] == day + 1 for told in self._history()):
            return
        met = [incident for incident in self._days.incidents if incident.is_met(day)]
        training = [word for incident in met for word in incident.training]
        plan = self._plan(training, day)
        with self.folder.with_suffix(".log").open("a") as log:
            console = Console(file=log, width=160)
            try:
                run_cycle(plan, wait=_WAIT, console=console)
            except UserError:
                # A cycle may fail because its training is unusable; the served release stays. Other errors are raised.
                if not any(told["files"] == day + 1 for told in self._history()):
                    raise

    def retrained(self) -> list[Retrained]:
        """Return the result of every retraining after the first release."""
        return [self._told(cycle) for cycle in self._history() if cycle["served"] is not None or cycle["number"] > 1]

    def _told(self, cycle: dict[str, Any]) -> Retrained:
        verdict = self.folder / f"retraining/two_tower/cycles/{cycle['number']}/run/{VERDICT}"
        by = json.loads(verdict.read_text())["stopped_by"] if verdict.exists() else ()
        kept = cycle["outcome"] == "kept"
        # One shard is one day.
        return Retrained(
            cycle["files"] - 1,
            cycle["outcome"],
            tuple(by),
            "" if kept else cycle["why"],
            sum(cycle["seconds"].values()),
        )

    def _history(self) -> list[dict[str, Any]]:
        file = self.folder / "retraining/two_tower/cycles.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [told for told in map(json.loads, lines) if told["outcome"] != "abandoned"]

    def _plan(self, training: Iterable[str], day: int) -> CyclePlan:
        config = _composed("retrain", ("data.root=DIR",)).copy()
        config.data.root = str(self._days.arrived)
        config.store, config.folder = str(self.folder / "store"), str(self.folder / "retraining")
        config.warm_start, config.now = self.policy.warm, self._days.second(day + 1)
        # Other gates read the known days of this one.
        config.gates.volume.known_days = self._days.known(day)
        if not self.policy.gated:
            config.gates = {}
        length = WARM if self.policy.warm else COLD
        return CyclePlan(
            config, self.training(self._days.arrived, day, *length, *self.policy.training, *training), variants={}
        )

    def training(self, root: Path, day: int, *more: str) -> DictConfig:
        """Return the configuration of a training on a data folder as it is at the end of a day."""
        config = _composed("train", (*self._recipe, "data.root=DIR", *more)).copy()
        config.data.root, config.data.cache, config.seed = str(root), str(self._cache), day
        return config


@functools.cache
def _composed(name: str, overrides: tuple[str, ...]) -> DictConfig:
    """Compose a configuration once, because it takes a second. Callers must copy it before they change it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(name, overrides=[*overrides])
    OmegaConf.set_struct(config, False)
    return config
