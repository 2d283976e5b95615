"""What has arrived in a folder of Parquet shards since a cycle read it last. Reads footers and digests only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.core.errors import UserError
from recsys.core.schema import OWNERS
from recsys.data.sources.files import Tables, digest, find_tables


@dataclass(frozen=True)
class Shard:
    """A file as it was when it was looked at.

    Attributes:
        path: or its address.
        digest: of its content.
        bytes, rows: its size.
    """

    path: str
    digest: str
    bytes: int
    rows: int


@dataclass(frozen=True)
class Listing:
    """Everything in a folder at one moment: what a cycle reads, whatever is appended meanwhile.

    Attributes:
        interactions, items, users: shards of each table, in order.
    """

    interactions: tuple[Shard, ...] = ()
    items: tuple[Shard, ...] = ()
    users: tuple[Shard, ...] = ()

    @classmethod
    def of(cls, tables: Tables) -> Listing:
        """The files of the tables as they are now.

        Raises:
            UserError: one cannot be read.
        """
        return cls(*(tuple(_look(file) for file in tables.of(owner)) for owner in OWNERS))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Listing:
        """The inverse of `to_json`."""
        return cls(**{owner: tuple(Shard(**shard) for shard in shards) for owner, shards in content.items()})

    def to_json(self) -> dict[str, Any]:
        """Plain containers."""
        return asdict(self)

    @property
    def paths(self) -> dict[str, list[str]]:
        """Files of each table."""
        return {owner: [shard.path for shard in getattr(self, owner)] for owner in OWNERS}

    def changed(self) -> list[str]:
        """Files that are not any more what they were."""
        shards = [shard for owner in OWNERS for shard in getattr(self, owner)]
        return [shard.path for shard in shards if not _is_still(shard)]


@dataclass(frozen=True)
class Arrivals:
    """What is there and was not read.

    Attributes:
        files: new ones, and those with other content than was read.
        rewritten: of these, the ones that were read with other content.
        gone: files that were read and are not there any more.
        rows: new events: of new files, and what rewritten ones have in addition.
    """

    files: tuple[str, ...]
    rewritten: tuple[str, ...]
    gone: tuple[str, ...]
    rows: int

    @property
    def are_there(self) -> bool:
        """Whether there is anything to learn from."""
        return self.rows > 0 or bool(self.rewritten)

    def __str__(self) -> str:
        told = f"{self.rows:,} new events in {len(self.files)} files"
        told += f"; rewritten since they were read: {_few(self.rewritten)}" if self.rewritten else ""
        return told + (f"; gone since they were read: {_few(self.gone)}" if self.gone else "")


def list_folder(root: str) -> Listing:
    """What a folder of Parquet files holds now.

    Raises:
        UserError: there is no such folder, or a file cannot be read.
    """
    return Listing.of(find_tables(root, ".parquet"))


def compare(now: Sequence[Shard], read: Sequence[Shard]) -> Arrivals:
    """What is new among the shards, by content: a file that was only given another name is not."""
    known, before = Counter(shard.digest for shard in read), {shard.path: shard for shard in read}
    new: list[Shard] = []
    for shard in now:
        if known[shard.digest]:
            known[shard.digest] -= 1
        else:
            new.append(shard)
    rewritten = [shard for shard in new if shard.path in before]
    there = {shard.path for shard in now}
    # What disappeared under its name and content both.
    gone = [shard.path for shard in read if shard.path not in there and known[shard.digest] > 0]
    rows = sum(shard.rows for shard in new) - sum(before[shard.path].rows for shard in rewritten)
    return Arrivals(
        tuple(shard.path for shard in new), tuple(shard.path for shard in rewritten), tuple(gone), max(rows, 0)
    )


def _look(file: str) -> Shard:
    try:
        filesystem, path = fsspec.core.url_to_fs(file)
        with filesystem.open(path, "rb") as opened:
            rows = pq.ParquetFile(opened).metadata.num_rows
        return Shard(file, digest(file), int(filesystem.size(path)), int(rows))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: not a readable Parquet file ({error}); expected a finished shard") from error


def _is_still(shard: Shard) -> bool:
    try:
        return digest(shard.path) == shard.digest
    except (UserError, OSError):
        return False


def _few(files: Sequence[str]) -> str:
    return ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
