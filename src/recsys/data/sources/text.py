"""Source of text files: delimited text and JSON Lines. They are converted to Parquet once, by whole columns."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.core.errors import UserError
from recsys.core.schema import OWNERS
from recsys.data.sources.column_types import Problem, cast_text, text_type
from recsys.data.sources.delimited import DelimitedFile, TextFormat, plain_name
from recsys.data.sources.files import ENDINGS, Files, Tables, build_once, digest, find_tables, fingerprint
from recsys.data.sources.json_lines import line_of, read_json_lines
from recsys.data.sources.keys import key_names
from recsys.data.sources.tables import PROBLEM

log = logging.getLogger("recsys")

Format = Literal["csv", "jsonl"]

# Increase this number if the conversion gives other values: it is part of the names in the cache.
_VERSION = 4
_ONE_NAME = "expected names that occur once"


class _Shard(NamedTuple):
    """One file: its columns (of strings, if it is delimited), the kinds that its header names, problems, and lines."""

    file: str
    table: pa.Table
    kinds: Mapping[str, str]
    problems: Mapping[str, Problem]
    line: Callable[[int], int]


@dataclass(frozen=True)
class TextFolder:
    """Source: a folder with `interactions.csv` or `.jsonl`, a file or a folder of shards; optionally items and users.

    Attributes:
        root: path, or address that fsspec reads.
        format: csv (delimited text) or jsonl.
        timestamp: column of times, if `columns` is null.
        columns: names of the key columns, see `recsys.data.sources.tables.key_names`.
        files: table -> its file or files in the folder, if they have other names.
        text: how the files are written.
    """

    root: str
    format: Format
    timestamp: str = "timestamp"
    columns: Mapping[str, Any] | None = None
    files: Files | None = None
    text: TextFormat = field(default_factory=TextFormat)

    def __post_init__(self) -> None:
        if self.format not in get_args(Format):
            raise UserError(f"format={self.format}: expected {' or '.join(get_args(Format))}")

    def tables(self, cache: Path) -> Tables:
        """Return the files as Parquet.

        Raises:
            UserError: If a file cannot be read.
        """
        found = find_tables(self.root, ENDINGS[self.format], self.files)
        columns = self.columns or {"timestamp": self.timestamp}
        keys = {owner: key_names(columns, owner) for owner in OWNERS}
        digests = [[digest(file) for file in found.of(owner)] for owner in OWNERS]
        folder = cache / f"{self.format}-{fingerprint([_VERSION, keys, asdict(self.text), digests])}"

        def build(aside: Path) -> None:
            scratch = aside / "scratch"
            scratch.mkdir()
            shards = {owner: self._read(owner, found.of(owner), keys=keys[owner], scratch=scratch) for owner in OWNERS}
            if self.format == "csv":
                shards = _with_types(shards, keys, self.text.decimal)
            for owner, files in shards.items():
                paths = _paths(aside / f"{owner}.parquet", len(files))
                if len(files) > 1:
                    (aside / f"{owner}.parquet").mkdir()
                for shard, path in zip(files, paths, strict=True):
                    write_parquet(_with_problems(shard), path)
            shutil.rmtree(scratch)

        build_once(folder, build)
        made = [tuple(map(str, _paths(folder / f"{o}.parquet", len(found.of(o))))) for o in OWNERS]
        origins = {m: f for o, files in zip(OWNERS, made, strict=True) for m, f in zip(files, found.of(o), strict=True)}
        return Tables(made[0], made[1], made[2], origins=origins)

    def _read(
        self, owner: str, files: Sequence[str], *, keys: Mapping[str, Sequence[str]], scratch: Path
    ) -> list[_Shard]:
        shards = []
        for number, file in enumerate(files):
            log.info("reading %s", file)
            path = scratch / f"{owner}-{number}.arrow"
            shards.append(self._json(file) if self.format == "jsonl" else self._csv(owner, file, keys, path))
        return shards

    def _json(self, file: str) -> _Shard:
        encoding = self.text.encoding
        table, problems = read_json_lines(file, encoding)
        return _Shard(file, table, {}, problems, lambda row: line_of(file, encoding, row))

    def _csv(self, owner: str, file: str, keys: Mapping[str, Sequence[str]], path: Path) -> _Shard:
        names = (self.text.header or {}).get(owner)
        expected = [candidates for key, candidates in keys.items() if key in ("user_id", "item_id")]
        opened = DelimitedFile(file, self.text, names=names, expected=expected)
        opened.write_columns(path)
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        names, kinds = list(table.column_names), {}
        if all(plain_name(name) != name for name in names):
            # A configuration may name a column with its type, too.
            named = {name for candidates in keys.values() for name in candidates}
            header, names = names, [name if name in named else plain_name(name) for name in names]
            kinds = {name: full.rpartition(":")[2] for name, full in zip(names, header, strict=True)}
        problems = {name: Problem(-1, "occurs twice in", _ONE_NAME) for name in names if names.count(name) > 1}
        columns = dict(zip(names, table.columns, strict=True))
        table = pa.table(columns | {name: pa.nulls(len(table), pa.string()) for name in problems})
        return _Shard(file, table, kinds, problems, opened.line)


def _paths(place: Path, num: int) -> list[Path]:
    return [place] if num == 1 else [place / f"{number:05}.parquet" for number in range(num)]


def _with_types(
    shards: Mapping[str, list[_Shard]], keys: Mapping[str, Mapping[str, Sequence[str]]], decimal: str
) -> dict[str, list[_Shard]]:
    """Return the tables with a type for each column: that of its values in all shards, and of an id in all tables."""
    kinds: dict[tuple[str, str], pa.DataType] = {}
    problems: dict[tuple[str, str], Problem] = {}
    for owner, files in shards.items():
        ids = {name for key in ("user_id", "item_id") for name in keys[owner].get(key, ())}
        for name in dict.fromkeys(name for shard in files for name in shard.table.column_names):
            holders = [shard for shard in files if name in shard.table.column_names]
            column = pa.chunked_array([c for shard in holders for c in shard.table[name].chunks], pa.string())
            kind = holders[0].kinds.get(name)
            kinds[owner, name], problem = text_type(column, decimal, kind, is_id=name in ids)
            if problem is not None:
                problems[owner, name] = problem
    for key in ("user_id", "item_id"):
        found = [
            next(((owner, name) for name in keys[owner][key] if (owner, name) in kinds), (owner, ""))
            for owner in OWNERS
            if key in keys[owner]
        ]
        found = [one for one in found if one in kinds]
        if not all(pa.types.is_integer(kinds[one]) for one in found):
            # One id such as B7 or 007 makes the ids of every table text, exactly as the files have it.
            for one in found:
                problems.pop(one, None)
                kinds[one] = kinds[one] if pa.types.is_floating(kinds[one]) else pa.string()
    return {owner: _cast(owner, files, kinds, problems, decimal) for owner, files in shards.items()}


def _cast(
    owner: str,
    files: Sequence[_Shard],
    kinds: Mapping[tuple[str, str], pa.DataType],
    problems: Mapping[tuple[str, str], Problem],
    decimal: str,
) -> list[_Shard]:
    found, before = [], dict.fromkeys([name for one, name in kinds if one == owner], 0)
    for shard in files:
        columns, own = {}, dict(shard.problems)
        for name in shard.table.column_names:
            column, problem = shard.table[name], problems.get((owner, name))
            if problem is not None and 0 <= problem.row - before[name] < len(column):
                own.setdefault(name, problem._replace(row=problem.row - before[name]))
            before[name] += len(column)
            columns[name], problem = cast_text(column, kinds[owner, name], decimal)
            if problem is not None:
                own.setdefault(name, problem)
        found.append(shard._replace(table=pa.table(columns), problems=own))
    return found


def _with_problems(shard: _Shard) -> pa.Table:
    """Return the columns of a shard with their problems as metadata, which keeps them with the converted file."""
    fields = []
    for column in shard.table.schema:
        if (problem := shard.problems.get(column.name)) is not None:
            line = shard.line(problem.row) if problem.row >= 0 else 1
            column = column.with_metadata({PROBLEM: f"{problem.found} line {line}; {problem.advice}"})
        fields.append(column.with_nullable(True))
    return shard.table.cast(pa.schema(fields))


def write_parquet(table: pa.Table, file: Path) -> None:
    """Write a table without the metadata of its source."""
    pq.write_table(table.replace_schema_metadata(None), file, row_group_size=1 << 20)
