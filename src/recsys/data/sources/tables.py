"""Content of the files of a source, from their footers alone, so that later steps read only columns that exist."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.core.errors import UserError, nearest
from recsys.core.schema import Owner
from recsys.data.preparation.engines import Read
from recsys.data.sources.common_types import common_type, plain_type
from recsys.data.sources.files import Tables, open_file
from recsys.data.sources.keys import key_names

# Field metadata of converted files: why a column cannot be used.
PROBLEM = b"recsys.problem"
# Name that pandas gives to an index without a name. It is no feature.
_INDEX = re.compile(r"__index_level_\d+__")


class Shard(NamedTuple):
    """One file of a table.

    Attributes:
        file: its address.
        types: plain type of each column that has a name.
        num_rows: number of rows.
        shown: its name in messages: the file of the user that `file` was converted from.
        problems: columns that cannot be used as they are -> why. Columns of strings may still be read as text.
        names: names of all columns in the order of the file; two may be equal.
    """

    file: str
    types: Mapping[str, pa.DataType]
    num_rows: int
    shown: str
    problems: Mapping[str, str]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """One table of a source.

    Attributes:
        owner: interactions, items or users.
        shards: files in name order.
        types: type of each column by its name in the files, wide enough for every shard, without dictionaries and large
            or view types. Of a column in `lists` it is the type of an entry.
        names: our names (`NAMES`) -> names in the files, of the columns that exist.
        lists: columns that hold lists with an entry for each event. They are not empty if a row of the interactions is
            a whole session: `item_id` holds lists.
    """

    owner: Owner
    shards: tuple[Shard, ...]
    types: Mapping[str, pa.DataType]
    names: Mapping[str, str]
    lists: frozenset[str] = frozenset()

    @property
    def files(self) -> tuple[str, ...]:
        """Files in name order."""
        return tuple(shard.file for shard in self.shards)

    @property
    def num_rows(self) -> int:
        """Number of rows of all shards."""
        return sum(shard.num_rows for shard in self.shards)

    @property
    def shown(self) -> tuple[str, ...]:
        """Names of the files in messages."""
        return tuple(shard.shown for shard in self.shards)

    @property
    def place(self) -> str:
        """Name in messages: the file, or the folder of several shards."""
        return self.shown[0] if len(self.shown) == 1 else self.shown[0].rsplit("/", 1)[0]

    def feature_columns(self) -> list[str]:
        """Return the columns that are not key columns (`NAMES`): the possible features."""
        return [name for name in self.types if name not in self.names.values() and not _INDEX.fullmatch(name)]

    def check(self, column: str) -> None:
        """Refuse a column whose values could not be read without a guess.

        Raises:
            UserError: If the column has a problem.
        """
        for shard in self.shards:
            if column in shard.problems:
                # A key column is no feature, so the settings of features do not help.
                found = shard.problems[column]
                found = re.sub(r"[,;] data\.FEATURE.*", "", found) if column in self.names.values() else found
                found = found.replace("FEATURE", f"features.{self.owner}.{column}")
                raise UserError(f"{shard.shown}: column '{column}' {found}")


def inspect(
    tables: Tables, columns: Mapping[str, Any], *, split_needs: str | None, event_columns: Iterable[str] = ()
) -> dict[str, Table]:
    """Return the tables of a source by owner, checked as far as the footers of the files allow.

    Args:
        tables: files of the source.
        columns: our names -> names in the files, see `key_names`.
        split_needs: column that the split requires, `timestamp` or `split`; `order` for a timestamp that only orders
            the events; None if it requires none.
        event_columns: other columns of interactions that are used.

    Raises:
        UserError: If a file is unreadable or empty, a column is missing or of a wrong type, or shards differ.
    """
    found: dict[str, Table] = {}
    owners: tuple[Owner, ...] = ("interactions", "items", "users")
    for owner in owners:
        if tables.of(owner):
            names = key_names(columns, owner)
            found[owner] = _table(owner, tables, wanted=names, split_needs=split_needs, event_columns=event_columns)
    events = found["interactions"]
    for owner, key in (("items", "item_id"), ("users", "user_id")):
        if owner in found:
            one, other = id_type(events, key), id_type(found[owner], key)
            if one != other:
                raise UserError(
                    f"{found[owner].place}: column '{found[owner].names[key]}' holds {other}, but {events.place} holds "
                    f"{one} in '{events.names[key]}'; expected one type in both"
                )
    return found


def id_type(table: Table, key: str) -> str:
    """Return the type of an id column: `int64` or `string`.

    Raises:
        UserError: If the column has another type.
    """
    column = table.names[key]
    kind = table.types[column]
    if pa.types.is_integer(kind):
        return "int64"
    if pa.types.is_string(kind):
        return "string"
    advice = "; integers that pandas has as floats: .astype('Int64')" if pa.types.is_floating(kind) else ""
    raise UserError(f"{table.place}: column '{column}' holds {kind}, expected integers or strings{advice}")


def reads(table: Table, key_names: Iterable[str]) -> dict[str, Read]:
    """Return the reading rules of the key columns that the table has, by their names within the engine."""
    wanted: dict[str, Read] = {}
    for key in key_names:
        if key in ("user_id", "item_id"):
            wanted[key] = Read(table.names[key], "int64" if id_type(table, key) == "int64" else "string")
        elif key == "timestamp" and key in table.names:
            wanted["time"] = read_time(table.names[key], table.types[table.names[key]])
        elif key == "split" and key in table.names:
            wanted["split"] = Read(table.names[key], "string")
        elif key == "born" and key in table.names:
            wanted["born"] = read_time(table.names[key], table.types[table.names[key]])
    return wanted


def read_time(column: str, kind: pa.DataType) -> Read:
    """Return the rule that reads times: dates and timestamps as microseconds, numbers and text as they are."""
    if pa.types.is_integer(kind):
        return Read(column, "int64")
    if pa.types.is_string(kind):
        return Read(column, "string")
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind):
        return Read(column)
    if pa.types.is_date(kind):
        return Read(column, "date")
    return Read(column, "nanoseconds" if kind.unit == "ns" else "time")


def _table(
    owner: Owner,
    tables: Tables,
    *,
    wanted: Mapping[str, tuple[str, ...]],
    split_needs: str | None,
    event_columns: Iterable[str],
) -> Table:
    shards = tuple(map(_shard, tables.of(owner), tables.shown(owner)))
    needed = "timestamp" if split_needs == "order" else split_needs
    names: dict[str, str] = {}
    for key, candidates in wanted.items():
        column = next((name for name in candidates if name in shards[0].types), None)
        if column is not None:
            names[key] = column
        elif key in ("user_id", "item_id", "born", needed):
            raise UserError(
                f"{shards[0].shown}: column '{candidates[0]}' is missing{nearest(candidates[0], shards[0].types)}"
                + (_REMEDY.get(str(split_needs), "") if key == needed else f"; data.columns.{key} names it")
            )
    full = [shard for shard in shards if shard.num_rows]
    if not full:
        others = f", nor in {len(shards) - 1} other shards" if len(shards) > 1 else ""
        raise UserError(f"{shards[0].shown}: no rows{others}")
    types = dict(full[0].types)
    for shard in full[1:]:
        used = {*names.values(), *event_columns} if owner == "interactions" else types.keys() | shard.types.keys()
        for name in sorted(used):
            types[name] = _joined(name, types.get(name), shards=full, shard=shard)
    lists: frozenset[str] = frozenset()
    found_lists = {n for n, kind in types.items() if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)}
    if owner == "interactions" and names["item_id"] in found_lists:
        lists = frozenset(found_lists)
        types |= {name: types[name].value_type for name in lists}
    table = Table(owner, shards, types, names, lists)
    for key, name in names.items():
        table.check(name)
        if key in ("user_id", "item_id"):
            id_type(table, key)
    for key in ("timestamp", "born"):
        if key not in names:
            continue
        kind = types[names[key]]
        if key == "born" and pa.types.is_null(kind):
            # A column without any value: no birth is known.
            continue
        is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        if not (is_number or pa.types.is_date(kind) or pa.types.is_timestamp(kind) or pa.types.is_string(kind)):
            raise UserError(f"{table.place}: column '{names[key]}' holds {kind}, expected seconds, dates or timestamps")
    if split_needs == "split" and owner == "interactions" and not pa.types.is_string(types[names["split"]]):
        raise UserError(
            f"{table.place}: column '{names['split']}' holds {types[names['split']]}, "
            f"expected strings: train, val or test"
        )
    return table


_REMEDY = {
    "timestamp": "; data.columns.timestamp names another column; for data without times: split=random, or "
    "split=leave_last_out data.time=order (the order of the rows)",
    "order": "; data.columns.timestamp names another column; for data without times: data.time=order (the order of the "
    "rows), or split=random",
    "split": "; split=given needs it, data.columns.split names another column",
}


def _shard(file: str, shown: str) -> Shard:
    try:
        with open_file(file) as opened:
            parquet = pq.ParquetFile(opened)
            schema = parquet.schema_arrow
            types = {field.name: plain_type(field.type) for field in schema if field.name}
            problems = {f.name: f.metadata[PROBLEM].decode() for f in schema if PROBLEM in (f.metadata or {})}
            return Shard(file, types, parquet.metadata.num_rows, shown, problems, tuple(schema.names))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{shown}: not a readable Parquet file ({error})") from error


def _joined(name: str, kind: pa.DataType | None, *, shards: Sequence[Shard], shard: Shard) -> pa.DataType:
    """Return the type of a column in the shards before `shard`, which is `kind`, and in `shard`."""
    found = shard.types.get(name)
    joined = None if kind is None or found is None else common_type(kind, found)
    if joined is not None:
        return joined
    other = shards[0]
    if kind is None or found is None:
        without, has = (other, shard) if kind is None else (shard, other)
        raise UserError(f"{without.shown}: column '{name}' is missing, but {has.shown} has it; expected it in both")
    other = next((s for s in shards if common_type(s.types[name], found) is None), other)
    raise UserError(
        f"{shard.shown}: column '{name}' holds {found}, but {other.types[name]} in {other.shown}; expected one type"
    )
