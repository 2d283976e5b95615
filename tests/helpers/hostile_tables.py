"""Folders of tables with hostile names, types and values, and what Arrow, `csv` and `json` say that they hold."""

from __future__ import annotations

import csv
import datetime
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

FOLDERS = ["d", "week[1]", "a=b", "x*y?", "a, b%20", "ü #'\"", "{0}${x}~", "back\\slash", "_hidden", ".dot", "c:d"]
NAMES = [
    "x", "X", "id", "ID", "file_row_number", "FILE_INDEX", "filename", "rowid", "_metadata", "", "a.b", "a", "a`b",
    'q"q', "it's", "SELECT", "*", "ü", "Ü", "ß", "SS", "日本", "😀", "user_id:token", "__index_level_0__", "a/b", "a,b",
    "a;b", "a\nb", " lead", "trail ", "\t", "${x}", "%s", "{0}", "null", "1", "row", "shard", "time", "column_0",
    "feature_0", "item_idx", "engaged", "x" * 200, "\\", "a=b", "[0]", "-", "user_id", "item_id", "timestamp", "split",
]  # fmt: skip
WORDS = [
    "NA", "None", "null", "nan", "inf", "-", "007", "7", "7.0", "1e5", "true", "True", "2024-01-01", "a,b", 'say "x"',
    "2024-01-01T00:00:00Z", "a\nb", "a\r\nb", " lead", "trail ", "ü", "日本", "😀", "a'b", "\\N", "#x", "=1+1", '"',
    "\t", "|", ";", "a;b", "%", "{}", "[1]", "$x", "-0", "+1", "1_000", "0x1F", "１２", "\ufeff", "x" * 300, "\x1f",
    "\u2028",
    "9" * 18, "9" * 19, "12345678901234567890", "1,5", "1,234.5", "NULL", "N/A", "A", "B7",
]  # fmt: skip
# Words of which a column of delimited text may seem to hold numbers.
NUMBERS = {
    "NA", "None", "null", "nan", "inf", "-", "007", "7", "7.0", "1e5", "-0", "\\N", "9" * 18, "9" * 19, "NULL", "N/A",
    "12345678901234567890", "1,5", "1,234.5", None,
}  # fmt: skip
Draw = Callable[[random.Random], Any]
INTEGERS: dict[str, Draw] = {
    "small": lambda r: r.randrange(-5, 5),
    "wide": lambda r: r.choice([0, 2**31, 2**53 + 1, -(2**62), 2**63 - 1, -(2**63)]),
}
TEXTS: dict[str, Draw] = {
    "words": lambda r: r.choice(WORDS),
    "plain": lambda r: r.choice("abc"),
    "digits": lambda r: str(r.randrange(100)),
}
VALUES: dict[str, Draw] = {
    **INTEGERS,
    **TEXTS,
    "float": lambda r: r.choice([0.5, -1.25, 1e300, 5e-324, 0.1, 3.0, float(2**60)]),
    "bool": lambda r: r.random() < 0.5,
    "tags": lambda r: r.choices(WORDS, k=r.randrange(3)),
    "vector": lambda r: [r.random(), -1.5],
}
PARQUET_ONLY: dict[str, Draw] = {
    "not finite": lambda r: r.choice([float("inf"), float("nan"), 1.5]),
    "date": lambda r: datetime.date(2024, 1, r.randrange(1, 29)),
    "moment": lambda r: datetime.datetime(2024, 1, 1, 0, 0, 0, r.randrange(10**6)),
    "bytes": lambda r: bytes([r.randrange(256)]),
    "struct": lambda r: {"h": r.randrange(3)},
}
ARROW = [pa.int64(), pa.int32(), pa.uint64(), pa.uint8(), pa.int16()]
STRINGS = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()]


@dataclass
class Case:
    """One folder of tables.

    Attributes:
        root: folder.
        format: parquet, csv or jsonl.
        columns: `data.columns` of the folder.
        delimiter: `data.delimiter`.
        truth: owner -> file -> names and rows as the plain reader of the format gives them.
        must_be_read: False if the tables have a fault, so that a refusal is right as well.
    """

    root: Path
    format: str
    columns: dict[str, Any]
    delimiter: str | None = None
    truth: dict[str, dict[str, tuple[list[str], list[list[Any]]]]] = field(default_factory=dict)
    must_be_read: bool = True


