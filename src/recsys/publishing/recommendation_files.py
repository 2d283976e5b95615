"""Files of recommendations: Parquet and JSON Lines with a row for each user, CSV with a row for each user and rank."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from recsys.core.errors import UserError
from recsys.core.io import atomic_file

ENDINGS = (".parquet", ".csv", ".jsonl", ".csv.gz", ".jsonl.gz")


def check_name(path: Path) -> None:
    """Refuse a file whose name does not say its format.

    Raises:
        UserError: If the name has none of the endings.
    """
    if not path.name.endswith(ENDINGS):
        raise UserError(f"out: {path}: expected a name that ends in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")


def write_parts(parts: Iterable[Path], out: Path) -> None:
    """Join Parquet files into one file, in the format that its name says.

    Args:
        parts: files with the columns user_id, item_ids and scores; at least one.
        out: file to write.
    """
    files = list(parts)
    tables = map(pq.read_table, files)
    with atomic_file(out) as aside:
        if out.name.endswith(".parquet"):
            with pq.ParquetWriter(aside, pq.read_schema(files[0])) as writer:
                for table in tables:
                    writer.write_table(table)
            return
        with gzip.open(aside, "wb") if out.name.endswith(".gz") else aside.open("wb") as sink:
            if ".csv" in out.suffixes[-2:]:
                _write_csv(tables, sink)
            else:
                for table in tables:
                    sink.writelines(json.dumps(row).encode() + b"\n" for row in table.to_pylist())


def _write_csv(tables: Iterable[pa.Table], sink: Any) -> None:
    for number, table in enumerate(tables):
        options = pyarrow.csv.WriteOptions(include_header=number == 0)
        pyarrow.csv.write_csv(_by_rank(table), sink, options)


def _by_rank(table: pa.Table) -> pa.Table:
    """Return a row for each user and rank: user_id, rank (from 1), item_id, score."""
    lists = table["item_ids"].combine_chunks()
    user = pc.list_parent_indices(lists)
    lengths = pc.fill_null(pc.list_value_length(lists), 0)
    begin = pc.subtract(pc.cumulative_sum(lengths), lengths)
    rank = pc.add(pc.subtract(pa.array(range(len(user)), pa.int64()), begin.take(user)), 1)
    return pa.table(
        {
            "user_id": table["user_id"].combine_chunks().take(user),
            "rank": rank.cast(pa.int64()),
            "item_id": pc.list_flatten(lists),
            "score": pc.list_flatten(table["scores"].combine_chunks()),
        }
    )
