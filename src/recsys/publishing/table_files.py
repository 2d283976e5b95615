"""Files of users and items, which are read as the training data is: Parquet, delimited text or JSON Lines."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.core.errors import UserError, nearest
from recsys.core.schema import Owner
from recsys.data.encoding import plain
from recsys.data.sources.column_types import INTEGER, Problem, cast_text, text_type
from recsys.data.sources.delimited import DelimitedFile, TextFormat
from recsys.data.sources.files import COMPRESSED, ENDINGS
from recsys.data.sources.json_lines import read_json_lines
from recsys.data.sources.keys import key_names
from recsys.publishing.frames import as_ids

_FORMATS = {ending: format for format, endings in ENDINGS.items() for ending in endings}


def read_table(
    path: Path,
    owner: Owner,
    *,
    id_type: pa.DataType,
    data: Mapping[str, Any] | None = None,
    texts: Collection[str] = (),
) -> pa.Table:
    """Return a table whose ids have our name and the type that the data has.

    Args:
        path: file that ends in .parquet, .csv, .tsv, .jsonl or the like; text files may be compressed.
        owner: users or items.
        id_type: type of the ids in the data.
        data: configuration of the training data, which names the ids and says how text files are written.
        texts: columns that are text in the training data. They stay text here, even if all values look like numbers.

    Raises:
        UserError: If the file cannot be read, has no column of ids, or an id is null or of another type. The message
            names file, column and row.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    format, settings = _format(path), data or {}
    key = "user_id" if owner == "users" else "item_id"
    candidates = key_names(settings.get("columns") or {}, owner)[key]
    if format == "csv":
        table, problems = _read_text(path, owner, candidates, settings=settings, texts=texts)
    elif format == "jsonl":
        table, problems = read_json_lines(str(path), settings.get("encoding", "utf-8"))
    else:
        table, problems = _read_parquet(path), {}
    _refuse_twins(path, table.column_names)
    name = next((name for name in candidates if name in table.column_names), None)
    if name is None:
        close = nearest(candidates[0], table.column_names)
        raise UserError(f"{path}: column '{candidates[0]}' is missing{close}; data.columns.{key} names it")
    for other, problem in problems.items():
        if other != name:
            # The settings of features are those of the training.
            advice = re.sub(r"(^|[,;] )data\.FEATURE.*", "", problem.advice) or "expected numbers"
            raise UserError(f"{path}: column '{other}' {problem.found} row {problem.row}; {advice}")
    ids = _ids(table[name], id_type, place=f"{path}: column '{name}'", is_text=format == "csv")
    others = [column for column in table.column_names if column not in (name, key)]
    return pa.table({key: ids, **{column: table[column] for column in others}})


def _refuse_twins(path: Path, names: list[str]) -> None:
    if twin := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{path}: found two columns '{twin}', expected one")


def _format(path: Path) -> str:
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSED]
    return _FORMATS.get(suffixes[-1] if suffixes else "", "parquet")


def _read_parquet(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        expected = "expected a name that ends in .csv or .jsonl for a text file"
        raise UserError(f"{path}: not a readable Parquet file ({error}); {expected}") from error


def _read_text(
    path: Path, owner: Owner, candidates: Sequence[str], *, settings: Mapping[str, Any], texts: Collection[str]
) -> tuple[pa.Table, dict[str, Problem]]:
    fields = {field.name for field in dataclasses.fields(TextFormat)} - {"header"}
    form = TextFormat(**{name: settings[name] for name in fields if name in settings})
    names = (settings.get("header") or {}).get(owner)
    file = DelimitedFile(str(path), form, names=names, expected=[candidates])
    with tempfile.TemporaryDirectory() as folder:
        file.write_columns(Path(folder, "columns.arrow"))
        table = pa.ipc.open_file(Path(folder, "columns.arrow").read_bytes()).read_all()
    _refuse_twins(path, table.column_names)
    columns, problems = {}, {}
    for name in table.column_names:
        column = table[name]
        if name not in candidates and name not in texts:
            kind, problem = text_type(column, form.decimal, None)
            column, other = cast_text(column, kind, form.decimal)
            if found := problem or other:
                problems[name] = found
        columns[name] = column
    return pa.table(columns), problems


def _ids(column: pa.ChunkedArray, kind: pa.DataType, *, place: str, is_text: bool) -> pa.Array:
    ids = plain(column)
    if not len(ids):
        raise UserError(f"{place}: no rows")
    if ids.null_count:
        raise UserError(f"{place} is null in row {pc.index(pc.is_null(ids), True).as_py()}")
    if is_text and pa.types.is_integer(kind):
        is_integer = pc.match_substring_regex(ids, INTEGER)
        if not pc.all(is_integer).as_py():
            row = pc.index(is_integer, False).as_py()
            raise UserError(f"{place} holds {ids[row].as_py()!r} in row {row}, but the ids of the data are {kind}")
        return ids.cast(kind)
    return as_ids(ids, kind, place)
