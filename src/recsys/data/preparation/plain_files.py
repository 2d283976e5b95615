"""Files whose column names mean nothing to an engine.

Engines ignore the case of names and have columns of their own, such as `file_row_number`. So a file is read in place
only if its names cannot be mistaken. Other names are replaced in a copy that Arrow writes, which takes names literally.
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from recsys.data.preparation.engines import Read
from recsys.data.sources.files import open_file
from recsys.data.sources.literal_columns import read_batches
from recsys.data.sources.tables import Shard

_PLAIN_ADDRESS = re.compile(r"[^*?\[\]{}\\%#\s]+")
# Names of columns that DuckDB and Spark add to those of a file.
_ENGINE_NAMES = {"file_row_number", "file_index", "filename", "rowid", "_metadata"}


def plain_files(
    shards: Sequence[Shard], reads: Mapping[str, Read], folder: Path
) -> tuple[list[str], Mapping[str, Read]]:
    """Return files that hold the rows of the shards, and the columns to read from them.

    Args:
        shards: files of a table.
        reads: new name -> column of the files and its conversion.
        folder: folder for copies, which must outlive the reading.
    """
    used = sorted({read.column for read in reads.values()})
    if all(_has_plain_names(shard) for shard in shards) and all(used):
        return [_plain_address(shard, folder) for shard in shards], reads
    names = {column: f"column_{number}" for number, column in enumerate(used)}
    files = [_copy(shard, names, folder) for shard in shards]
    return files, {new: read._replace(column=names[read.column]) for new, read in reads.items()}


def _has_plain_names(shard: Shard) -> bool:
    names = [name.casefold() for name in shard.names]
    return len({*names}) == len(names) and not {*names} & _ENGINE_NAMES and "\0" not in "".join(names)


def _plain_address(shard: Shard, folder: Path) -> str:
    """Return a local path, an address that engines read literally, or a copy of a file with another address."""
    if "://" not in shard.file or _PLAIN_ADDRESS.fullmatch(shard.file):
        return shard.file
    path = _new(folder)
    with open_file(shard.file) as opened, path.open("wb") as copy:
        shutil.copyfileobj(opened, copy)
    return str(path)


def _copy(shard: Shard, names: Mapping[str, str], folder: Path) -> str:
    """Write the columns `names` of a shard under their new names, in the order of the rows."""
    path, writer = _new(folder), None
    for batch in read_batches(shard.file, list(names), shown=shard.shown):
        renamed = batch.rename_columns(list(names.values()))
        writer = writer or pq.ParquetWriter(path, renamed.schema)
        writer.write_batch(renamed)
    if writer is not None:
        writer.close()
    return str(path)


def _new(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{uuid.uuid4().hex}.parquet"
