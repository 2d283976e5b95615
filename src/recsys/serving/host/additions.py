"""New items of one release: their columns and embeddings, in files and in messages. Imports no torch.

A file of new items is a Parquet file with the item columns of the release and the column `embedding`. Its metadata
names the version whose item tower made the embeddings; no other version accepts them. Shapes: A items, D dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.core.errors import UserError, nearest
from recsys.core.types import Float32Array

VERSION_KEY = b"recsys.version"
EMBEDDING = "embedding"


@dataclass(frozen=True)
class Additions:
    """New items for the index of one release.

    Attributes:
        version: version whose item tower made the embeddings.
        items: `item_id`, and values of the item columns of the release; [A].
        embeddings: float32 [A, D], scaled as those of the index.
    """

    version: str
    items: Sequence[Mapping[str, Any]]
    embeddings: Float32Array


def save_additions(table: pa.Table, embeddings: Float32Array, *, version: str, path: Path) -> None:
    """Write a file of new items: their columns [A], their embeddings [A, D], and the version that embedded them."""
    flat = pa.array(embeddings.reshape(-1), pa.float32())
    vectors = pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
    table = table.append_column(EMBEDDING, vectors).replace_schema_metadata({VERSION_KEY: version.encode()})
    pq.write_table(table, path)


def load_additions(path: Path) -> Additions:
    """Read a file of new items."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: unreadable ({error})") from error
    version = (table.schema.metadata or {}).get(VERSION_KEY)
    if version is None or EMBEDDING not in table.column_names:
        raise UserError(f"{path}: not a file of embedded items; recsys embed-items makes one")
    vectors = table[EMBEDDING].combine_chunks()
    embeddings = np.asarray(vectors.flatten(), np.float32).reshape(len(table), vectors.type.list_size)
    return Additions(version.decode(), table.drop_columns([EMBEDDING]).to_pylist(), embeddings)


def to_table(items: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return the items as rows of a release's table, without `item_idx`; raise `UserError` if they do not fit."""
    names = [name for name in schema.names if name != "item_idx"]
    for number, item in enumerate(items):
        for name in item:
            if name not in names:
                raise UserError(
                    f"items[{number}].{name}: the release's items have no such column{nearest(name, names)}"
                )
    columns = {name: _column([item.get(name) for item in items], schema.field(name).type, name) for name in names}
    return pa.table(columns)


def _column(values: list[Any], kind: pa.DataType, name: str) -> pa.Array:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    try:
        if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
            return pa.array([None if value is None else str(value) for value in values], pa.string()).cast(kind)
        return pa.array(values, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"items.{name}: found a value that is not of type {kind} ({str(error).splitlines()[0]})"
        ) from error
