"""Sources of tables. Each provides Parquet files; other formats are converted into the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from recsys.data.sources.delimited import TextFormat
from recsys.data.sources.files import ParquetFiles, ParquetFolder, Tables
from recsys.data.sources.hub import HubDataset
from recsys.data.sources.movielens import MovieLens
from recsys.data.sources.text import TextFolder


class Source(Protocol):
    """Origin of the tables of a data set."""

    def tables(self, cache: Path) -> Tables:
        """Return the tables as Parquet files. Other formats are converted into the folder `cache`."""


__all__ = ["HubDataset", "MovieLens", "ParquetFiles", "ParquetFolder", "Source", "Tables", "TextFolder", "TextFormat"]
