"""Reading of a table whose shards differ in type, or whose rows are sessions with lists of events."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
import pyarrow as pa

from recsys.core.errors import UserError
from recsys.core.suppression import hash_of
from recsys.data.preparation.engines import Read, Session, first_row
from recsys.data.preparation.plain_files import plain_files
from recsys.data.sources.tables import Table, read_time

_TIMES = ("date", "time", "nanoseconds")


def read_table(session: Session, table: Table, wanted: Mapping[str, Read]) -> ir.Table:
    """Return columns of a table by new names, and the place of each row: `shard`, `row`.

    Shards of other types are read with their own and then joined in the common type. A row with lists becomes one row
    for each entry.

    Raises:
        UserError: If the lists of a row differ in length.
    """
    used = sorted({read.column for read in wanted.values()})
    groups: dict[tuple[pa.DataType, ...], list[int]] = {}
    for place, shard in enumerate(table.shards):
        if shard.num_rows:
            groups.setdefault(tuple(shard.types[name] for name in used), []).append(place)
    parts = [
        _read_group(session, table, wanted=wanted, types=dict(zip(used, types, strict=True)), places=places)
        for types, places in groups.items()
    ]
    joined = parts[0]
    for part in parts[1:]:
        joined = joined.union(part.select(*joined.columns))
    lists = [name for name, read in wanted.items() if read.column in table.lists]
    return _exploded(session, joined, table=table, wanted=wanted, lists=lists) if lists else joined


def without_suppressed(session: Session, rows: ir.Table, hashes: Collection[str]) -> ir.Table:
    """Return the rows of users whose hash is not among `hashes`; rows without a user stay."""
    if not hashes:
        return rows
    ids = (user for batch in session.stream(rows.select("user_id").distinct()) for user in batch["user_id"].to_pylist())
    found = [user for user in ids if user is not None and hash_of(user) in hashes]
    return rows.filter(rows.user_id.isnull() | ~rows.user_id.isin(found)) if found else rows


def _read_group(
    session: Session,
    table: Table,
    *,
    wanted: Mapping[str, Read],
    types: Mapping[str, pa.DataType],
    places: list[int],
) -> ir.Table:
    """Read the shards at `places`, which share the types of all columns."""
    reads, casts = {}, {}
    for name, read in wanted.items():
        kind, common = types[read.column], table.types[read.column]
        if pa.types.is_null(kind):
            casts[name] = ibis.null(_engine_type(read, table))
            continue
        reads[name] = read
        if read.column in table.lists:
            reads[name] = Read(read.column)
            common = pa.list_(common)
        elif read.reading in _TIMES:
            reads[name] = read_time(read.column, kind)
        if reads[name].reading == "as_is" and kind != common:
            casts[name] = ibis._[name].cast(dt.DataType.from_pyarrow(common))
    files, plain = plain_files([table.shards[place] for place in places], reads, session.scratch / "plain")
    found = session.read(files, plain).mutate(**casts)
    if places == list(range(len(table.files))):
        return found.select(*wanted, "shard", "row")
    places_of = ibis.array(places)
    return found.mutate(shard=places_of[found.shard.cast("int32")].cast("int64")).select(*wanted, "shard", "row")


def _engine_type(read: Read, table: Table) -> dt.DataType:
    if read.reading == "string":
        return dt.string
    if read.reading != "as_is":
        return dt.int64
    kind = table.types[read.column]
    return dt.DataType.from_pyarrow(pa.list_(kind) if read.column in table.lists else kind)


def _exploded(
    session: Session, sessions: ir.Table, *, table: Table, wanted: Mapping[str, Read], lists: list[str]
) -> ir.Table:
    """Return one row for each entry of the lists of a row, in their order."""
    lengths = {name: sessions[name].length() for name in lists}
    first = "item_id" if "item_id" in lists else lists[0]
    differs = {name: (length != lengths[first]).fill_null(True) for name, length in lengths.items()}
    worst = sessions.aggregate(
        longest=lengths[first].max(),
        **{f"bad_{at}": sessions.count(where=differs[name]) for at, name in enumerate(lists)},
    )
    found = first_row(session, worst)
    for at, name in enumerate(lists):
        if found[f"bad_{at}"]:
            raise UserError(
                f"{table.place}: column '{wanted[name].column}' has {found[f'bad_{at}']} rows whose list is missing or "
                f"not as long as the one in '{wanted[first].column}'; expected an entry for each event"
            )
    flat = sessions.rename(events_of_row=first).unnest("events_of_row", offset="place_in_list")
    columns = {name: flat[name][flat.place_in_list.cast("int32")] for name in lists if name != first} | {
        first: flat.events_of_row
    }
    flat = flat.mutate(row=flat.row * max(found["longest"], 1) + flat.place_in_list, **columns)
    typed = {name: _converted(flat[name], wanted[name]) for name in lists}
    return flat.mutate(**typed).select(*wanted, "shard", "row")


def _converted(values: ir.Value, read: Read) -> ir.Value:
    """Apply the conversion of `read` to entries of lists, as an engine does to plain columns."""
    if read.reading in ("int64", "string"):
        return values.cast(read.reading)
    if read.reading in _TIMES:
        moments = values.cast("timestamp") if read.reading == "date" else values
        return moments.truncate("s").epoch_seconds().cast("int64") * 1_000_000 + moments.microsecond().cast("int64")
    return values
