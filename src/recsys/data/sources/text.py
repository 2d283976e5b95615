"""Sources that Hugging Face `datasets` reads: CSV, JSON Lines and the Hub. They are converted to Parquet once."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.core.errors import UserError
from recsys.core.schema import OWNERS
from recsys.data.sources.files import Tables, build_once, digest, find_tables, fingerprint, local_copy

Format = Literal["csv", "jsonl"]

# Increase this number if the conversion gives other values: it is part of the names in the cache.
_VERSION = 1
# Codes such as 007 stay strings, because ids must not change.
_PLAIN_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
_NUMBER = r"^-?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_PART_OF_SPLIT = {"validation": "val", "valid": "val", "dev": "val"}


@dataclass(frozen=True)
class TextFolder:
    """Source: a folder with `interactions.csv` or `.jsonl`, a file or a folder of shards; optionally items and users.

    Attributes:
        root: path, or address that fsspec reads.
        format: csv (with a header) or jsonl.
        timestamp: column of times. Strings in it are read as dates.
    """

    root: str
    format: Format
    timestamp: str = "timestamp"

    def __post_init__(self) -> None:
        if self.format not in get_args(Format):
            raise UserError(f"format={self.format}: expected {' or '.join(get_args(Format))}")

    def tables(self, cache: Path) -> Tables:
        """Return the files as Parquet.

        Raises:
            UserError: If a file cannot be read.
        """
        found = find_tables(self.root, f".{self.format}")
        digests = [[digest(file) for file in found.of(owner)] for owner in OWNERS]
        folder = cache / f"{self.format}-{fingerprint([_VERSION, self.timestamp, digests])}"

        def build(aside: Path) -> None:
            for owner in OWNERS:
                if files := found.of(owner):
                    table = self._read(files, aside / "scratch")
                    _write(table, aside / f"{owner}.parquet", timestamp=self.timestamp, origin=files[0])
            shutil.rmtree(aside / "scratch")

        build_once(folder, build)
        return find_tables(str(folder), ".parquet")

    def _read(self, files: Sequence[str], scratch: Path) -> pa.Table:
        import datasets

        copies = [local_copy(file, scratch / "copies") for file in files]
        for file, copy in zip(files, copies, strict=True):
            if not copy.stat().st_size:
                raise UserError(f"{file}: no rows")
        try:
            return self._load(copies, scratch)
        except datasets.exceptions.DatasetGenerationError as error:
            # `datasets` does not name the file that failed, so each is read alone.
            for file, copy in zip(files, copies, strict=True):
                try:
                    self._load([copy], scratch)
                except datasets.exceptions.DatasetGenerationError as inner:
                    why = inner.__cause__ or inner
                    raise UserError(f"{file}: not readable as {self.format} ({why})") from inner
            why = error.__cause__ or error
            raise UserError(f"{files[0]}: columns or types differ between shards ({why})") from error

    def _load(self, files: Sequence[Path], scratch: Path) -> pa.Table:
        import datasets

        names = [str(file) for file in files]
        cache = str(scratch / "datasets")
        if self.format == "jsonl":
            loaded = datasets.load_dataset("json", data_files=names, split="train", cache_dir=cache)
            return loaded.data.table
        # All columns are read as strings and typed as a whole: a type guessed from the first rows can fail later.
        with files[0].open(encoding="utf-8-sig", newline="", errors="replace") as opened:
            header = next(csv.reader(opened), [])
        features = datasets.Features({name: datasets.Value("string") for name in header})
        loaded = datasets.load_dataset("csv", data_files=names, split="train", cache_dir=cache, features=features)
        table = loaded.data.table
        return pa.table({name: _typed(table[name]) for name in table.column_names})


@dataclass(frozen=True)
class HubDataset:
    """Source: a data set of the Hugging Face Hub, or a local folder that `datasets.load_dataset` reads.

    Attributes:
        name: `owner/name` on the Hub, or a local folder.
        interactions: SPLIT or CONFIG/SPLIT. Several splits joined with + are kept apart by a new column `split`.
        items: SPLIT or CONFIG/SPLIT of the items table, or null for none.
        users: the same for users.
        revision: branch, tag or commit on the Hub.
        timestamp: column of times. Strings in it are read as dates.
    """

    name: str
    interactions: str = "train"
    items: str | None = None
    users: str | None = None
    revision: str | None = None
    timestamp: str = "timestamp"

    def tables(self, cache: Path) -> Tables:
        """Return the data set as Parquet. It is downloaded once.

        Raises:
            UserError: If the data set cannot be found or reached.
        """
        addresses = {"interactions": self.interactions, "items": self.items, "users": self.users}
        loaded = {owner: self._load(address, cache / "hub") for owner, address in addresses.items() if address}
        digests = [
            (owner, part, [digest(file["filename"]) for file in dataset.cache_files])
            for owner, parts in loaded.items()
            for part, dataset in parts.items()
        ]
        folder = cache / f"hub-{fingerprint([_VERSION, self.timestamp, digests])}"

        def build(aside: Path) -> None:
            for owner, parts in loaded.items():
                tables = [dataset.data.table for dataset in parts.values()]
                if len(parts) > 1:
                    tables = [
                        table.append_column("split", pa.array([part], pa.string()).take(pa.array([0] * len(table))))
                        for part, table in zip(parts, tables, strict=True)
                    ]
                file = aside / f"{owner}.parquet"
                _write(pa.concat_tables(tables), file, timestamp=self.timestamp, origin=self.name)

        build_once(folder, build)
        return find_tables(str(folder), ".parquet")

    def _load(self, address: str, cache: Path) -> dict[str, Any]:
        """Return the data sets by part (train, val, test) or, of other splits, by the name of the split."""
        import datasets

        config, _, splits = address.rpartition("/")
        try:
            return {
                _PART_OF_SPLIT.get(split, split): datasets.load_dataset(
                    self.name, config or None, split=split, revision=self.revision, cache_dir=str(cache)
                )
                for split in splits.split("+")
            }
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise UserError(
                f"{self.name}: '{address}' cannot be loaded ({error}); expected a reachable data set of the Hub, "
                f"or a local folder"
            ) from error


def _typed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of strings as integers or floats if every value is one."""
    if column.null_count == len(column):
        return column
    if pc.all(pc.match_substring_regex(column, _PLAIN_INTEGER)).as_py():
        return column.cast(pa.int64())
    # Integers of many digits are codes unless some value has a point or an exponent, which makes them measurements.
    if (
        pc.all(pc.match_substring_regex(column, _NUMBER)).as_py()
        and pc.any(pc.match_substring_regex(column, r"[.eE]")).as_py()
    ):
        return column.cast(pa.float64())
    return column


def _write(table: pa.Table, file: Path, *, timestamp: str, origin: str) -> None:
    if timestamp in table.column_names:
        column = table[timestamp]
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            try:
                moments = column.cast(pa.string()).cast(pa.timestamp("us", "UTC" if _has_zone(column) else None))
            except pa.ArrowInvalid as error:
                raise UserError(
                    f"{origin}: column '{timestamp}' cannot be read as times ({error}); expected integer seconds, or "
                    f"dates such as 2024-05-31 or 2024-05-31T12:00:00"
                ) from error
            table = table.set_column(table.column_names.index(timestamp), timestamp, moments)
    pq.write_table(table.replace_schema_metadata(None), file, row_group_size=1 << 20)


def _has_zone(column: pa.ChunkedArray) -> bool:
    return bool(pc.any(pc.match_substring_regex(column, r"[0-9](Z|[+-][0-9]{2}:?[0-9]{2})$")).as_py())


# The log has one line for a conversion, so progress bars are switched off.
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
