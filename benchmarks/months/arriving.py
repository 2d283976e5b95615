"""Days of a simulated world as shards that arrive one by one, and incidents that change them on the way.

FOLDER/world/            simulated world
       happened/         real events: interactions.parquet/day-000.parquet ..., and the items that exist so far
       arrived/          exported events, changed by incidents; retraining reads them
       harmed/           shards that incidents changed
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from of_data import Harm
from scene import DAY, Tables

from recsys.data.simulation.synthetic import WorldSettings, generate

EVENTS = "interactions.parquet"


@dataclass(frozen=True)
class Incident:
    """A fault in the data or in the configuration.

    Attributes:
        name: name in tables.
        first: day at whose end it is first present.
        mended: day at whose end it is not present any more.
        harm: change of the exported events of the `days` days up to the first; exported again when it is fixed.
        days: number of changed days.
        training: overrides of trainings meanwhile, for a mistake in the configuration.
        happened: the harm changes the real events and cannot be fixed. From `mended` on, its days are known.
    """

    name: str
    first: int
    mended: int
    harm: Harm | None = None
    days: int = 1
    training: tuple[str, ...] = ()
    happened: bool = False

    def is_met(self, day: int) -> bool:
        """Return True if the incident is present at the end of the day."""
        return self.first <= day < self.mended

    def touches(self, shard: int) -> bool:
        """Return True if the incident changes the events of a day."""
        return self.harm is not None and self.first - self.days < shard <= self.first


class Days:
    """A simulated world, day by day.

    Args:
        folder: folder of all files.
        settings: settings of the world.
        incidents: faults on the way.
    """

    def __init__(self, folder: Path, settings: WorldSettings, incidents: Sequence[Incident]) -> None:
        self.settings, self.incidents = settings, tuple(incidents)
        self.happened, self.arrived, self._harmed = (folder / name for name in ("happened", "arrived", "harmed"))
        self._world = folder / "world"
        if not self._world.exists():
            generate(self._world, settings)

    @cached_property
    def _items(self) -> pa.Table:
        return pq.read_table(self._world / "items.parquet")

    @cached_property
    def _users(self) -> pa.Table:
        return pq.read_table(self._world / "users.parquet")

    @cached_property
    def _events(self) -> pa.Table:
        events = pq.read_table(self._world / EVENTS).sort_by("timestamp")
        for incident in self.incidents:
            if incident.happened:
                events = self._with_harm(incident, events)
        return events

    @cached_property
    def _bounds(self) -> npt.NDArray[np.int64]:
        """Position of the first event of each day, and the end of the last day."""
        borders = [self.second(day) for day in range(self.settings.days + 1)]
        return np.searchsorted(np.asarray(self._events["timestamp"]), borders)

    @property
    def num_events(self) -> int:
        """Number of real events."""
        return len(self._events)

    def second(self, day: int) -> int:
        """Return the second at which a day begins."""
        return self.settings.start_seconds + DAY * day

    def known(self, day: int) -> list[str]:
        """Return the dates of all incidents that are known at the end of a day, for `known_days` of the gates."""
        met = [incident for incident in self.incidents if incident.happened and incident.mended <= day]
        days = [self.second(incident.first - back) for incident in met for back in range(incident.days)]
        return [str(np.datetime64(second, "s").astype("datetime64[D]")) for second in days]

    def pass_by(self, day: int) -> None:
        """Write both folders as they are at the end of a day."""
        for root in (self.happened, self.arrived):
            (root / EVENTS).mkdir(parents=True, exist_ok=True)
            _write(self._items.filter(pc.less(self._items["born"], self.second(day + 1))), root / "items.parquet")
            _write(self._users, root / "users.parquet")
        for shard in range(day + 1):
            name = f"day-{shard:03}.parquet"
            sound = self.happened / EVENTS / name
            if not sound.exists():
                _write(self._shard(shard), sound)
            _link(self._exported(shard, day) or sound, self.arrived / EVENTS / name)

    def _exported(self, shard: int, day: int) -> Path | None:
        """Return the changed shard that arrives instead of the real one; None if there is none."""
        for number, incident in enumerate(self.incidents):
            if incident.is_met(day) and incident.touches(shard) and not incident.happened:
                folder = self._harmed / str(number)
                if not folder.exists():
                    self._write_harmed(incident, folder)
                return folder / f"day-{shard:03}.parquet"
        return None

    def _write_harmed(self, incident: Incident, folder: Path) -> None:
        first = incident.first - incident.days + 1
        events = pa.concat_tables([self._shard(shard) for shard in range(first, incident.first + 1)])
        harmed = self._with_harm(incident, events)
        aside = folder.with_suffix(".part")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        day_of = (np.asarray(harmed["timestamp"]) - self.settings.start_seconds) // DAY
        for shard in range(first, incident.first + 1):
            _write(harmed.filter(pa.array(day_of == shard)), aside / f"day-{shard:03}.parquet")
        aside.rename(folder)

    def _with_harm(self, incident: Incident, events: pa.Table) -> pa.Table:
        assert incident.harm is not None, "the incident changes a training, not the events"
        begin = self.second(incident.first - incident.days + 1)
        end = pc.less(events["timestamp"], self.second(incident.first + 1))
        tables = Tables(events.filter(end), self._items, self._users)
        return pa.concat_tables([incident.harm(tables, begin).interactions, events.filter(pc.invert(end))])

    def _shard(self, day: int) -> pa.Table:
        return self._events.slice(self._bounds[day], self._bounds[day + 1] - self._bounds[day])


def _write(table: pa.Table, path: Path) -> None:
    """Write a table atomically."""
    aside = path.with_suffix(".part")
    pq.write_table(table, aside)
    os.replace(aside, path)


def _link(target: Path, path: Path) -> None:
    aside = path.with_suffix(".part")
    aside.unlink(missing_ok=True)
    os.link(target, aside)
    # If both names are the same file already, os.replace does nothing and the name aside stays.
    os.replace(aside, path)
    aside.unlink(missing_ok=True)
