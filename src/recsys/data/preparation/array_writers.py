"""Writers of the arrays of a prepared data set, from results that stream by in their final order."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import ibis.expr.types as ir
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys.core.progress import track
from recsys.core.schema import MISSING, Feature
from recsys.data.exposures import FOLDER as EXPOSURES
from recsys.data.preparation.column_writers import ColumnWriter, open_array, open_writer
from recsys.data.preparation.engines import DistributedSession, Session
from recsys.data.preparation.event_times import times_of
from recsys.data.preparation.feature_drafts import Draft
from recsys.data.preparation.job import PreparationJob
from recsys.data.preparation.shard_writers import write_shards
from recsys.data.preparation.vocabulary import Entities
from recsys.data.shards import FILE as SHARDS
from recsys.data.shards import Shards
from recsys.data.sources.files import is_local, open_filesystem


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
    coded: ir.Table,
    drafts: Mapping[str, Draft],
    users: Entities,
    per_second: int,
    folder: Path,
) -> list[Feature]:
    """Write items, times and features of the events, ordered by user, part and time."""
    num_events = int((users.train + users.val + users.test).sum())
    if isinstance(session, DistributedSession):
        features, shards = write_shards(
            job, session, coded=coded, drafts=drafts, per_second=per_second, address=_address(job, session, "events")
        )
        assert int(shards.bounds()[-1]) == num_events, (shards.bounds()[-1], num_events)
        _place(session, shards, folder / "events")
        return features
    ordered = coded.order_by("user_id_idx", "part", "time", "shard", "row")
    ordered = ordered.drop("user_id_idx", "part", "shard", "row")
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
    job: PreparationJob, session: Session, *, coded: ir.Table, num_users: int, per_second: int, folder: Path
) -> None:
    """Write items and times of the exposures, ordered by user and time, and each user's bounds."""
    inner = folder / EXPOSURES
    inner.mkdir()
    counted = session.collect(coded.group_by("user_id_idx").aggregate(n=coded.count().cast("int64")))
    lengths = np.zeros(num_users, np.int64)
    lengths[np.asarray(counted["user_id_idx"])] = np.asarray(counted["n"])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    np.save(inner / "offsets.npy", offsets)
    num_rows = int(offsets[-1])
    if num_rows and isinstance(session, DistributedSession):
        address = _address(job, session, EXPOSURES)
        _, shards = write_shards(job, session, coded=coded, drafts={}, per_second=per_second, address=address)
        _place(session, shards, inner)
        return
    ordered = coded.order_by("user_id_idx", "time", "shard", "row").select("item_id_idx", "time")
    item_idx = open_array(inner / "item_idx.npy", (num_rows,), dtype=np.int32)
    times = open_array(inner / "time.npy", (num_rows,), dtype=np.int64)
    at = 0
    for batch in track(session.stream(ordered), "writing exposures", total=num_rows, unit="rows", size=len):
        end = at + len(batch)
        item_idx[at:end] = np.asarray(batch["item_id_idx"])
        times[at:end] = times_of(job.time_resolution, np.asarray(batch["time"]), per_second=per_second)
        at = end
    assert at == num_rows, (at, num_rows)


def _address(job: PreparationJob, session: DistributedSession, name: str) -> str:
    # Several machines may prepare the same data at once, so each preparation has a folder of its own.
    own = f"{job.fingerprint}/shards/{uuid.uuid4().hex[:8]}/{name}"
    filesystem, path = open_filesystem(session.output or str(session.scratch))
    # Later commands may have another working directory.
    return f"{path if is_local(filesystem) else session.output}/{own}"


def _place(session: DistributedSession, shards: Shards, folder: Path) -> None:
    """Write the list of shards that stay where they are, else the joined shards."""
    if session.output is None:
        shards.join(folder)
    else:
        shards.save(folder / SHARDS)


def _trained_events(users: Entities) -> npt.NDArray[np.bool_]:
    lengths = np.stack([users.train, users.val + users.test], axis=1).ravel()
    return np.repeat(np.tile([True, False], len(users)), lengths)
