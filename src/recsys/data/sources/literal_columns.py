"""Columns of a Parquet file by their literal names.

Arrow takes a name with a point as the path of a nested column, too, and knows no two columns of one name. So a column
is chosen here by its place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.core.errors import UserError
from recsys.data.sources.files import open_file

_BATCH_ROWS = 262_144


def read_batches(file: str, names: Sequence[str], *, shown: str | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file, with its columns of these names in their order; of several of one name, the first.

    Raises:
        UserError: If the file cannot be read. The message names `shown`, by default the file.
    """
    try:
        with open_file(file) as opened:
            parquet = pq.ParquetFile(opened)
            every = parquet.schema_arrow.names
            is_clear = max(Counter(every).values()) == 1 and not any("." in name for name in every)
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=list(names) if is_clear else None):
                places = [batch.schema.names.index(name) for name in names]
                fields = [batch.schema.field(place) for place in places]
                yield pa.record_batch([batch.column(place) for place in places], schema=pa.schema(fields))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{shown or file}: cannot be read ({error})") from error


def read_columns(file: str, names: Sequence[str]) -> pa.Table:
    """Return columns of a file as a table, see `read_batches`."""
    with open_file(file) as opened:
        schema = pq.read_schema(opened)
    fields = [schema.field(schema.names.index(name)) for name in names]
    return pa.Table.from_batches(read_batches(file, names), pa.schema(fields))
