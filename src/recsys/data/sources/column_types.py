"""Types of columns of text, decided by all of their values, never by the first ones.

Integers, numbers and true/false get their type; every other column stays text. A column of numbers with a few words for
missing or infinite values, or with another decimal mark, is neither: it is a `Problem`, reported if the column is used.
"""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

# Codes such as 007 stay strings, because ids must not change.
INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
_NUMBER = r"^-?((0|[1-9][0-9]*)(MARK[0-9]*)?|MARK[0-9]+)([eE][+-]?[0-9]+)?$"
_BOOLEAN = r"^(true|false|True|False|TRUE|FALSE)$"
_MARKS = {".": r"\.", ",": ","}
_THOUSANDS = r"^-?[0-9]{1,3}([., ][0-9]{3})+([.,][0-9]+)?$"
# Words for a missing or infinite number, in small letters.
_NO_NUMBERS = ("na", "n/a", "#n/a", "nan", "null", "none", "nil", "-", "?", ".", "\\n", "missing")
_NOT_FINITE = ("inf", "+inf", "-inf", "infinity", "+infinity", "-infinity")


class Problem(NamedTuple):
    """Why a column cannot be typed without a guess.

    Attributes:
        row: row that shows it, counted over all shards.
        found: what the column holds, for the message.
        advice: what to type.
    """

    row: int
    found: str
    advice: str


KEEP = "data.FEATURE.kind=categorical keeps its text, data.FEATURE.ignore=true leaves it out"


def text_type(
    column: pa.ChunkedArray, decimal: str, kind: str | None, *, is_id: bool = False
) -> tuple[pa.DataType, Problem | None]:
    """Return the type of a column of strings, and the problem of a column that remains text against all appearance.

    Args:
        column: values of all shards.
        decimal: decimal mark.
        kind: kind that the header names (RecBole): token, token_seq, float, float_seq; else None.
        is_id: whether blanks around a number belong to the value.
    """
    if kind in ("token_seq", "float_seq"):
        return pa.list_(pa.float64() if kind == "float_seq" else pa.string()), None
    if column.null_count == len(column):
        return pa.string(), None
    if kind != "float" and _all(column, INTEGER):
        return pa.int64(), None
    if kind == "token":
        return pa.string(), None
    number = _NUMBER.replace("MARK", _MARKS[decimal])
    if _all(column, number):
        # Integers of many digits are codes unless some value has a point or an exponent, which makes them measurements.
        if kind is None and not pc.any(pc.match_substring_regex(column, f"[{decimal}eE]")).as_py():
            return pa.string(), None
        return pa.float64(), None
    if _all(column, _BOOLEAN):
        return pa.bool_(), None
    if not is_id and _all(column, rf"^\s*({number[1:-1]})\s*$"):
        return text_type(pc.ascii_trim_whitespace(column), decimal, kind)
    return pa.string(), _problem(column, number, decimal)


def cast_text(column: pa.ChunkedArray, kind: pa.DataType, decimal: str) -> tuple[pa.ChunkedArray, Problem | None]:
    """Return a column of strings with the type that `text_type` has found, and what cannot be a value of that type."""
    if pa.types.is_list(kind):
        words = pc.split_pattern_regex(pc.utf8_trim_whitespace(column), " +")
        try:
            return words.cast(kind), None
        except pa.ArrowInvalid as error:
            return words, Problem(0, f"holds a list with other words than numbers ({error}); the first row is", KEEP)
    if pa.types.is_boolean(kind):
        return pc.equal(pc.utf8_lower(column), "true"), None
    if pa.types.is_string(kind):
        return column, None
    column = pc.ascii_trim_whitespace(column)
    if pa.types.is_integer(kind):
        return column.cast(kind), None
    found = (pc.replace_substring(column, ",", ".") if decimal == "," else column).cast(kind)
    row = pc.index(pc.fill_null(pc.is_inf(found), False), True).as_py()
    if row < 0:
        return found, None
    return column, Problem(row, f"holds '{column[row]}', which is no finite number, in", KEEP)


def _all(column: pa.ChunkedArray, pattern: str) -> bool:
    """Return whether every value that is not null matches. Reads no further than the first chunk that has another."""
    return all(pc.all(pc.match_substring_regex(chunk, pattern)).as_py() is not False for chunk in column.chunks)


def _problem(column: pa.ChunkedArray, number: str, decimal: str) -> Problem | None:
    is_number = pc.match_substring_regex(column, number)
    others = pc.unique(column.filter(pc.invert(is_number)))
    if len(others) <= 100 and pc.any(is_number).as_py():
        words = {word: word.lower() for word in others.to_pylist()}
        if {*words.values()} <= {*_NO_NUMBERS, *_NOT_FINITE}:
            word = others[0].as_py()
            advice = f"expected a number or an empty field; data.missing=[{word}] reads it as missing, {KEEP}"
            return Problem(_row(column, word), f"holds numbers, but '{word}' in", advice)
    other = {".": ",", ",": "."}[decimal]
    for pattern, advice in (
        (_NUMBER.replace("MARK", _MARKS[other]), f"data.decimal={'comma' if other == ',' else 'point'} reads numbers"),
        (_THOUSANDS, "expected numbers without marks for thousands"),
    ):
        if len(others) and _all(column, f"{pattern}|{number}"):
            word = others[0].as_py()
            return Problem(_row(column, word), f"holds numbers, but '{word}' in", f"{advice}, {KEEP}")
    return None


def _row(column: pa.ChunkedArray, word: str) -> int:
    return int(pc.index(column, word).as_py())
