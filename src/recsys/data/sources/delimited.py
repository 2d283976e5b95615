"""Delimited text (CSV and its relatives) as columns of strings: the fields of the file, without a guess about types.

The `csv` module reads in its strict mode: text after a closing quote, a quote that is never closed and rows of another
length are errors with their line. A missing value is an empty field.
"""

from __future__ import annotations

import codecs
import csv
import gc
import io
import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recsys.core.errors import UserError
from recsys.data.sources.files import COMPRESSED, open_file

BLOCK_ROWS = 65_536
_WORDS: dict[Any, str | None] = {
    "none": None,
    "comma": ",",
    "tab": "\t",
    "\\t": "\t",
    "semicolon": ";",
    "pipe": "|",
    "space": " ",
    "point": ".",
}
_DETECTED = {",": "comma", "\t": "tab", ";": "semicolon", "|": "pipe"}
# First bytes of compressed files, and of files that are no text.
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
_OTHER_FILES = {
    b"PK\x03\x04": "an archive or a workbook (zip, xlsx)",
    b"\xfd7zXZ": "a file of xz",
    b"PAR1": "a Parquet file (data=parquet reads it)",
}
# Stands for delimiters of several characters.
_UNIT_SEPARATOR = "\x1f"


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """Format of text files.

    Attributes:
        delimiter: character between fields, or comma, tab, semicolon, pipe, space. Null detects it in the header.
        encoding: encoding of the files, such as utf-8, latin-1, cp1252 or utf-16.
        quote: character around fields that hold a delimiter or a line break; none reads quotes as text.
        decimal: decimal mark of numbers: point or comma.
        missing: words that stand for a missing value, beside the empty field.
        header: table -> names of its columns, for files without a header.
    """

    delimiter: str | None = None
    encoding: str = "utf-8"
    quote: str | None = '"'
    decimal: str = "."
    missing: Sequence[str] | str = ()
    header: Mapping[str, Sequence[str] | None] | None = None

    def __post_init__(self) -> None:
        for key in ("delimiter", "quote", "decimal"):
            value = getattr(self, key)
            object.__setattr__(self, key, _WORDS.get(value, value))
        object.__setattr__(self, "missing", [self.missing] if isinstance(self.missing, str) else list(self.missing))
        if self.decimal not in (".", ","):
            raise UserError(f"data.decimal={self.decimal}: expected point or comma")
        if self.quote is not None and len(self.quote) != 1:
            raise UserError(f"data.quote={self.quote}: expected one character, or none")
        if self.delimiter is not None and len(self.delimiter) > 1 and self.quote is not None:
            raise UserError(
                f"data.delimiter={self.delimiter}: quotes cannot be read with a delimiter of several characters; "
                f"data.quote=none reads them as text"
            )
        try:
            codecs.lookup(self.encoding)
        except LookupError as error:
            raise UserError(f"data.encoding={self.encoding}: no such encoding; expected utf-8, latin-1, ...") from error


@contextmanager
def open_text(file: str, encoding: str) -> Iterator[io.TextIOWrapper]:
    """Open a text file, decompressed if its name ends so. Line ends are kept.

    Raises:
        UserError: If the file cannot be read or is not text of this encoding, now or while it is read.
    """
    try:
        with _open_bytes(file) as opened:
            start = opened.read(3)
        if start == codecs.BOM_UTF8 or codecs.lookup(encoding).name == "utf-8":
            encoding = "utf-8-sig"
        if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) and not re.search("16|32", encoding):
            raise UserError(f"{file}: found UTF-16; data.encoding=utf-16 reads it")
        with _open_bytes(file) as opened:
            yield io.TextIOWrapper(opened, encoding=encoding, newline="")
    except UnicodeError as error:
        raise UserError(f"{file}: {_bad_byte(file, encoding)}") from error
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error


