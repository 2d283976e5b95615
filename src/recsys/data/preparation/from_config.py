"""The data that a configuration names: its source, its split, and how to read it. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from recsys.core.instantiate import instantiate, plain
from recsys.data.preparation.prepare import DataSettings
from recsys.data.preparation.splits import Split
from recsys.data.sources import ParquetFolder, Source


class ConfiguredData(NamedTuple):
    """What `recsys.data.preparation.prepare` takes."""

    source: Source
    split: Split
    settings: DataSettings
    cache: Path


def configured_data(config: DictConfig) -> ConfiguredData:
    """The data of a configuration.

    Raises:
        UserError: a key or value that cannot be.
    """
    data = config.data
    settings = DataSettings(
        time_resolution=data.time,
        columns=plain(data.columns),
        features=plain(data.features),
        engaged=data.get("engaged"),
        min_user_events=data.min_user_events,
        min_item_events=data.min_item_events,
    )
    return ConfiguredData(instantiate(data.source), instantiate(config.split), settings, Path(data.cache))


def at_root(config: DictConfig, root: str) -> DictConfig:
    """The configuration with another folder as its source; tables that are not there have no features."""
    tables = ParquetFolder(root).tables(Path(config.data.cache) / "sources")
    changed = config.copy()
    changed.data.source = {"_target_": "recsys.data.sources.ParquetFolder", "root": root}
    for owner in ("items", "users"):
        if not tables.of(owner):
            changed.data.features[owner] = {}
    return changed
