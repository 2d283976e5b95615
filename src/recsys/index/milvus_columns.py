"""Columns of items as fields of a Milvus collection, and filters as its expressions.

Milvus 2.3 has no nulls, and compares no elements of lists. So a column with nulls gets a second field that marks them,
and a column of lists of integers gets two for the least and the greatest element.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from recsys.index.vector_database import Condition

log = logging.getLogger("recsys")

# Bytes of a text, and elements of a list.
MOST_BYTES, MOST_ELEMENTS = 65535, 4096
_LEAST, _MOST = -(2**63), 2**63 - 1
_PLAIN = re.compile(r"[A-Za-z0-9_]{1,200}")
# Kinds of fields: the values, a mark of nulls, and the least and the greatest element of a list.
_VALUE, _NULL, _MIN, _MAX = "c", "n", "lo", "hi"
_ALL, _NONE = "row >= 0", "row < 0"


class Field(NamedTuple):
    """A field of a collection: its type in Milvus, that of the elements of an array, and its values."""

    name: str
    kind: str
    element: str
    values: pa.ChunkedArray


def _name(column: str, part: str) -> str:
    """Return the name of a field; a column with other characters than Milvus accepts is written in hexadecimal."""
    return f"{part}_{column}" if _PLAIN.fullmatch(column) else f"{part}x_{column.encode().hex()}"


def column_of(field: str) -> str | None:
    """Return the column whose values a field holds, or None."""
    part, _, rest = field.partition("_")
    if part == _VALUE:
        return rest
    return bytes.fromhex(rest).decode() if part == f"{_VALUE}x" else None


def fields_of(items: pa.Table) -> list[Field]:
    """Return the fields of the columns, without those that Milvus cannot hold, which are logged."""
    fields: list[Field] = []
    for column in items.column_names:
        try:
            fields += _fields(column, items.column(column))
        except (pa.ArrowException, ValueError) as error:
            log.warning("milvus: items.%s cannot be used in filters: %s", column, str(error).splitlines()[0])
    return fields


def _fields(column: str, values: pa.ChunkedArray) -> Iterator[Field]:
    if len(_name(column, _VALUE)) > 250:
        raise ValueError("its name is too long")
    values = _plain(values)
    kind = values.type
    if pa.types.is_list(kind):
        element = _kind(kind.value_type)
        if len(values) and (pc.max(pc.list_value_length(values)).as_py() or 0) > MOST_ELEMENTS:
            raise ValueError(f"a list has more than {MOST_ELEMENTS} elements")
        if element == "VARCHAR":
            _check_texts(pc.list_flatten(values))
        yield Field(_name(column, _VALUE), "ARRAY", element, values)
        if element == "INT64":
            lists = values.to_pylist()
            whole = [[one for one in row or () if one is not None] for row in lists]
            for part, choose in ((_MIN, min), (_MAX, max)):
                yield Field(_name(column, part), "INT64", "", pa.chunked_array([[choose(r, default=0) for r in whole]]))
            if not all(whole):
                yield Field(_name(column, _NULL), "BOOL", "", pa.chunked_array([[not row for row in whole]]))
        return
    milvus = _kind(kind)
    if milvus == "VARCHAR":
        _check_texts(values)
    if milvus == "DOUBLE":
        # Its expressions have no infinity either.
        most = sys.float_info.max
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)
        values = pc.min_element_wise(pc.max_element_wise(values, -most, skip_nulls=False), most, skip_nulls=False)
    if values.null_count:
        yield Field(_name(column, _NULL), "BOOL", "", pc.is_null(values))
        values = pc.fill_null(values, {"VARCHAR": "", "BOOL": False}.get(milvus, 0))
    yield Field(_name(column, _VALUE), milvus, "", values)


def _check_texts(values: Any) -> None:
    if (pc.max(pc.binary_length(values)).as_py() or 0) > MOST_BYTES:
        raise ValueError(f"a text has more than {MOST_BYTES} bytes")


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the values in the few types that Milvus has: strings, booleans, int64, float64, and lists of them."""
    kind = values.type
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
        values = values.cast(kind)
    if types.is_list(kind) or types.is_large_list(kind):
        return values.cast(pa.list_(_plain_type(kind.value_type)))
    if types.is_date32(kind) or types.is_timestamp(kind):
        values = values.cast(pa.int32() if types.is_date32(kind) else pa.int64())
        kind = values.type
    return values.cast(_plain_type(kind))