class Writer:
    """Draws and writes the tables of one case."""

    def __init__(self, folder: Path, seed: int) -> None:
        rng = self._rng = random.Random(seed)
        formats = ["parquet", "csv", "jsonl"]
        self.case = Case(folder / f"{seed}" / rng.choice(FOLDERS), formats[seed % 3], {})
        self._delimiter = rng.choice(",,\t;|")
        self._types: dict[str, list[pa.DataType]] = {}

    def write(self) -> Case:
        """Write the folder and return what it holds."""
        rng, case = self._rng, self.case
        case.root.mkdir(parents=True)
        user, item, time = (self._key(key) for key in ("user_id", "item_id", "timestamp"))
        own = item if rng.random() < 0.7 else "own id"
        case.columns = {"user_id": user, "item_id": item, "timestamp": time, "items": {"item_id": own}}
        if rng.random() < 0.5:
            case.delimiter = self._delimiter
        kinds = [rng.choice(["small", "small", "wide", "words", "plain", "digits"]) for _ in range(2)]
        users, items = ([VALUES[kind](rng) for _ in range(4)] for kind in kinds)
        items = list(dict.fromkeys(items))
        others = self._columns(3)
        for part in range(rng.choice([1, 1, 2])):
            rows = [[rng.choice(users), rng.choice(items), 1_700_000_000 + rng.randrange(5)] for _ in range(9)]
            rows = [[users[0], one, 1_700_000_000] for one in items] + rows
            self._table("interactions", part, keys=[user, item, time], rows=rows, others=others)
        if rng.random() < 0.7:
            self._table("items", 0, keys=[own], rows=[[one] for one in items], others=self._columns(5))
        return case

    def _key(self, key: str) -> str:
        rng = self._rng
        name = rng.choice([name for name in NAMES if name]) if rng.random() < 0.4 else key
        taken = [value for value in self.case.columns.values() if isinstance(value, str)]
        name = key if name.casefold() in {one.casefold() for one in taken} else name
        self.case.columns[key] = name
        return name

    def _columns(self, most: int) -> list[tuple[str, str]]:
        """Draw the names and kinds of some columns."""
        kinds = VALUES | (PARQUET_ONLY if self.case.format == "parquet" else {})
        named = [kind for kind in kinds if self.case.format != "csv" or kind not in ("tags", "vector")]
        return [(self._rng.choice(NAMES), self._rng.choice(named)) for _ in range(self._rng.randrange(most + 1))]

    def _table(
        self, owner: str, part: int, *, keys: list[str], rows: list[list[Any]], others: list[tuple[str, str]]
    ) -> None:
        rng, case = self._rng, self.case
        names, columns = [*keys], [[row[place] for row in rows] for place in range(len(keys))]
        for name, kind in others:
            names.append(name)
            columns.append([None if rng.random() < 0.2 else (VALUES | PARQUET_ONLY)[kind](rng) for _ in rows])
            case.must_be_read &= case.format != "csv" or kind != "words" or not {*columns[-1]} <= NUMBERS
        if rng.random() < 0.1:
            self._damage(columns)
        order = rng.sample(range(len(names)), len(names))
        names, columns = [names[place] for place in order], [columns[place] for place in order]
        alike = [name.casefold() for name in names]
        case.must_be_read &= all(alike.count(key.casefold()) == 1 for key in keys)
        case.must_be_read &= owner == "interactions" or len({*alike}) == len(alike)
        write = {"parquet": self._parquet, "csv": self._csv, "jsonl": self._json}[case.format]
        file = case.root / f"{owner}.{case.format}" / f"{part} {rng.choice(FOLDERS).lstrip('_.')}.{case.format}"
        file.parent.mkdir(exist_ok=True)
        case.truth.setdefault(owner, {})[str(file)] = write(file, names, columns)

    def _damage(self, columns: list[list[Any]]) -> None:
        """Put a null or a value of another type into one column."""
        column = self._rng.choice(columns)
        column[self._rng.randrange(len(column))] = None if self._rng.random() < 0.5 else "odd"
        self.case.must_be_read = False

    def _parquet(self, file: Path, names: list[str], columns: list[list[Any]]) -> tuple[list[str], list[list[Any]]]:
        arrays = [self._array(name, column) for name, column in zip(names, columns, strict=True)]
        pq.write_table(pa.Table.from_arrays(arrays, names=names), file)
        read = pq.ParquetFile(file).read()
        held = [column.to_pylist() for column in read.columns]
        return read.column_names, [list(row) for row in zip(*held, strict=True)]

    def _array(self, name: str, column: list[Any]) -> pa.Array:
        """Return an array, of one type for all parts of a column if its values allow."""
        for kind in self._types.setdefault(name, self._rng.sample(ARROW + STRINGS, 2)):
            if kind in ARROW and float in {*map(type, column)}:
                continue
            try:
                return pa.array(column, kind)
            except (pa.ArrowException, TypeError, OverflowError):
                continue
        try:
            return pa.array(column)
        except (pa.ArrowException, TypeError, OverflowError):
            return pa.array([None if value is None else str(value) for value in column])

    def _csv(self, file: Path, names: list[str], columns: list[list[Any]]) -> tuple[list[str], list[list[Any]]]:
        rng = self._rng
        style = {"delimiter": self._delimiter, "lineterminator": rng.choice(["\n", "\r\n"])}
        trailing = [""] if rng.random() < 0.2 else []
        rows = [[_field(value) for value in row] + trailing for row in zip(*columns, strict=True)]
        with file.open("w", encoding=rng.choice(["utf-8", "utf-8-sig"]), newline="") as opened:
            writer = csv.writer(opened, quoting=rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), **style)
            writer.writerow(names + (trailing if rng.random() < 0.5 else []))
            writer.writerows(rows)
        if self.case.delimiter is None:
            # A header such as "a;b,c" has several readings.
            self.case.must_be_read &= not any(mark in name for name in names for mark in ",;|\t")
        with file.open(encoding="utf-8-sig", newline="") as opened:
            header, *held = csv.reader(opened, delimiter=self._delimiter)
        # Two columns of one name cannot be told apart; `csv.DictReader` keeps the last.
        return header[: len(names)], [row[: len(names)] for row in held if row]

    def _json(self, file: Path, names: list[str], columns: list[list[Any]]) -> tuple[list[str], list[list[Any]]]:
        rng = self._rng
        rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        kept = [{n: v for n, v in row.items() if v is not None or rng.random() < 0.5} for row in rows]
        end = rng.choice(["\n", "\r\n"])
        text = "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + end for row in kept)
        file.write_text(text, encoding="utf-8", newline="")
        held = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
        unique = list(dict.fromkeys(names))
        # A column whose integers and floats cannot share a type, or whose values have two types, has no exact reading.
        return unique, [[row.get(name) for name in unique] for row in held]


def _field(value: Any) -> str:
    return "" if value is None else str(value)


def equal(found: Any, held: Any, format: str) -> bool:
    """Return whether a value that was read is the one that the file holds."""
    if format == "csv":
        if found is None or held == "":
            return found is None and held == ""
        if isinstance(found, bool):
            return str(held).lower() == str(found).lower()
        return str(found) == held or (isinstance(found, float) and float(held) == found)
    if isinstance(held, datetime.datetime | datetime.date):
        return bool(found == _micros(held))
    if isinstance(held, list) and isinstance(found, Sequence) and not isinstance(found, str):
        return len(found) == len(held) and all(equal(f, h, format) for f, h in zip(found, held, strict=True))
    if isinstance(held, float) and held != held:
        return isinstance(found, float) and found != found
    return bool(found == held) and isinstance(found, bool) == isinstance(held, bool)


def _micros(moment: datetime.datetime | datetime.date) -> int:
    if not isinstance(moment, datetime.datetime):
        moment = datetime.datetime(moment.year, moment.month, moment.day)
    return (moment - datetime.datetime(1970, 1, 1)) // datetime.timedelta(microseconds=1)
