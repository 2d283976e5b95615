"""Refusal of columns that one reader could take for another, or whose values do not fit 64 bits."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from recsys.core.errors import UserError
from recsys.data.sources.literal_columns import read_batches
from recsys.data.sources.tables import Shard, Table


def check_columns(table: Table, columns: Sequence[str]) -> None:
    """Check the columns of a table that are read.

    Raises:
        UserError: If two have one name, or names that differ only in case, or an unsigned value exceeds 63 bits.
    """
    leave_out = f"data.features.{table.owner}.{{}}.ignore=true leaves it out" if table.owner != "interactions" else ""
    alike: dict[str, str] = {}
    for name in columns:
        other = alike.setdefault(name.casefold(), name)
        if other != name:
            advice = leave_out.format(name) or "expected names that also differ otherwise"
            raise UserError(f"{table.place}: the columns '{other}' and '{name}' differ only in case; {advice}")
        for shard in table.shards:
            if shard.names.count(name) > 1:
                advice = leave_out.format(name) or "expected one"
                raise UserError(f"{shard.shown}: {shard.names.count(name)} columns have the name '{name}'; {advice}")
        kind = table.types[name]
        if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
            kind = kind.value_type
        if kind == pa.uint64():
            for shard in table.shards:
                _check_range(shard, name)


def _check_range(shard: Shard, name: str) -> None:
    for batch in read_batches(shard.file, [name], shown=shard.shown):
        column = batch.column(0)
        values = column.flatten() if pa.types.is_nested(column.type) else column
        largest = pc.max(values).as_py() if pa.types.is_uint64(values.type) else None
        if largest is not None and largest >= 2**63:
            raise UserError(f"{shard.shown}: column '{name}' holds {largest}, expected integers below 2^63, or strings")
