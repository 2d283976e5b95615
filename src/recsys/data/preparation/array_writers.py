"""Writers of the arrays of a prepared data set, from results that stream by in their final order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import ibis.expr.types as ir
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys.core.progress import track
from recsys.core.schema import MISSING, Feature, TimeResolution
from recsys.core.types import Int64Array
from recsys.data.exposures import FOLDER as EXPOSURES
from recsys.data.preparation.column_writers import ColumnWriter, open_array, open_writer
from recsys.data.preparation.engines import Session, first_row
from recsys.data.preparation.event_times import to_seconds
from recsys.data.preparation.feature_drafts import Draft
from recsys.data.preparation.job import PreparationJob
from recsys.data.preparation.vocabulary import Entities

_DAY = 86_400


def write_counts(users: Entities, items: Entities, *, folder: Path) -> None:
    """Write the bounds of each user's parts, and the number of training and validation events of each item."""
    offsets = np.zeros(len(users) + 1, np.int64)
    np.cumsum(users.train + users.val + users.test, out=offsets[1:])
    np.save(folder / "users/offsets.npy", offsets)
    np.save(folder / "users/train_end.npy", offsets[:-1] + users.train)
    np.save(folder / "users/val_end.npy", offsets[:-1] + users.train + users.val)
    np.save(folder / "items/train_count.npy", np.concatenate([[0], items.train]))
    np.save(folder / "items/val_count.npy", np.concatenate([[0], items.val]))


def write_entities(
    session: Session, ordered: ir.Table, *, drafts: Mapping[str, Draft], entities: Entities, folder: Path
) -> list[Feature]:
    """Write the columns of users or items, one row for each dense index. Rows before the first index are missing."""
    writers = _open(drafts, folder, num_rows=entities.first + len(entities))
    for name, field in zip(ordered.columns, ordered.schema().to_pyarrow(), strict=True):
        writers[name].add(pa.nulls(entities.first, field.type))
    for batch in track(session.stream(ordered), f"writing {folder.name}", total=len(entities), unit="rows", size=len):
        for name, writer in writers.items():
            writer.add(batch[name])
    trained = np.concatenate([np.zeros(entities.first, bool), entities.train > 0])
    return [writer.close(trained) for writer in writers.values()]


def _open(drafts: Mapping[str, Draft], folder: Path, *, num_rows: int) -> dict[str, ColumnWriter]:
    return {
        name: open_writer(draft, folder / f"feature.{draft.feature.name}", num_rows=num_rows)
        for name, draft in drafts.items()
    }


def write_has_features(features: Sequence[Feature], num_items: int, *, folder: Path) -> None:
    """Write which items have a value in at least one of their features."""
    has = np.zeros(num_items + 1, bool)
    for feature in features:
        if feature.owner != "items":
            continue
        stem = folder / "items" / f"feature.{feature.name}"
        if feature.is_ragged:
            has |= np.diff(np.load(f"{stem}.offsets.npy")) > 0
            continue
        values = np.load(f"{stem}.npy", mmap_mode="r")
        if values.dtype.kind == "i":
            has |= values != MISSING
        else:
            # All entries of a missing vector are nan, so its first one decides.
            has |= ~np.isnan(values if values.ndim == 1 else values[:, 0])
    np.save(folder / "items/has_features.npy", has)


def write_events(
    job: PreparationJob,
    session: Session,
    *,
    ordered: ir.Table,
    drafts: Mapping[str, Draft],
    users: Entities,
    per_second: int,
    folder: Path,
) -> list[Feature]:
    """Write items, times and features of the events, which `ordered` gives in their final order."""
    num_events = int((users.train + users.val + users.test).sum())
    item_idx = open_array(folder / "events/item_idx.npy", (num_events,), dtype=np.int32)
    times = open_array(folder / "events/time.npy", (num_events,), dtype=np.int64)
    weights = None
    if job.settings.weight is not None:
        weights = open_array(folder / "events/weight.npy", (num_events,), dtype=np.float32)
    writers = _open(drafts, folder / "events", num_rows=num_events)
    at = 0
    for batch in track(session.stream(ordered), "writing events", total=num_events, unit="rows", size=len):
        end = at + len(batch)
        item_idx[at:end] = np.asarray(batch["item_id_idx"])
        times[at:end] = times_of(job.time_resolution, np.asarray(batch["time"]), per_second=per_second)
        if weights is not None:
            weights[at:end] = np.asarray(batch["weight"])
        for name, writer in writers.items():
            writer.add(batch[name])
        at = end
    assert at == num_events, (at, num_events)
    trained = _trained_events(users)
    return [writer.close(trained) for writer in writers.values()]


def write_exposures(
    job: PreparationJob, session: Session, *, ordered: ir.Table, num_users: int, per_second: int, folder: Path
) -> None:
    """Write items and times of the exposures, which `ordered` gives in their final order, and each user's bounds."""
    inner = folder / EXPOSURES
    inner.mkdir()
    num_rows = int(first_row(session, ordered.aggregate(n=ordered.count()))["n"])
    item_idx = open_array(inner / "item_idx.npy", (num_rows,), dtype=np.int32)
    times = open_array(inner / "time.npy", (num_rows,), dtype=np.int64)
    lengths = np.zeros(num_users, np.int64)
    at = 0
    for batch in track(session.stream(ordered), "writing exposures", total=num_rows, unit="rows", size=len):
        end = at + len(batch)
        item_idx[at:end] = np.asarray(batch["item_id_idx"])
        times[at:end] = times_of(job.time_resolution, np.asarray(batch["time"]), per_second=per_second)
        lengths += np.bincount(np.asarray(batch["user_id_idx"]), minlength=num_users)
        at = end
    assert at == num_rows, (at, num_rows)
    np.save(inner / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]))


def times_of(resolution: TimeResolution, raw: Int64Array, *, per_second: int) -> Int64Array:
    """Convert the engine's times, `per_second` units a second, to a resolution."""
    if resolution is TimeResolution.NONE:
        return np.zeros_like(raw)
    if resolution is TimeResolution.ORDER:
        return raw
    seconds = to_seconds(raw, per_second)
    return seconds // _DAY * _DAY if resolution is TimeResolution.DAY else seconds


def _trained_events(users: Entities) -> npt.NDArray[np.bool_]:
    lengths = np.stack([users.train, users.val + users.test], axis=1).ravel()
    return np.repeat(np.tile([True, False], len(users)), lengths)