def _open_bytes(file: str) -> Any:
    """Open a file, decompressed if its first bytes say so. Its name may have any ending."""
    with open_file(file) as opened:
        start = opened.read(6)
    if other := next((name for magic, name in _OTHER_FILES.items() if start.startswith(magic)), None):
        raise UserError(f"{file}: found {other}, expected text, which may be compressed ({', '.join(COMPRESSED)})")
    packing = next((packing for magic, packing in _PACKED.items() if start.startswith(magic)), None)
    opened = open_file(file)
    return opened if packing is None else pa.CompressedInputStream(pa.PythonFile(opened, "r"), packing)


def _bad_byte(file: str, encoding: str) -> str:
    """Return the place of the first byte that is not text of the encoding."""
    decoder, line = codecs.getincrementaldecoder(encoding)(), 1
    with _open_bytes(file) as opened:
        chunk = b" "
        while chunk:
            chunk = opened.read(1 << 20)
            try:
                line += decoder.decode(chunk, final=not chunk).count("\n")
            except UnicodeDecodeError as error:
                line += bytes(error.object[: error.start]).count(b"\n")
                found = (
                    f"line {line}: the byte 0x{error.object[error.start]:02x} is not {encoding.removesuffix('-sig')}"
                )
                return f"{found}; data.encoding=latin-1 (or another one) reads files in an older encoding"
    return f"not text in {encoding}"


