"""Sources: where the tables come from. Each gives Parquet files; what is not Parquet is converted into the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from recsys.data.sources.files import ListedFiles, ParquetFolder, Tables
from recsys.data.sources.movielens import MovieLens
from recsys.data.sources.text import HubDataset, TextFolder


class Source(Protocol):
    """Where the tables come from."""

    def tables(self, cache: Path) -> Tables:
        """The tables as Parquet files, made under the folder `cache` where they are not Parquet already."""


__all__ = ["HubDataset", "ListedFiles", "MovieLens", "ParquetFolder", "Source", "Tables", "TextFolder"]
