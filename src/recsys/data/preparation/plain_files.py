"""Files whose column names mean nothing to an engine.

Engines ignore the case of names and have columns of their own, such as `file_row_number`. So a file is read in place
only if its names cannot be mistaken. Other names are replaced in a copy that Arrow writes, which takes names literally.
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.core.errors import UserError
from recsys.data.preparation.engines import BATCH_ROWS, Read
from recsys.data.sources.files import open_file
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
    path = _new(folder)
    # Arrow takes a name with a point as the path of a nested column, too, and knows no two columns of one name.
    is_clear = max(Counter(shard.names).values()) == 1 and not any("." in name for name in shard.names)
    try:
        with open_file(shard.file) as opened:
            parquet = pq.ParquetFile(opened)
            schema = pa.schema([parquet.schema_arrow.field(_place(parquet.schema_arrow, n)) for n in names])
            schema = pa.schema([field.with_name(names[field.name]) for field in schema])
            with pq.ParquetWriter(path, schema) as writer:
                for batch in parquet.iter_batches(BATCH_ROWS, columns=list(names) if is_clear else None):
                    columns = [batch.column(_place(batch.schema, name)) for name in names]
                    writer.write_batch(pa.record_batch(columns, schema=schema))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{shard.shown}: cannot be read ({error})") from error
    return str(path)


def _place(schema: pa.Schema, name: str) -> int:
    return int(schema.names.index(name))


def _new(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{uuid.uuid4().hex}.parquet"
