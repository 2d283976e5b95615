"""Formats of dates and times that are written as text: recognition, and conversion to microseconds since 1970.

A recognised format fixes the order of day, month and year. It allows any usual separator and an optional time of day
and zone, so `2015-04-27` and `2015-04-27T13:05:00.5Z` share one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys.core.errors import UserError
from recsys.core.types import Int64Array

# Patterns are valid for RE2, which Arrow uses, and for Python. A group has the name of its directive of `strptime`.
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DIRECTIVES = {
    "Y": r"(?P<Y>\d{4})",
    "y": r"(?P<y>\d{2})",
    "m": r"(?P<m>\d{1,2})",
    "d": r"(?P<d>\d{1,2})",
    "b": r"(?P<b>(?i:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sep(?:t|tember)?"
    r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?))\.?",
    "H": r"(?P<H>\d{1,2})",
    "I": r"(?P<I>\d{1,2})",
    "M": r"(?P<M>\d{1,2})",
    "S": r"(?P<S>\d{1,2})",
    "f": r"(?P<f>\d{1,9})",
    "p": r"(?P<p>(?i:[ap]\.?m\.?))",
    "z": r"(?P<z>Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)",
    "a": r"(?i:(?:mon|tues?|wed(?:nes)?|thu(?:rs?)?|fri|sat(?:ur)?|sun)(?:day)?)",
    "%": "%",
}
_ALIASES = {"B": "b", "h": "b", "A": "a", "Z": "z"}
_COMPOUND = {"%T": "%H:%M:%S", "%R": "%H:%M", "%F": "%Y-%m-%d", "%D": "%m/%d/%y"}
_D = _DIRECTIVES
_SEP = "[-/.]"
_DAY_OF_WEEK = rf"(?:{_D['a']},?\s+)?"
_TIME = (
    r"(?:(?:\s*T\s*|,?\s+)(?P<H>\d{1,2}):(?P<M>\d{2})(?::(?P<S>\d{2})(?:[.,](?P<f>\d{1,9}))?)?"
    rf"(?:\s*{_D['p']})?(?:\s*{_D['z']})?)?"
)
_COMPACT_TIME = rf"(?:[T ]?(?P<H>\d{{2}}):?(?P<M>\d{{2}})(?::?(?P<S>\d{{2}})(?:\.(?P<f>\d{{1,9}}))?)?{_D['z']}?)?"
_DATES = {
    "Ymd": f"{_D['Y']}{_SEP}{_D['m']}{_SEP}{_D['d']}",
    "dmY": f"{_D['d']}{_SEP}{_D['m']}{_SEP}{_D['Y']}",
    "mdY": f"{_D['m']}{_SEP}{_D['d']}{_SEP}{_D['Y']}",
    "dmy": f"{_D['d']}{_SEP}{_D['m']}{_SEP}{_D['y']}",
    "mdy": f"{_D['m']}{_SEP}{_D['d']}{_SEP}{_D['y']}",
    "ymd": f"{_D['y']}{_SEP}{_D['m']}{_SEP}{_D['d']}",
    "dbY": rf"{_D['d']}(?:st|nd|rd|th|\.)?[-/ ]\s*{_D['b']}[-/, ]\s*{_D['Y']}",
    "bdY": rf"{_D['b']}[-/ ]\s*{_D['d']}(?:st|nd|rd|th)?[-/, ]\s*{_D['Y']}",
    "Ybd": f"{_D['Y']}[-/ ]{_D['b']}[-/ ]{_D['d']}",
    "dby": f"{_D['d']}[-/ ]{_D['b']}[-/ ]{_D['y']}",
}
_LENIENT = {order: rf"^{_DAY_OF_WEEK}{date}{_TIME}$" for order, date in _DATES.items()}
_MICROSECONDS = 1_000_000


class Parsed(NamedTuple):
    """Times of texts: microseconds int64 [N], whether the text has the format, whether it names a zone; bool [N]."""

    micros: Int64Array
    valid: npt.NDArray[np.bool_]
    zoned: npt.NDArray[np.bool_]


class BadDateError(ValueError):
    """No format fits a text, or several do. `text` is the one to show with its place."""

    def __init__(self, text: str, why: str) -> None:
        super().__init__(why)
        self.text = text


@dataclass(frozen=True)
class DateFormat:
    """Format of dates: regular expressions of which the first that matches a text gives its fields."""

    patterns: tuple[str, ...]

    def parse(self, texts: pa.Array) -> Parsed:
        """Return the times of texts; those of another format are not valid."""
        parsed = _parse(texts, self.patterns[0])
        for pattern in self.patterns[1:]:
            if parsed.valid.all():
                break
            more = _parse(texts, pattern)
            parsed = Parsed(*(np.where(parsed.valid, one, other) for one, other in zip(parsed, more, strict=True)))
        return parsed

    def strptime(self, text: str) -> str:
        """Return the format of one text in the words of `strptime`."""
        found = next(match for pattern in self.patterns if (match := re.match(pattern, text)))
        spans = {name: found.span(name) for name, value in found.groupdict().items() if value}
        for name, (begin, end) in sorted(spans.items(), key=lambda span: -span[1][0]):
            text = text[:begin] + ("%I" if name == "H" and "p" in spans else f"%{name}") + text[end:]
        return text


COMPACT = DateFormat((rf"^{_D['Y']}(?P<m>\d{{2}})(?P<d>\d{{2}}){_COMPACT_TIME}$",))
_CTIME = DateFormat(
    (
        rf"^(?:{_D['a']},?\s+)?{_D['b']}\s+{_D['d']}\s+(?P<H>\d{{1,2}}):(?P<M>\d{{2}}):(?P<S>\d{{2}})(?:\s+{_D['z']})?\s+{_D['Y']}$",
    )
)
FORMATS = (*(DateFormat((pattern,)) for pattern in _LENIENT.values()), COMPACT, _CTIME)


def named_format(text: str) -> DateFormat:
    """Return the format that `data.time_format` names.

    Dates in one of the recognised orders may also have another time of day, or none.

    Raises:
        UserError: If a directive is unknown or occurs twice, or year, month or day is missing.
    """
    for short, long in _COMPOUND.items():
        text = text.replace(short, long)
    parts = [part for part in re.split(r"(%[-#]?.)", text) if part]
    pattern, names = "", []
    for at, part in enumerate(parts):
        if not re.fullmatch("%[-#]?.", part):
            pattern += "".join(r"\s+" if piece.isspace() else re.escape(piece) for piece in re.split(r"(\s+)", part))
            continue
        name = _ALIASES.get(part[-1], part[-1])
        if name not in _DIRECTIVES or (name in names and name not in "%a"):
            known = ", ".join(f"%{name}" for name in _DIRECTIVES)
            raise UserError(f"data.time_format={text}: found {part}, expected directives of {known}, each once")
        names.append(name)
        beside = parts[max(at - 1, 0) : at] + parts[at + 1 : at + 2]
        is_packed = any(re.fullmatch("%[-#]?.", other) for other in beside)
        pattern += _DIRECTIVES[name].replace(r"\d{1,2}", r"\d{2}") if is_packed else _DIRECTIVES[name]
    order = "".join(name for name in names if name in "Yymbd")
    if sorted(order.lower().replace("b", "m")) != ["d", "m", "y"]:
        raise UserError(f"data.time_format={text}: expected a year, a month and a day, such as %d-%m-%Y %H:%M")
    lenient = (_LENIENT[order],) if order in _LENIENT else ()
    return DateFormat((f"^{pattern}$", *lenient))


class FormatSearch:
    """Finds the one format of all texts, which arrive in pieces."""

    def __init__(self, formats: tuple[DateFormat, ...] = FORMATS) -> None:
        self._formats = list(formats)
        self._fits = dict.fromkeys(range(len(formats)), 0)
        self._sample: dict[int, str] = {}
        self._bad: dict[int, str] = {}
        self._differ: dict[tuple[int, int], str] = {}
        self._zoned: dict[bool, str] = {}

    def add(self, texts: pa.Array) -> None:
        """Look at more texts, without nulls."""
        found = {at: parsed for at, one in enumerate(self._formats) if (parsed := one.parse(texts)).valid.any()}
        for at in self._fits:
            valid = found[at].valid if at in found else np.zeros(len(texts), bool)
            self._fits[at] += int(valid.sum())
            if at not in self._sample and valid.any():
                self._sample[at] = texts[int(valid.argmax())].as_py()
            if at not in self._bad and not valid.all():
                self._bad[at] = texts[int(valid.argmin())].as_py()
        for one, other in combinations(found, 2):
            differs = found[one].valid & found[other].valid & (found[one].micros != found[other].micros)
            if differs.any() and (one, other) not in self._differ:
                self._differ[one, other] = texts[int(differs.argmax())].as_py()
        for parsed in found.values():
            for zoned in (True, False):
                of = parsed.valid & (parsed.zoned == zoned)
                if of.any():
                    self._zoned.setdefault(zoned, texts[int(of.argmax())].as_py())

    def merge(self, other: FormatSearch) -> None:
        """Add what a search of the same formats has found in other texts."""
        for at, count in other._fits.items():
            self._fits[at] += count
        self._sample = other._sample | self._sample
        self._bad = other._bad | self._bad
        self._differ = other._differ | self._differ
        self._zoned = other._zoned | self._zoned

    def result(self) -> DateFormat:
        """Return the format.

        Raises:
            BadDateError: If no format fits all texts, or several do and give other times.
        """
        fitting = [at for at in self._fits if at not in self._bad]
        for one, other in combinations(fitting, 2):
            if (one, other) in self._differ:
                text = self._differ[one, other]
                ways = [f"'data.time_format={self._formats[at].strptime(text)}'" for at in (one, other)]
                raise BadDateError(text, f"day and month cannot be told apart in any row; give {' or '.join(ways)}")
        if fitting:
            if len(self._zoned) == 2:
                raise BadDateError(
                    self._zoned[False],
                    f"it has no time zone, but {self._zoned[True]!r} has one; expected it in all rows or in none",
                )
            return self._formats[fitting[0]]
        best = max(self._fits, key=lambda at: self._fits[at])
        if not self._fits[best]:
            raise BadDateError(
                self._bad[best],
                "expected seconds since 1970, or dates such as 2024-05-31 or 31.05.2024 12:00; "
                "data.time_format names another format, such as data.time_format=%Y.%d.%m",
            )
        sample = self._sample[best]
        words = self._formats[best].strptime(sample)
        raise BadDateError(self._bad[best], f"it is not a date in the format of {sample!r} ({words}), as most rows are")


def _parse(texts: pa.Array, pattern: str) -> Parsed:
    found = pc.extract_regex(pc.utf8_trim_whitespace(texts), pattern)
    matched = np.asarray(found.is_valid())
    if not matched.any():
        none = np.zeros(len(texts), bool)
        return Parsed(np.zeros(len(texts), np.int64), none, none)
    names = {found.type.field(at).name for at in range(found.type.num_fields)}

    def texts_of(name: str) -> pa.Array:
        return pc.fill_null(pc.struct_field(found, name), "")

    def number(name: str, default: int) -> Int64Array:
        if name not in names:
            return np.full(len(texts), default, np.int64)
        text = texts_of(name)
        return np.asarray(pc.if_else(pc.equal(text, ""), str(default), text).cast(pa.int64()))

    if "y" in names:
        year = number("y", 0)
        year = year + np.where(year < 69, 2000, 1900)
    else:
        year = number("Y", 1970)
    month = number("m", 1)
    if "b" in names:
        short = pc.utf8_slice_codeunits(pc.utf8_lower(texts_of("b")), 0, 3)
        month = np.asarray(pc.fill_null(pc.index_in(short, pa.array(_MONTHS)), 0)).astype(np.int64) + 1
    day, hour = number("d", 1), number("I" if "I" in names else "H", 0)
    minute, second = number("M", 0), number("S", 0)
    valid = matched & (month >= 1) & (month <= 12) & (minute < 60) & (second < 60) & (year >= 1)
    if "p" in names:
        half = np.asarray(pc.utf8_lower(pc.utf8_slice_codeunits(texts_of("p"), 0, 1)).to_numpy(zero_copy_only=False))
        of_half = half != ""
        valid &= ~of_half | ((hour >= 1) & (hour <= 12))
        hour = np.where(of_half, hour % 12 + 12 * (half == "p"), hour)
    first = (np.where(valid, year, 1970) - 1970) * 12 + np.where(valid, month, 1) - 1
    begin, end = (
        np.asarray(m.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)) for m in (first, first + 1)
    )
    valid &= (day >= 1) & (day <= end - begin) & (hour < 24)
    seconds = (((begin + day - 1) * 24 + hour) * 60 + minute) * 60 + second
    zoned = np.zeros(len(texts), bool)
    if "z" in names:
        zone = texts_of("z")
        zoned = np.asarray(pc.not_equal(zone, ""))
        offset = _parse_zone(zone)
        valid &= np.abs(offset) <= 18 * 3600
        seconds = seconds - offset
    micros = seconds * _MICROSECONDS
    if "f" in names:
        digits = pc.utf8_slice_codeunits(pc.utf8_rpad(texts_of("f"), 6, "0"), 0, 6)
        micros = micros + np.asarray(digits.cast(pa.int64()))
    return Parsed(micros, valid, zoned & valid)


def _parse_zone(zones: pa.Array) -> Int64Array:
    """Return offsets from UTC in seconds; int64 [N]."""
    distinct = zones.dictionary_encode()
    offsets = []
    for zone in distinct.dictionary.to_pylist():
        digits = zone[1:].replace(":", "") if zone[:1] in ("+", "-") else ""
        offset = int(digits[:2] or 0) * 3600 + int(digits[2:] or 0) * 60
        offsets.append(-offset if zone.startswith("-") else offset)
    return np.array(offsets, np.int64)[np.asarray(distinct.indices)] if len(zones) else np.zeros(0, np.int64)