class DelimitedFile:
    """One file of delimited text.

    Args:
        file: path or address.
        format: how it is written.
        names: names of the columns if the file has no header, else None.
        expected: names of each key column. They decide between several possible delimiters.

    Attributes:
        header: names of the columns; a field that is unnamed has the name "".

    Raises:
        UserError: If the file cannot be read, or its delimiter is not clear.
    """

    def __init__(
        self, file: str, format: TextFormat, *, names: Sequence[str] | None, expected: Sequence[Sequence[str]]
    ) -> None:
        self._file, self._format, self._names = file, format, names
        with open_text(file, format.encoding) as text:
            start = text.read(1 << 20)
        if not start.strip("\r\n"):
            raise UserError(f"{file}: no rows")
        self._delimiter = self._detect(start, expected) if format.delimiter is None else format.delimiter
        try:
            self.header = list(names) if names is not None else self._first(start, self._delimiter)
        except csv.Error as error:
            raise UserError(f"{file}: line 1: {self._why(error)}") from error

    def _first(self, start: str, delimiter: str) -> list[str]:
        return next((row for row in self._reader(io.StringIO(start, newline=""), delimiter) if row), [])

    def _detect(self, start: str, expected: Sequence[Sequence[str]]) -> str:
        splits = {}
        for delimiter in _DETECTED:
            with suppress(csv.Error):
                splits[delimiter] = self._first(start, delimiter)
        names = {delimiter: {*fields, *map(plain_name, fields)} for delimiter, fields in splits.items()}
        if self._names is not None:
            fitting = [delimiter for delimiter, fields in splits.items() if len(fields) == len(self._names)]
        else:
            fitting = [d for d in splits if all(not names[d].isdisjoint(candidates) for candidates in expected)]
        possible = fitting or [delimiter for delimiter, fields in splits.items() if len(fields) > 1]
        if len({tuple(splits[delimiter]) for delimiter in possible}) > 1:
            choices = " or ".join(f"data.delimiter={_DETECTED[delimiter]}" for delimiter in possible)
            line = start.splitlines()[0][:200]
            raise UserError(f"{self._file}: line 1 can be split in several ways ({line}); {choices} chooses one")
        if not possible and self._names is None and re.search(r"[^\w\s.-]", line := start.splitlines()[0]):
            raise UserError(
                f"{self._file}: line 1 has no comma, tab, semicolon or pipe ({line[:200]}); data.delimiter=... names "
                f"another delimiter, one of several characters together with data.quote=none"
            )
        chosen = possible[0] if possible else ","
        rows = [line for line in start.splitlines() if line][1:]
        if self._names is None and rows and len(splits[chosen]) == 1 and rows[0][-1] in _DETECTED:
            # A header of one column shows no delimiter, but its rows may end in one.
            return rows[0][-1]
        return chosen

    def _reader(self, text: Any, delimiter: str) -> Any:
        csv.field_size_limit(sys.maxsize)
        quote = self._format.quote
        if len(delimiter) > 1:
            text, delimiter = _replaced(text, delimiter), _UNIT_SEPARATOR
        if quote is None:
            return csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
        return csv.reader(text, delimiter=delimiter, quotechar=quote, strict=True)

    def _why(self, error: csv.Error) -> str:
        quote = self._format.quote
        if "unexpected end" in str(error):
            return f"the quote {quote} is never closed; data.quote=none reads quotes as text"
        return f"text after the closing quote {quote}; data.quote=none reads quotes as text"

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield each row below the header with the line on which it begins, slowly. Errors name their line."""
        with open_text(self._file, self._format.encoding) as text:
            reader = self._reader(text, self._delimiter)
            line, in_header = 1, self._names is None
            while True:
                try:
                    row = next(reader, None)
                except csv.Error as error:
                    raise UserError(f"{self._file}: line {line}: {self._why(error)}") from error
                if row is None:
                    return
                if row and not in_header:
                    yield line, row
                in_header = in_header and not row
                line = reader.line_num + 1

    def line(self, number: int) -> int:
        """Return the line on which the row `number` begins, counted from 0 below the header."""
        return next(itertools.islice(self._rows(), number, None))[0]

    def _width(self) -> int:
        """Return the number of fields of every row, which may end in a delimiter where the header does not."""
        first = next(self._rows(), (0, self.header))[1]
        header = self.header
        if len(first) == len(header) + 1 and not first[-1]:
            header.append("")
        elif len(first) == len(header) - 1 and not header[-1]:
            header.pop()
        return len(header)

    def write_columns(self, path: Path) -> None:
        """Write the named columns as strings into an Arrow file. Empty fields are null.

        Raises:
            UserError: If a row has another number of fields than the header. The message names file and line.
        """
        num_fields, num_named = len(self.header), self._width()
        kept = [number for number, name in enumerate(self.header) if name]
        schema = pa.schema([(self.header[number], pa.string()) for number in kept])
        missing = pa.array(["", *self._format.missing], pa.string())
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for rows in self._blocks():
                columns = list(zip(*rows, strict=True)) if {*map(len, rows)} == {num_named} else []
                if not columns or (num_named > num_fields and any(columns[-1])):
                    self._refuse_ragged(num_fields, num_named)
                arrays = [pa.array(columns[number], pa.string()) for number in kept]
                arrays = [pc.if_else(pc.is_in(array, value_set=missing), None, array) for array in arrays]
                writer.write_batch(pa.record_batch(arrays, schema=schema))

    def _blocks(self) -> Iterator[list[list[str]]]:
        """Yield the rows below the header in blocks. Without garbage collection, which would take half of the time."""
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            with open_text(self._file, self._format.encoding) as text:
                rows = filter(None, self._reader(text, self._delimiter))
                if self._names is None:
                    next(rows, None)
                while block := list(itertools.islice(rows, BLOCK_ROWS)):
                    yield block
        except csv.Error as error:
            for _ in self._rows():
                pass  # reading slowly finds the line and raises
            raise UserError(f"{self._file}: {self._why(error)}") from error
        finally:
            if was_enabled:
                gc.enable()

    def _refuse_ragged(self, num_fields: int, num_named: int) -> None:
        for line, row in self._rows():
            if len(row) != num_named or (num_named > num_fields and row[-1]):
                expected = f"{num_fields} as in the header" if self._names is None else f"{num_fields} (data.header)"
                if num_named > num_fields:
                    expected = f"{num_named} as in the first row, the last one empty"
                raise UserError(f"{self._file}: line {line}: found {len(row)} fields, expected {expected}")


def _replaced(text: Iterable[str], delimiter: str) -> Iterator[str]:
    return (line.replace(delimiter, _UNIT_SEPARATOR) for line in text)


def plain_name(name: str) -> str:
    """Return the name of a column without a type of RecBole such as `:token`."""
    stem, colon, kind = name.rpartition(":")
    return stem if colon and kind in ("token", "token_seq", "float", "float_seq") else name
