"""Bounds of the files of a release, checked before their content is read: what they become must fit what they are.

A few megabytes can ask for gigabytes of memory: by compression, by a dictionary with one long text for many rows, or by
a header. Imports no torch.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.core.errors import UserError

# Sizes that are always accepted, and how much larger than a file its content may be beyond them.
_MEGABYTE = 1 << 20
_TABLE, _TABLE_RATIO = 64 * _MEGABYTE, 16
_TEXT, _TEXT_RATIO = 256 * _MEGABYTE, 64
_ARCHIVE, _MEMBERS = 256 * _MEGABYTE, 256


@contextmanager
def damaged(place: Path) -> Iterator[None]:
    """Turn any error of the block into a `UserError`: a file that was not made by this package can cause every kind."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{place}: damaged ({type(error).__name__}{': ' if reason else ''}{reason})") from error


def array_header(file: IO[bytes], size: int, place: object) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, order (True for Fortran's) and type of a `.npy` file of `size` bytes.

    Refuse a header that asks for more or less than the file holds.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise UserError(f"{place}: found version {version} of the format, expected 1.0 or 2.0")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(file)
    if dtype.hasobject or any(not 0 <= length < 2**48 for length in shape):
        raise UserError(f"{place}: found {dtype} {list(shape)}, expected numbers")
    if (expected := file.tell() + math.prod(shape) * dtype.itemsize) != size:
        raise UserError(f"{place}: its header asks for {expected} bytes, found {size}")
    return shape, is_fortran, dtype


def check_archive(content: bytes, path: Path) -> None:
    """Refuse a `.npz` file that grows when it is read, or with a header that does not fit its content."""
    with damaged(path), zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        total = sum(member.file_size for member in members)
        if len(members) > _MEMBERS or total > _ARCHIVE:
            raise UserError(f"{path}: found {len(members)} arrays of {total} bytes, expected at most {_ARCHIVE} bytes")
        if len({member.filename for member in members}) < len(members):
            raise UserError(f"{path}: found an array twice")
        for member in members:
            with archive.open(member) as file:
                array_header(file, member.file_size, f"{path}, {member.filename}")


def check_table(content: pa.Buffer, path: Path, *, rows: int | None = None) -> None:
    """Refuse a Parquet file that grows out of proportion when it is read.

    Args:
        content: the file.
        path: its place, for errors.
        rows: number of rows that it must have; None for one that its bytes must account for.
    """
    with damaged(path):
        size = content.size
        file = pq.ParquetFile(pa.BufferReader(content))
        found = file.metadata
        groups = [found.row_group(number) for number in range(found.num_row_groups)]
        columns = [group.column(number) for group in groups for number in range(group.num_columns)]
        total = max(sum(column.total_uncompressed_size for column in columns), 0)
        values = sum(column.num_values for column in columns)
        if rows is not None and found.num_rows != rows:
            raise UserError(f"{path}: found {found.num_rows} rows, expected {rows}")
        accounted = total + 4 * _MEGABYTE
        if total > _TABLE + _TABLE_RATIO * size or values > accounted + 64 * found.num_columns * (rows or 0):
            raise UserError(
                f"{path}: its {size} bytes become {values} values of {total} bytes, which is out of proportion"
            )
        if rows is None and 4 * found.num_rows > accounted + 16 * _MEGABYTE:
            raise UserError(f"{path}: found {found.num_rows} rows in {size} bytes, which is out of proportion")
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            raise UserError(f"{path}: found a column twice, expected names that differ")
        _check_texts(content, path, limit=_TEXT + _TEXT_RATIO * size)


def _check_texts(content: pa.Buffer, path: Path, *, limit: int) -> None:
    """Count the bytes of texts without building them: a dictionary holds each once."""
    total, schema = 0, pq.ParquetFile(pa.BufferReader(content)).schema
    for number in range(len(schema)):
        column = schema.column(number)
        if column.physical_type != "BYTE_ARRAY":
            continue
        parts = pq.ParquetFile(pa.BufferReader(content), read_dictionary=[column.path])
        for batch in parts.iter_batches(batch_size=65_536, columns=[column.path]):
            values: Any = batch.column(0)
            while pa.types.is_struct(values.type):
                values = values.flatten()[0]
            while (
                not pa.types.is_dictionary(values.type)
                and hasattr(values, "flatten")
                and pa.types.is_nested(values.type)
            ):
                values = values.flatten()
            if not pa.types.is_dictionary(values.type):
                continue
            lengths = pc.binary_length(values.dictionary).cast(pa.int64()).take(values.indices.drop_null())
            total += pc.sum(lengths).as_py() or 0
            if total > limit:
                raise UserError(f"{path}: its texts become more than {limit} bytes, which is out of proportion")
