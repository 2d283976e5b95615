"""A small simulated world in which a model is retrained on later days, and the gates judge the candidates."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from recsys.data.preparation.from_config import with_root
from recsys.data.simulation.synthetic import WorldSettings, generate
from recsys.experiments.assembly import instantiate, open_data
from recsys.experiments.conf_files import CONF
from recsys.experiments.train import train
from recsys.experiments.trained_run import TrainedRun, load_run
from recsys.operations.gates.judge import JudgeSettings, judge_run
from recsys.operations.gates.staging import open_release
from recsys.operations.gates.verdict import Verdict
from recsys.publishing.promote import promote
from recsys.release.runtime.retriever import Retriever
from recsys.release.store import ReleaseStore

DAY = 86_400
# Trains in seconds, and reaches an accuracy that a harm can reduce.
RECIPE = (
    "data=parquet",
    "evaluation.baselines=false",
    "+data.features.interactions.action.role=event",
    "+data.features.interactions.surface.role=request",
    "+data.features.items.title.ignore=true",
    "+data.features.items.born.kind=numeric",
    "user_tower=mean",
    "model.dim=32",
    "optimizer.lr=0.005",
    "trainer.max_epochs=6",
    "+trainer.enable_progress_bar=false",
    "evaluation.metric=val/recall@100",
    "logger=csv",
)


@dataclass(frozen=True)
class Tables:
    """Tables of a data folder, in memory."""

    interactions: pa.Table
    items: pa.Table
    users: pa.Table

    def write(self, root: Path) -> Path:
        """Write the tables as Parquet files into a folder, and return it."""
        root.mkdir(parents=True, exist_ok=True)
        for field in dataclasses.fields(self):
            pq.write_table(getattr(self, field.name), root / f"{field.name}.parquet")
        return root

    def with_events(self, interactions: pa.Table) -> Tables:
        """Return the same tables with other events."""
        return dataclasses.replace(self, interactions=interactions)


class Scene:
    """A simulated world, its served release, and candidates of later days.

    Args:
        folder: folder of all files.
        served_day: number of days that the served release was trained on.
        settings: settings of the world.
        recipe: overrides of every training.
    """

    def __init__(
        self, folder: Path, served_day: int, settings: WorldSettings, recipe: tuple[str, ...] = RECIPE
    ) -> None:
        self.folder, self.served_day, self.recipe = folder, served_day, recipe
        world = folder / "world"
        if not world.exists():
            generate(world, settings)
        self.start = datetime.fromisoformat(settings.start).replace(tzinfo=UTC)
        self._world = Tables(*(pq.read_table(world / f"{f.name}.parquet") for f in dataclasses.fields(Tables)))
        self.store = ReleaseStore(folder / "releases")

    def second(self, day: int) -> int:
        """Return the second at which a day begins."""
        return int((self.start + timedelta(days=day)).timestamp())

    def until(self, day: int) -> Tables:
        """Return the tables with the events of the first `day` days."""
        events = self._world.interactions
        known = events.filter(pc.less(events["timestamp"], self.second(day)))
        return self._world.with_events(known)

    def config(self, root: Path, *overrides: str, seed: int = 0) -> DictConfig:
        """Return the configuration of a training on a data folder."""
        given = [*self.recipe, f"data.root={root}", f"data.cache={self.folder / 'cache'}", f"seed={seed}", *overrides]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("train", overrides=given)

    def run(self, name: str, tables: Tables | None = None, day: int = 0, seed: int = 0, *overrides: str) -> TrainedRun:
        """Return a finished run below `runs/`, and train it first if it does not exist."""
        path = self.folder / "runs" / name
        if not (path / "metrics.json").exists() or "test/recall@10" not in (path / "metrics.json").read_text():
            if tables is None:
                root = self.folder / f"data/day{day}"
                if not root.exists():
                    self.until(day).write(root)
            else:
                root = tables.write(self.folder / "data" / name)
            train(self.config(root, *overrides, seed=seed), path)
        return load_run(path)

    @property
    def served(self) -> Retriever:
        """Served release; it is trained and published if there is none."""
        if "production" not in self.store.aliases():
            run = self.run(f"day{self.served_day}", day=self.served_day)
            version = promote(run, instantiate(_gates().index), store=self.store, model="two_tower").version
            self.store.set_alias("production", version, why="first")
        return open_release(self.store.root, "production")

    def judge(self, run: TrainedRun, candidate: Retriever | None = None, *, root: Path | None = None) -> Verdict:
        """Return the verdict of the default gates on a run, or on a release that takes the place of its own."""
        dataset = run.dataset if root is None else open_data(with_root(run.config, str(root)))
        settings = JudgeSettings.from_config(_gates())
        return judge_run(run, self.served, settings=settings, dataset=dataset, candidate=candidate)


def _gates() -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("gates", overrides=["run=RUN", "against=RELEASE"])
