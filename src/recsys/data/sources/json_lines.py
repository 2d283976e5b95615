"""JSON Lines as Arrow columns: integers, floats, strings, booleans and lists of them, exactly as the file has them.

Strings stay strings, also where they look like dates. A column that mixes types is a problem, reported if it is used.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recsys.core.errors import UserError
from recsys.data.sources.column_types import Problem
from recsys.data.sources.delimited import BLOCK_ROWS, open_text

_NAMES = {str: "strings", bool: "booleans", int: "integers", float: "numbers", list: "lists", dict: "objects"}
_ARROW = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64(), type(None): pa.null()}
_MOST_EXACT = 2**53


def read_json_lines(file: str, encoding: str) -> tuple[pa.Table, dict[str, Problem]]:
    """Return the columns of a file, and those that cannot be typed, which are null in the table.

    Raises:
        UserError: If a line is not a JSON object. The message names file and line.
    """
    columns: dict[str, list[pa.Array]] = {}
    problems: dict[str, Problem] = {}
    num_rows = 0
    for rows in _blocks(file, encoding):
        for name in dict.fromkeys(itertools.chain(columns, *rows)):
            values = [row.get(name) for row in rows]
            array, problem = _array(values, first=num_rows)
            if problem is not None:
                problems.setdefault(name, problem)
            columns.setdefault(name, [pa.nulls(num_rows)] if num_rows else []).append(array)
        num_rows += len(rows)
    if not num_rows:
        raise UserError(f"{file}: no rows")
    arrays = {}
    for name, chunks in columns.items():
        kind = _common(chunks)
        if kind is None and name not in problems:
            problems[name] = _mixed(chunks)
        if name in problems:
            kind, chunks = pa.null(), [pa.nulls(num_rows)]
        arrays[name] = pa.chunked_array([chunk.cast(kind) for chunk in chunks], kind)
    return pa.table(arrays), problems


def line_of(file: str, encoding: str, row: int) -> int:
    """Return the line of a row; blank lines are no rows."""
    with open_text(file, encoding) as text:
        lines = (number for number, line in enumerate(text, start=1) if line.strip())
        return next(itertools.islice(lines, row, None))


def _blocks(file: str, encoding: str) -> Iterator[list[dict[str, Any]]]:
    decode = json.JSONDecoder(object_pairs_hook=_object).decode
    with open_text(file, encoding) as text:
        text.reconfigure(newline="\n")
        rows: list[dict[str, Any]] = []
        for number, line in enumerate(text, start=1):
            if not line.strip():
                continue
            try:
                row = decode(line.strip())
            except (ValueError, RecursionError) as error:
                raise UserError(f"{file}: line {number}: not a JSON object ({error}){_remedy(line)}") from error
            if not isinstance(row, dict):
                found = f"found {type(row).__name__}, expected one JSON object per line{_remedy(line)}"
                raise UserError(f"{file}: line {number}: {found}")
            rows.append(row)
            if len(rows) == BLOCK_ROWS:
                yield rows
                rows = []
        if rows:
            yield rows


def _remedy(line: str) -> str:
    start = line.strip()
    if start.startswith("{'"):
        return "; single quotes are Python: json.dumps(ast.literal_eval(line)) writes JSON"
    if start.startswith("["):
        return "; jq -c '.[]' writes a line for each object of an array"
    return "; jq -c . writes each object in one line" if start == "{" else ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key '{next(n for n in names if names.count(n) > 1)}' occurs twice")
    return found


def _array(values: Sequence[Any], *, first: int) -> tuple[pa.Array, Problem | None]:
    """Return the values of one block as an array, or nulls and a problem. `first` is the number of the first row."""
    kinds = {*map(type, values)} - {type(None)}
    nothing = pa.nulls(len(values))
    if kinds == {list}:
        kinds = {type(value) for inner in values if inner is not None for value in inner}
        if not kinds <= _ARROW.keys():
            return pa.array([None if v is None else json.dumps(v).encode() for v in values], pa.binary()), None
        kind = _kind(kinds)
        target = None if kind is None else pa.list_(kind)
    elif kinds == {dict}:
        return pa.array([None if v is None else json.dumps(v).encode() for v in values], pa.binary()), None
    else:
        target = _kind(kinds)
    if target is None:
        seen = type(next(value for value in values if value is not None))
        row = next((n for n, value in enumerate(values) if value is not None and type(value) is not seen), 0)
        found = f"holds {_NAMES[seen]} and {_NAMES[type(values[row])]}, the first in"
        if seen is list and kinds:
            found = f"holds lists of {' and '.join(sorted(_NAMES.get(kind, 'nulls') for kind in kinds))}, the first in"
        return nothing, Problem(first + row, found, _ONE_TYPE)
    try:
        if target == pa.float64() and int in kinds:
            for row, value in enumerate(values):
                if type(value) is int and abs(value) > _MOST_EXACT:
                    return nothing, Problem(first + row, f"holds {value} among numbers with a point in", _DIGITS)
        return pa.array(values, target), None
    except (OverflowError, pa.ArrowInvalid):
        row = next((n for n, value in enumerate(values) if not _fits(value)), 0)
        return nothing, Problem(first + row, f"holds {str(values[row])[:60]} in", _BITS)
    except UnicodeEncodeError:
        row = next((n for n, value in enumerate(values) if not _is_text(value)), 0)
        return nothing, Problem(first + row, "holds half of a surrogate pair in", "expected text that UTF-8 can write")


_BITS = "expected integers of 64 bits, or strings"
_ONE_TYPE = "expected one type, data.FEATURE.ignore=true leaves it out"
_DIGITS = "expected integers below 2^53, or strings"


def _kind(kinds: set[type]) -> pa.DataType | None:
    kinds = kinds - {type(None)}
    if kinds == {int, float}:
        return pa.float64()
    return _ARROW.get(next(iter(kinds), type(None))) if len(kinds) < 2 else None


def _fits(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(not isinstance(one, int) or -(2**63) <= one < 2**63 for one in values)


def _is_text(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _common(chunks: Sequence[pa.Array]) -> pa.DataType | None:
    """Return the type that holds the values of all blocks exactly, or None."""
    kinds = {chunk.type for chunk in chunks} - {pa.null()}
    if pa.list_(pa.null()) in kinds and len(kinds) > 1:
        kinds.discard(pa.list_(pa.null()))
        if not all(pa.types.is_list(kind) for kind in kinds):
            return None
    if len(kinds) < 2:
        return next(iter(kinds), pa.null())
    for whole, number in ((pa.int64(), pa.float64()), (pa.list_(pa.int64()), pa.list_(pa.float64()))):
        if kinds == {whole, number}:
            flat = [c.flatten() if pa.types.is_list(whole) else c for c in chunks if c.type == whole]
            exact = all((pc.max(pc.abs(c)).as_py() or 0) <= _MOST_EXACT for c in flat)
            return number if exact else None
    return None


def _mixed(chunks: Sequence[pa.Array]) -> Problem:
    kinds: dict[pa.DataType, int] = {}
    row = 0
    for chunk in chunks:
        kinds.setdefault(chunk.type, row)
        row += len(chunk)
    found = [kind for kind in kinds if not pa.types.is_null(kind)]
    return Problem(kinds[found[-1]], f"holds {' and '.join(map(str, found))}, the latter after", "expected one type")
