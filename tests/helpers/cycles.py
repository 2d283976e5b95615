"""A small world whose events arrive day by day, and cycles of `retrain.py` over it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.data.simulation.synthetic import WorldSettings, generate
from recsys.release.store import ReleaseStore

WORLD = WorldSettings(
    num_users=80, num_items=50, num_events=2000, num_categories=3, topics_per_category=2, days=20, vector_width=4
)
DAY = 86_400
# These gates need more events than this small world has; they have tests of their own.
SETTINGS = ["gates.absolute.min_ratio=0.5", "~gates.latency", "~gates.volume", "~gates.unseen", "~gates.nulls"]
TRAINING = [
    "logger=csv",
    "evaluation.baselines=false",
    "model.dim=8",
    "user_tower=mean",
    "optimizer.lr=0.01",
    "trainer.max_epochs=2",
    "batch_size=16",
    "+trainer.enable_progress_bar=false",
    "+data.features.items.title.ignore=true",
    "callbacks.last.every_n_train_steps=2",
    "callbacks.last.train_time_interval=null",
]


@dataclass(frozen=True)
class Scene:
    """Folders of one history of cycles, and the history whose events it reads."""

    base: Path
    name: str
    events_of: str

    @property
    def data(self) -> Path:
        return self.base / self.events_of / "data"

    @property
    def store(self) -> ReleaseStore:
        return ReleaseStore(self.base / self.name / "store")

    @property
    def folder(self) -> Path:
        return self.base / self.name / "retraining/two_tower"

    def copy(self, name: str, events_of: str | None = None) -> Scene:
        """Return another history with the same past, with its own events or those of another one."""
        scene = Scene(self.base, name, events_of or name)
        if events_of is None:
            shutil.copytree(self.data, scene.data)
        shutil.copytree(self.store.root, scene.store.root)
        shutil.copytree(self.folder, scene.folder)
        return scene

    def job(self, *overrides: str, **more: Any) -> dict[str, Any]:
        training = ",".join(f"'{word}'" for word in [f"data.cache={self.base / 'cache'}", *TRAINING])
        command = [
            "retrain.py",
            f"data.root={self.data}",
            f"store={self.store.root}",
            f"folder={self.folder.parent}",
            f"train=[{training}]",
            *SETTINGS,
            *overrides,
        ]
        return {"args": command, **more}

    def arrives(self, day: int) -> dict[str, list[str]]:
        """Return the job setting that adds the shard of a day before the job."""
        name = f"day-{day:03d}.parquet"
        return {"copy": [str(self.base / "later" / name), str(self.data / "interactions.parquet" / name)]}

    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "cycles.jsonl").read_text().splitlines()]

    def state(self) -> dict[str, Any]:
        return json.loads((self.folder / "state.json").read_text())  # type: ignore[no-any-return]


def begin(base: Path) -> Scene:
    """Return a history in which fifteen days have arrived, nothing is served and nothing was read."""
    generate(base / "world", WORLD)
    events = pq.read_table(base / "world/interactions.parquet").sort_by("timestamp")
    scene = Scene(base, "first", "first")
    (scene.data / "interactions.parquet").mkdir(parents=True)
    (base / "later").mkdir()
    for table in ("items", "users"):
        shutil.copyfile(base / f"world/{table}.parquet", scene.data / f"{table}.parquet")

    def write(begin: int, end: int, file: Path) -> None:
        bounds = (pa.scalar(WORLD.start_seconds + DAY * day) for day in (begin, end))
        low, high = (
            compare(events["timestamp"], at) for compare, at in zip((pc.greater_equal, pc.less), bounds, strict=True)
        )
        pq.write_table(events.filter(pc.and_(low, high)), file)

    write(0, 15, scene.data / "interactions.parquet/day-000.parquet")
    for day in range(15, 20):
        write(day, day + 1, base / f"later/day-{day:03d}.parquet")
    return scene
