"""When and how a model is retrained: each policy with a store and a history of its own.

Every retraining is one cycle of `retrain.py`, in this process: what arrived, preparation, training, gates, release.
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
from recsys.experiments.compose import CONF
from recsys.operations.cycle.cycle import run_cycle
from recsys.operations.cycle.plan import PRODUCTION, CyclePlan
from recsys.operations.gates.staging import open_release
from recsys.operations.gates.verdict import VERDICT
from recsys.release.runtime.retriever import Retriever

# Small, and good enough to have something to lose. What is newest is measured on and not learned from, so it is little.
RECIPE = (
    "data=parquet",
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
    """Attributes:
    name: for people.
    every: days between two retrainings; None: never.
    warm: begins with the weights of the served release.
    gated: what the gates stop is not served.
    """

    name: str
    every: int | None
    warm: bool = True
    gated: bool = True

    def is_due(self, day: int, first: int) -> bool:
        """Whether it retrains at the end of a day, where its first release is of the end of day `first`."""
        return self.every is not None and day > first and (day - first) % self.every == 0

    @property
    def slug(self) -> str:
        """Name of its folder."""
        return self.name.replace(",", "").replace(" ", "_")


POLICIES = (
    Policy("never", None),
    Policy("weekly, cold", 7, warm=False),
    Policy("weekly, warm", 7),
    Policy("daily, warm", 1),
    Policy("daily, warm, no gates", 1, gated=False),
)
# Seconds for the cycle of a process that was killed a moment ago.
_WAIT = 60.0
FIRST = Policy("first", None, warm=False)


@dataclass(frozen=True)
class Retrained:
    """What became of a candidate.

    Attributes:
        day: at whose end it was made.
        outcome: as in the history of cycles.
        stopped_by: gates.
        why: in words, where it was not kept.
        seconds: of the cycle.
    """

    day: int
    outcome: str
    stopped_by: tuple[str, ...]
    why: str
    seconds: float


class Loop:
    """The model of one policy.

    Args:
        folder: of all policies.
        policy: when it retrains.
        days: that pass.
        recipe: overrides of every training.
    """

    def __init__(self, folder: Path, policy: Policy, days: Days, recipe: Iterable[str] = RECIPE) -> None:
        self.policy, self.folder, self._days, self._recipe = policy, folder / policy.slug, days, tuple(recipe)
        self._cache = folder / "cache"

    @property
    def served(self) -> Retriever:
        """The release that answers now."""
        return open_release(self.folder / "store", PRODUCTION)

    def begin_as(self, first: Loop) -> None:
        """Serve the first release of another loop, with its past."""
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
        """One cycle at the end of a day, or the rest of it; nothing where it is through already."""
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
                # A training that cannot be used is one of the ways to end, and what is served stays; others are not.
                if not any(told["files"] == day + 1 for told in self._history()):
                    raise

    def retrained(self) -> list[Retrained]:
        """Every candidate so far, but the first release."""
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
        # Other gates take theirs from this one.
        config.gates.volume.known_days = self._days.known(day)
        if not self.policy.gated:
            config.gates = {}
        length = WARM if self.policy.warm else COLD
        return CyclePlan(config, self.training(self._days.arrived, day, *length, *training), variants={})

    def training(self, root: Path, day: int, *more: str) -> DictConfig:
        """Configuration of a training on the folder `root` as it is at the end of a day."""
        config = _composed("train", (*self._recipe, "data.root=DIR", *more)).copy()
        config.data.root, config.data.cache, config.seed = str(root), str(self._cache), day
        return config


@functools.cache
def _composed(name: str, overrides: tuple[str, ...]) -> DictConfig:
    """Composing takes a second, so it is done once; whoever changes it takes a copy."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(name, overrides=[*overrides])
    OmegaConf.set_struct(config, False)
    return config
