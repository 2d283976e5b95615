"""Writes recorded impressions as a folder of data, in which items without engagement are exposures.

The folder is read with `data=parquet data.root=OUT data.engaged=engaged`: rows whose `engaged` is false are exposures.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from recsys.core.errors import UserError
from recsys.core.io import build_folder
from recsys.serving.impressions import ImpressionStore
from recsys.serving.impressions.records import SIMILAR

ENGAGED = "engaged"
_KEYS = ("user_id", "item_id", "timestamp")
_ROWS = 200_000
# A folder of shards has the name of a file.
_SHARDS = "interactions.parquet"
Row = tuple[int | str, int | str, int, bool]


@dataclass(frozen=True, kw_only=True)
class ExposureSettings:
    """Answers and outcomes that become exposures.

    Attributes:
        since: UTC seconds; earlier answers are left out.
        top: items of an answer that a user sees, from its begin.
        actions: outcomes that are engagement; None for any.
    """

    since: int = 0
    top: int = 20
    actions: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.top < 1:
            raise UserError(f"top: found {self.top}, expected at least 1")


def write_exposures(
    store: ImpressionStore, out: Path, *, settings: ExposureSettings, data: Path | None = None
) -> dict[str, int]:
    """Write the folder, and return the number of exposures, engagements and events.

    Without `data`, items with engagement become events of the time of their outcome. With it, the events are those of
    the folder `data`, which logs engagement already, and only exposures are added; its other files are copied.

    Raises:
        UserError: If the folder exists, no impression has a user, or the ids of both have different types.
        StoreError: If the store cannot answer.
    """
    if out.exists():
        raise UserError(f"out: {out} exists; expected a folder that does not")
    events = None if data is None else _events(data)
    found = {"exposures": 0, "engagements": 0, "events": 0}
    with build_folder(out) as folder:
        (folder / _SHARDS).mkdir()
        schema = None
        for number, rows in enumerate(_batches(store, settings)):
            kept = [row for row in rows if events is None or not row[3]]
            if events is None and schema is None:
                schema = pa.schema(
                    [*((name, _type_of(kept, place)) for place, name in enumerate(_KEYS[:2])),
                     ("timestamp", pa.int64()), (ENGAGED, pa.bool_())]
                )  # fmt: skip
            elif events is not None:
                schema = events.schema.append(pa.field(ENGAGED, pa.bool_()))
            assert schema is not None
            pq.write_table(_table(kept, schema), folder / _SHARDS / f"impressions-{number:05d}.parquet")
            found["exposures"] += sum(not row[3] for row in kept)
            found["engagements"] += sum(row[3] for row in kept)
        if schema is None:
            raise UserError("impressions: none has a user; impressions.share of the servers records answers")
        if events is not None and data is not None:
            found["events"] = _copy(events, folder, schema=schema, data=data)
    return found


def _batches(store: ImpressionStore, settings: ExposureSettings) -> Iterator[list[Row]]:
    wanted = settings.actions
    acted: dict[tuple[bytes, int, int | str], int] = {}
    for one in store.outcomes():
        if wanted is None or one.action in wanted:
            key = (one.batch, one.place, one.item_id)
            acted[key] = min(acted.get(key, one.at), one.at)
    rows: list[Row] = []
    for name, batch in store.batches(settings.since):
        for place, shown in enumerate(batch.impressions):
            if shown.user_id is None or shown.generator == SIMILAR or shown.at < settings.since:
                continue
            for position, item in enumerate(shown.item_ids):
                at = acted.get((name, place, item))
                # An item that a user engaged with was seen, wherever it was.
                if at is not None or position < settings.top:
                    rows.append((shown.user_id, item, shown.at if at is None else at, at is not None))
        if len(rows) >= _ROWS:
            yield rows
            rows = []
    if rows:
        yield rows


def _type_of(rows: Sequence[Row], place: int) -> pa.DataType:
    kinds = {type(row[place]) for row in rows}
    if len(kinds) > 1:
        raise UserError(f"{_KEYS[place]}: found numbers and texts in the impressions, expected ids of one type")
    return pa.int64() if kinds == {int} else pa.string()


def _table(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    columns: dict[str, Any] = dict(zip((*_KEYS, ENGAGED), zip(*rows, strict=True), strict=True)) if rows else {}
    arrays = []
    for field in schema:
        if field.name not in columns:
            arrays.append(pa.nulls(len(rows), field.type))
            continue
        values = list(columns[field.name])
        try:
            if field.name == "timestamp" and not pa.types.is_integer(field.type):
                arrays.append(pa.array(values, pa.timestamp("s")).cast(field.type, safe=False))
            else:
                arrays.append(pa.array(values, _plain(field.type)).cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise UserError(
                f"{field.name}: the impressions do not have the type {field.type} of the data ({error})"
            ) from error
    return pa.Table.from_arrays(arrays, schema=schema)


def _plain(kind: pa.DataType) -> pa.DataType | None:
    return pa.int64() if pa.types.is_integer(kind) else None


def _events(data: Path) -> pads.Dataset:
    place = data / _SHARDS
    if not place.exists():
        raise UserError(f"data.root: {data} has no {_SHARDS}")
    events = pads.dataset(place, format="parquet")
    if missing := [name for name in _KEYS if name not in events.schema.names]:
        raise UserError(f"data.root: {place} has no column {missing[0]}, which exposures need")
    if ENGAGED in events.schema.names:
        raise UserError(f"data.root: {place} has a column {ENGAGED} already, expected events only")
    return events


def _copy(events: pads.Dataset, folder: Path, *, schema: pa.Schema, data: Path) -> int:
    """Write the events, all engaged, and copy the other files of the folder; return the number of events."""
    number = 0
    with pq.ParquetWriter(folder / _SHARDS / "events.parquet", schema) as writer:
        for batch in events.to_batches():
            engaged = pa.array([True]).take(pa.array([0] * batch.num_rows, pa.int32()))
            writer.write_batch(pa.record_batch([*batch.columns, engaged], schema=schema))
            number += batch.num_rows
    for name in ("items", "users"):
        place = data / f"{name}.parquet"
        if place.is_file():
            shutil.copy2(place, folder / place.name)
        elif place.is_dir():
            shutil.copytree(place, folder / place.name)
    return number
