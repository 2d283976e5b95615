"""The items of a release: their outside ids, and filters over their columns. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys.core.errors import UserError, nearest
from recsys.data.encoding import plain
from recsys.index import AllowedRows
from recsys.index.vector_database import Condition

Mask = npt.NDArray[np.bool_]
Value = str | int | float | bool
Values = Value | Sequence[Value]
Filter = Mapping[str, Values | Mapping[str, Values]]
# Values of a filter whose rows are kept for the next request.
_KEPT_VALUES = 1000
# Bounds of a range, besides `not` for values that a column must not have.
_BOUNDS = {"gt": pc.greater, "gte": pc.greater_equal, "lt": pc.less, "lte": pc.less_equal}
# Nanoseconds of a unit of time.
_UNITS = {"s": 10**9, "ms": 10**6, "us": 1000, "ns": 1}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_Condition = tuple[str, str, tuple[Value, ...]]


class IdMap:
    """Map from outside ids to rows, in little more memory than the ids themselves; `ids[r]` is the id of row r."""

    def __init__(self, ids: pa.Array) -> None:
        self.ids = plain(ids)
        self._is_string = pa.types.is_string(self.ids.type)
        if self._is_string:
            keys = _hashes(self.ids.to_pylist())
        else:
            keys = self._values = np.asarray(self.ids.cast(pa.int64()))
        self._order = np.argsort(keys)
        self._sorted: npt.NDArray[np.int64] = keys[self._order]
        if self._is_string:
            # The search returns only the first of several ids with equal hashes, so these are found by their text.
            same = self._sorted[1:] == self._sorted[:-1]
            rows = self._order[np.r_[same, False] | np.r_[False, same]] if len(same) else self._order[:0]
            self._clashing = dict(zip(self.ids.take(pa.array(rows)).to_pylist(), rows.tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.ids)

    def outside(self, rows: npt.NDArray[np.int64]) -> list[Any]:
        """Return the outside ids of rows, int or str."""
        if self._is_string:
            found: list[Any] = self.ids.take(pa.array(rows)).to_pylist()
            return found
        return self._values[rows].tolist()  # type: ignore[no-any-return]

    def rows(self, ids: Sequence[object]) -> npt.NDArray[np.int64]:
        """Return the row of each id, -1 for an unknown id; ids of another type are unknown."""
        if self._is_string:
            return self._rows_of_strings(ids)
        if set(map(type, ids)) == {int}:
            try:
                return self._find(np.array(ids, np.int64))
            except OverflowError:
                pass
        is_id = [isinstance(value, int | np.integer) and not isinstance(value, bool) and _fits(value) for value in ids]
        values = [value if good else 0 for value, good in zip(ids, is_id, strict=True)]
        return np.where(np.array(is_id, bool), self._find(np.array(values, np.int64)), -1)

    def rows_of(self, ids: pa.Array) -> npt.NDArray[np.int64]:
        """Return the row of each id of an array of this map's type, -1 for an unknown id."""
        if self._is_string:
            return np.asarray(pc.index_in(plain(ids), value_set=self.ids).cast(pa.int64()).fill_null(-1))
        return self._find(np.asarray(ids.cast(pa.int64())))

    def _rows_of_strings(self, ids: Sequence[object]) -> npt.NDArray[np.int64]:
        texts = [value if isinstance(value, str) else "" for value in ids]
        rows = self._find(_hashes(texts))
        # A text with the hash of an item may still be another text.
        near = np.flatnonzero(rows >= 0)
        for place, text in zip(near.tolist(), self.outside(rows[near]), strict=True):
            if texts[place] != text:
                rows[place] = -1
        if self._clashing:
            rows[:] = [self._clashing.get(text, row) for text, row in zip(texts, rows.tolist(), strict=True)]
        rows[[not isinstance(value, str) for value in ids]] = -1
        return rows

    def _find(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if not len(self._sorted):
            return np.full(len(keys), -1, np.int64)
        at = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        return np.where(self._sorted[at] == keys, self._order[at], -1)


def _hashes(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    return np.fromiter(map(hash, texts), np.int64, len(texts))


def _fits(value: object) -> bool:
    return -(2**63) <= int(value) < 2**63  # type: ignore[call-overload, no-any-return]


class ItemFilter:
    """Rows of a release's items that pass a filter; the results of recent filters are kept. `mask` limits the rows."""

    def __init__(self, table: pa.Table, mask: Mask | None = None) -> None:
        self.columns: list[str] = [name for name in table.column_names if name != "item_idx"]
        self._table, self._mask = table, mask
        self._cached = lru_cache(maxsize=64)(self._allowed)

    def without(self, removed: npt.NDArray[np.int64]) -> ItemFilter:
        """Return a filter that the rows `removed` do not pass."""
        if not len(removed):
            return self
        mask = self._all()
        mask[removed] = False
        return ItemFilter(self._table, mask)

    def __call__(self, wanted: Filter) -> AllowedRows | None:
        """Return the rows that pass; None for all. Refuse unknown columns, and values that a column cannot hold."""
        if not wanted and self._mask is None:
            return None
        key = tuple(self._parsed(wanted))
        types = tuple(type(value) for _, _, values in key for value in values)
        # The values of many long filters would take more memory than the items.
        return self._cached(key, types) if len(types) <= _KEPT_VALUES else self._allowed(key, types)

    def conditions(self, wanted: Filter) -> tuple[Condition, ...]:
        """Return the conditions of a filter for a vector database; refuse what `__call__` refuses."""
        found = []
        for name, operator, values in self._parsed(wanted):
            is_list, kind, allowed = self._typed(name, operator, values)
            typed: list[Any]
            if operator in _BOUNDS and _is_counted(self._kind(name)):
                typed = [int(allowed[0].as_py())]
            elif pa.types.is_date(kind) or pa.types.is_timestamp(kind):
                typed = allowed.cast(pa.int32() if pa.types.is_date32(kind) else pa.int64()).to_pylist()
            else:
                typed = allowed.to_pylist()
            found.append(Condition(name, operator, is_list, tuple(typed)))
        return tuple(found)

    def _parsed(self, wanted: Filter) -> list[_Condition]:
        found: list[_Condition] = []
        for name in sorted(wanted):
            if name not in self.columns:
                raise UserError(f"filter.{name}: the release's items have no such column{nearest(name, self.columns)}")
            found += _conditions(name, wanted[name])
        return found

    def _allowed(self, wanted: tuple[_Condition, ...], types: tuple[type, ...]) -> AllowedRows:  # noqa: ARG002
        # The types are part of the cache's key: 1, 1.0 and True are equal, but not for every column.
        mask = self._all()
        for name, operator, values in wanted:
            passing = self._column(name, operator, values)
            mask &= ~passing if operator == "not" else passing
        return AllowedRows(mask)

    def _all(self) -> Mask:
        return np.ones(len(self._table), bool) if self._mask is None else self._mask.copy()

    def _column(self, name: str, operator: str, values: tuple[Value, ...]) -> Mask:
        """Return the rows with one of the values, or within a bound; of lists, those with an element that is."""
        column = plain(self._table.column(name))
        is_list, kind, allowed = self._typed(name, operator, values)
        found = pc.list_flatten(column) if is_list else column
        if operator in _BOUNDS:
            found = found.cast(pa.int64()) if pa.types.is_timestamp(found.type) else found
            inside = pc.fill_null(_BOUNDS[operator](found.cast(kind, safe=False), allowed[0]), False)
        else:
            inside = pc.is_in(found, value_set=allowed, skip_nulls=True)
        inside = np.asarray(inside).astype(bool)
        if not is_list:
            return inside
        mask = np.zeros(len(column), bool)
        mask[np.asarray(pc.list_parent_indices(column))[inside]] = True
        return mask

    def _kind(self, name: str) -> pa.DataType:
        kind = plain(self._table.column(name).slice(0, 0)).type
        return kind.value_type if _is_list(kind) else kind

    def _typed(self, name: str, operator: str, values: tuple[Value, ...]) -> tuple[bool, pa.DataType, pa.Array]:
        """Return whether the column holds lists, and the values with the type in which they are compared."""
        kind = self._kind(name)
        if operator in _BOUNDS and not _is_ordered(kind):
            raise UserError(f"filter.{name}.{operator}: the column is {kind}, expected one of numbers or times")
        try:
            if _is_counted(kind) and operator in _BOUNDS:
                allowed = _bound(_exact(values[0], kind), operator, kind=kind)
                kind = allowed.type
            else:
                if pa.types.is_integer(kind):
                    # No integer is equal to one of the others.
                    values = tuple(value for value in values if not isinstance(value, float) or value.is_integer())
                allowed = _typed(values, kind)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"filter.{name}: found {list(values)}, expected {kind}") from error
        return _is_list(self._table.schema.field(name).type), kind, allowed


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _conditions(name: str, wanted: Values | Mapping[str, Values]) -> list[_Condition]:
    """Return the conditions of a column, all of which must hold."""
    if not isinstance(wanted, Mapping):
        return [(name, "in", _tuple(wanted))]
    operators = ("not", *_BOUNDS)
    if not wanted:
        raise UserError(f"filter.{name}: found no condition, expected one of {', '.join(operators)}")
    found = []
    for operator in sorted(wanted):
        place, values = f"filter.{name}.{operator}", _tuple(wanted[operator])
        if operator not in operators:
            raise UserError(f"{place}: no such condition{nearest(operator, operators)}")
        if operator in _BOUNDS and (len(values) != 1 or isinstance(values[0], bool)):
            raise UserError(f"{place}: found {list(values)}, expected one number or time")
        found.append((name, operator, values))
    return found


def _tuple(wanted: Values) -> tuple[Value, ...]:
    return (wanted,) if isinstance(wanted, str | int | float | bool) else tuple(wanted)


def _is_ordered(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_date(kind) or types.is_timestamp(kind))


def _is_counted(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_timestamp(kind))


def _exact(value: Value, kind: pa.DataType) -> Fraction:
    """Return a number, or a time in units of a column since 1970; a time without a zone is one in UTC."""
    if isinstance(value, str) != pa.types.is_timestamp(kind) or isinstance(value, bool):
        raise TypeError("a string where a number is expected, or the other way round")
    if not isinstance(value, str):
        return Fraction(value)
    time = datetime.fromisoformat(value)
    since = (time if time.tzinfo is not None else time.replace(tzinfo=UTC)) - _EPOCH
    return Fraction(since // timedelta(microseconds=1) * 1000, _UNITS[kind.unit])


def _bound(exact: Fraction, operator: str, *, kind: pa.DataType) -> pa.Array:
    """Return the integer that is the same bound; one beyond those of the column is a float far beyond them."""
    bound = math.floor(exact) if operator in ("gt", "lte") else math.ceil(exact)
    kind = kind if pa.types.is_uint64(kind) else pa.int64()
    low, high = (0, 2**64) if pa.types.is_uint64(kind) else (-(2**63), 2**63)
    return pa.array([bound], kind) if low <= bound < high else pa.array([math.copysign(2.0**65, bound)])


def _typed(values: tuple[Value, ...], kind: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(kind):
        # No time of the column is equal to one between two of its units, or beyond them.
        exact = [
            value for value in (_exact(value, kind) for value in values) if value.denominator == 1 and _fits(value)
        ]
        return pa.array(map(int, exact), pa.int64()).cast(kind)
    if pa.types.is_date(kind):
        return pa.array(values, pa.string()).cast(kind)
    if not pa.types.is_boolean(kind) and any(isinstance(value, bool) for value in values):
        raise TypeError("true or false where another value is expected")
    if any(isinstance(value, str) != pa.types.is_string(kind) for value in values):
        raise TypeError("a string where a number is expected, or the other way round")
    return pa.array(values, kind)


def to_values(values: list[Any], place: str) -> pa.Array:
    """Return outside values as an array; raise `UserError` if one column cannot hold them."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError) as error:
        raise UserError(f"{place}: found values of no one type ({str(error).splitlines()[0]})") from error
