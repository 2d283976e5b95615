"""Files of a data folder, and new files since a cycle last read it. Reads only Parquet footers and digests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.core.errors import UserError
from recsys.core.schema import OWNERS
from recsys.data.sources.files import Tables, digest, find_tables


@dataclass(frozen=True)
class DataFile:
    """One file of a table, at the moment when it was listed, with the digest of its content and its size in bytes."""

    path: str
    digest: str
    bytes: int
    rows: int


@dataclass(frozen=True)
class FolderListing:
    """Files of a data folder at one moment. A cycle reads only these files; later files are for the next cycle."""

    interactions: tuple[DataFile, ...] = ()
    items: tuple[DataFile, ...] = ()
    users: tuple[DataFile, ...] = ()

    @classmethod
    def of(cls, tables: Tables) -> FolderListing:
        """List the files of the tables.

        Raises:
            UserError: If a file cannot be read.
        """
        return cls(*(tuple(_describe(file) for file in tables.of(owner)) for owner in OWNERS))

    @property
    def paths(self) -> dict[str, list[str]]:
        """Paths of each table."""
        return {owner: [file.path for file in getattr(self, owner)] for owner in OWNERS}

    def changed(self) -> list[str]:
        """Return the paths whose content is different now, or that are missing."""
        files = [file for owner in OWNERS for file in getattr(self, owner)]
        return [file.path for file in files if not _is_unchanged(file)]


@dataclass(frozen=True)
class Arrivals:
    """Differences between a folder and the files that were read before.

    Attributes:
        files: new files, and files with other content than was read.
        rewritten: those among them that were read with other content.
        missing: files that were read and do not exist any more.
        rows: number of new events: rows of new files, and rows that rewritten files gained.
    """

    files: tuple[str, ...]
    rewritten: tuple[str, ...]
    missing: tuple[str, ...]
    rows: int

    @property
    def has_events(self) -> bool:
        """True if there is anything to learn from."""
        return self.rows > 0 or bool(self.rewritten)

    def __str__(self) -> str:
        text = f"{self.rows:,} new events in {len(self.files)} files"
        text += f"; rewritten since they were read: {_first_three(self.rewritten)}" if self.rewritten else ""
        return text + (f"; missing since they were read: {_first_three(self.missing)}" if self.missing else "")


def list_folder(root: str) -> FolderListing:
    """List the Parquet files of a data folder.

    Raises:
        UserError: If there is no such folder, or a file cannot be read.
    """
    return FolderListing.of(find_tables(root, [".parquet"]))


def find_arrivals(now: Sequence[DataFile], read: Sequence[DataFile]) -> Arrivals:
    """Compare the files in the folder with those that were read, by content, so that a renamed file is not new."""
    known, before = Counter(file.digest for file in read), {file.path: file for file in read}
    new: list[DataFile] = []
    for file in now:
        if known[file.digest]:
            known[file.digest] -= 1
        else:
            new.append(file)
    rewritten = [file for file in new if file.path in before]
    present = {file.path for file in now}
    # A renamed file is not missing: its content is present under another path.
    missing = [file.path for file in read if file.path not in present and known[file.digest] > 0]
    rows = sum(file.rows for file in new) - sum(before[file.path].rows for file in rewritten)
    return Arrivals(
        tuple(file.path for file in new), tuple(file.path for file in rewritten), tuple(missing), max(rows, 0)
    )


def _describe(file: str) -> DataFile:
    try:
        filesystem, path = fsspec.core.url_to_fs(file)
        with filesystem.open(path, "rb") as opened:
            rows = pq.ParquetFile(opened).metadata.num_rows
        return DataFile(file, digest(file), int(filesystem.size(path)), int(rows))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: not a readable Parquet file ({error}); expected a finished shard") from error


def _is_unchanged(file: DataFile) -> bool:
    try:
        return digest(file.path) == file.digest
    except (UserError, OSError):
        return False


def _first_three(files: Sequence[str]) -> str:
    return ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
