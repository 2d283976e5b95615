"""Source, split and settings of the data that a configuration names. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, open_dict

from recsys.core.instantiate import instantiate, plain
from recsys.core.suppression import frozen_now, read_suppressed
from recsys.data.codes import Codes
from recsys.data.dataset import PreparedDataset
from recsys.data.preparation.engines import Engine
from recsys.data.preparation.job import PreparationJob
from recsys.data.preparation.prepare import plan_preparation, prepare
from recsys.data.preparation.settings import DataSettings
from recsys.data.preparation.splits import Split
from recsys.data.sources import Source


@dataclass(frozen=True)
class ConfiguredData:
    """Data of a configuration: arguments of `prepare` and `plan_preparation`."""

    source: Source
    split: Split
    settings: DataSettings
    cache: Path

    def plan(self) -> PreparationJob:
        """Return the preparation, as `plan_preparation` does."""
        return plan_preparation(self.source, self.split, settings=self.settings, cache=self.cache)

    def prepare(self, engine: Engine, codes: Codes | None = None) -> PreparedDataset:
        """Return the prepared data set, as `prepare` does."""
        return prepare(self.source, self.split, settings=self.settings, cache=self.cache, engine=engine, codes=codes)


def configured_data(config: DictConfig) -> ConfiguredData:
    """Return the data of a configuration.

    Raises:
        UserError: If a key or value is not valid.
    """
    data = config.data
    engaged = data.get("engaged")
    settings = DataSettings(
        time_resolution=data.time,
        time_unit=data.get("time_unit"),
        time_format=data.get("time_format"),
        columns=plain(data.columns),
        features=plain(data.features),
        engaged=plain(engaged) if isinstance(engaged, DictConfig) else engaged,
        weight=data.get("weight"),
        min_user_events=data.min_user_events,
        min_item_events=data.min_item_events,
        suppressed=read_suppressed(data.suppressed) if data.get("suppressed") else frozenset(),
    )
    return ConfiguredData(instantiate(data.source), instantiate(config.split), settings, Path(data.cache))


# Sources of a folder, which read another folder in the same way.
_FOLDERS = ("recsys.data.sources.ParquetFolder", "recsys.data.sources.TextFolder")


def with_root(config: DictConfig, root: str) -> DictConfig:
    """Return the configuration with another folder as its source. Tables that are missing there have no features.

    The folder has the format of the source if that is a folder, and else Parquet files. Users who are on the list of
    forgotten users now are left out.
    """
    changed = config.copy()
    with open_dict(changed):
        changed.data.suppressed = frozen_now(config.data.get("suppressed"))
    if changed.data.source["_target_"] in _FOLDERS:
        changed.data.source.root = root
    else:
        changed.data.source = {"_target_": _FOLDERS[0], "root": root}
    tables = instantiate(changed.data.source).tables(Path(config.data.cache) / "sources")
    for owner in ("items", "users"):
        if not tables.of(owner):
            changed.data.features[owner] = {}
    if not tables.items and changed.data.columns.get("born"):
        changed.data.columns.born = None
    return changed