def _plain_type(kind: pa.DataType) -> pa.DataType:
    types = pa.types
    if types.is_boolean(kind):
        return pa.bool_()
    if types.is_integer(kind) or types.is_date64(kind):
        return pa.int64()
    if types.is_floating(kind):
        return pa.float64()
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    raise ValueError(f"a collection has no type for {kind}")


def _kind(kind: pa.DataType) -> str:
    return {pa.bool_(): "BOOL", pa.int64(): "INT64", pa.float64(): "DOUBLE", pa.string(): "VARCHAR"}[kind]


def rows_of(fields: Sequence[Field], begin: int, *, count: int) -> list[dict[str, Any]]:
    """Return the values of the rows `begin..begin + count - 1`, one dictionary for each."""
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    for field in fields:
        for row, value in zip(rows, field.values.slice(begin, count).to_pylist(), strict=True):
            row[field.name] = [one for one in value or () if one is not None] if field.kind == "ARRAY" else value
    return rows


def to_expression(conditions: Sequence[Condition], fields: Collection[str]) -> str:
    """Return the expression of all conditions; empty for none."""
    parts = [f"({_expression(condition, fields)})" for condition in conditions]
    while len(parts) > 1:
        # In pairs, because Milvus accepts only about 50 levels, and `a and b and c` has one for each.
        parts = [f"({' and '.join(parts[at : at + 2])})" for at in range(0, len(parts), 2)]
    return "".join(parts)


def _expression(condition: Condition, fields: Collection[str]) -> str:
    column, operator, is_list, values = condition
    if operator == "not":
        return f"not ({_expression(condition._replace(operator='in'), fields)})"
    name = _name(column, _VALUE) if column else "row"
    least, most = (_name(column, _MIN), _name(column, _MAX)) if is_list else (name, name)
    if operator == "in":
        found = _is_any(name, is_list, values, least=least)
    else:
        found = _bound(most if operator.startswith("g") else least, operator, value=values[0])
    null = _name(column, _NULL)
    return f"({found}) and {null} == false" if column and null in fields else found


def _is_any(name: str, is_list: bool, values: Sequence[Any], *, least: str) -> str:
    # The least integer cannot be written.
    listed = ", ".join(_literal(one) for one in values if type(one) is not int or one != _LEAST)
    parts = [f"array_contains_any({name}, [{listed}])" if is_list else f"{name} in [{listed}]"] if listed else []
    if any(type(one) is int and one == _LEAST for one in values):
        parts.append(f"{least} < {_LEAST + 1}")
    return " or ".join(parts) or _NONE


def _bound(name: str, operator: str, *, value: Any) -> str:
    if type(value) is float:
        symbol = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}[operator]
        return f"{name} {symbol} {_literal(value)}"
    # Integers as half-open intervals of which neither end leaves the range.
    if operator.startswith("g"):
        low = value + (operator == "gt")
        return _NONE if low > _MOST else _ALL if low <= _LEAST else f"{name} >= {low}"
    high = value + (operator == "lte")
    return _ALL if high > _MOST else _NONE if high <= _LEAST else f"{name} < {high}"


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # Octal escapes of three digits are the ones that its grammar and its parser both accept.
        quoted = re.sub(r'([\\"])', r"\\\1", value)
        return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda found: f"\\{ord(found[0]):03o}", quoted) + '"'
    return repr(_finite(value) if isinstance(value, float) else value)


def _finite(value: float) -> float:
    return max(-sys.float_info.max, min(value, sys.float_info.max))
