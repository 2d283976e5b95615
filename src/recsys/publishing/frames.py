"""Data frames of pandas, Polars and Arrow, through Arrow's interchange. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys.core.errors import UserError, nearest
from recsys.core.types import Float32Array
from recsys.data.encoding import plain

# A pandas, Polars or Arrow table, or anything else with `__arrow_c_stream__`.
Frame: TypeAlias = Any


def to_table(frame: Frame, place: str) -> pa.Table:
    """Return a frame as an Arrow table, without the index of a pandas frame.

    Args:
        frame: anything with `__arrow_c_stream__`.
        place: name of the argument, for errors.

    Raises:
        UserError: If `frame` is not a data frame.
    """
    if not hasattr(frame, "__arrow_c_stream__"):
        raise UserError(f"{place}: found {type(frame).__name__}, expected a data frame of pandas, Polars or Arrow")
    table = frame if isinstance(frame, pa.Table) else pa.table(frame)
    return table.select([name for name in table.column_names if not name.startswith("__index_level_")])


def is_frame(values: object) -> bool:
    """True if `values` is a table and not a single column."""
    return isinstance(values, pa.Table) or (hasattr(values, "__arrow_c_stream__") and hasattr(values, "columns"))


def column(table: pa.Table, name: str, place: str) -> pa.Array:
    """Return a required column without nulls.

    Args:
        table: table of the caller.
        name: name of the column.
        place: name of the argument that the table came from, for errors.

    Raises:
        UserError: If the column is missing or holds a null.
    """
    if name not in table.column_names:
        raise UserError(f"{place}: column '{name}' is missing{nearest(name, table.column_names)}")
    values = plain(table[name])
    if values.null_count:
        raise UserError(f"{place}: column '{name}' is null in row {_first(np.asarray(values.is_null()))}")
    return values


def to_ids(values: Iterable[Any], place: str) -> pa.Array:
    """Return ids as one Arrow array.

    Args:
        values: list, numpy array, or a column of pandas, Polars or Arrow.
        place: name of the argument, for errors.

    Raises:
        UserError: If the values are not ids, or one is null.
    """
    try:
        if isinstance(values, pa.Array | pa.ChunkedArray):
            array = values
        elif hasattr(values, "__arrow_c_stream__"):
            array = pa.chunked_array(values)
        else:
            array = pa.array(values if isinstance(values, np.ndarray) else list(values))
    except (pa.ArrowException, TypeError) as error:
        raise UserError(f"{place}: expected a list of ids ({error})") from error
    ids = plain(array)
    if ids.null_count:
        raise UserError(f"{place}: id {_first(np.asarray(ids.is_null()))} is null")
    return ids


def as_ids(ids: pa.Array, expected: pa.DataType, place: str) -> pa.Array:
    """Return ids in the type that the data has.

    Raises:
        UserError: If strings are given for integers, or integers for strings, or an id is out of range.
    """
    if not len(ids):
        return ids.cast(expected)
    same = pa.types.is_string(ids.type) if pa.types.is_string(expected) else pa.types.is_integer(ids.type)
    if not same:
        raise UserError(f"{place}: found ids of type {ids.type}, expected {expected}")
    try:
        return ids.cast(expected)
    except pa.ArrowInvalid as error:
        raise UserError(f"{place}: {error}") from error


def like(table: pa.Table, original: object) -> Frame:
    """Return a table in the kind of frame that `original` is: pandas, Polars, or Arrow for anything else."""
    pandas, polars = sys.modules.get("pandas"), sys.modules.get("polars")
    if pandas is not None and isinstance(original, pandas.DataFrame | pandas.Series):
        return table.to_pandas()
    if polars is not None and isinstance(original, polars.DataFrame | polars.Series):
        return polars.from_arrow(table)
    return table


def embedding_column(embeddings: Float32Array) -> pa.Array:
    """Return embeddings [N, D], or [N, M, D], as a column of fixed-size lists."""
    values = pa.array(np.ascontiguousarray(embeddings).ravel())
    for size in reversed(embeddings.shape[1:]):
        values = pa.FixedSizeListArray.from_arrays(values, size)
    return values


def ranked_table(
    user_ids: pa.Array,
    item_ids: Sequence[Sequence[Any]],
    *,
    scores: Sequence[Float32Array],
    kind: pa.DataType,
) -> pa.Table:
    """Return lists of ranked items as a table with the columns user_id, item_ids and scores."""
    offsets = pa.array(np.concatenate([[0], np.cumsum([len(row) for row in item_ids])]).astype(np.int32))
    flat = pa.array([item for row in item_ids for item in row], kind)
    flat_scores = pa.array(np.concatenate([np.zeros(0, np.float32), *scores]).astype(np.float32))
    lists = pa.ListArray.from_arrays
    return pa.table({"user_id": user_ids, "item_ids": lists(offsets, flat), "scores": lists(offsets, flat_scores)})


def _first(mask: npt.NDArray[np.bool_]) -> int:
    return int(np.flatnonzero(mask)[0])
