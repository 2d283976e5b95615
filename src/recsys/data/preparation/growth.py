"""A data set whose source has grown by shards: what was prepared earlier, and the new events between the old.

    earlier data set + events of new shards -> users -> merged times -> parts -> items by frequency -> columns

The result is that of preparing everything anew, to the last bit. Old shards are not read, and old events not sorted;
tables of users and items are read as a whole. What encoding loses, and more events may need, lies in `kept/` of every
data set that can grow:

    kept/parts.json             whether the files say which events are validation (split=given)
         time.npy int64 [E]     times as read, where those of the data set are worth less
         feature.<name>.npy     float64 [E], numbers before they are standardised
         feature.<name>.parquet value: of the events whose value the vocabulary lacks, in order

Memory: about 40 bytes for each event, the new events, and the tables of users and items.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys.core.columns import bisect, ragged_positions
from recsys.core.errors import UserError
from recsys.core.schema import FIRST_CODE, Feature
from recsys.data.dataset import KEPT, PreparedDataset
from recsys.data.encoding import FeatureEncoder, plain, to_floats
from recsys.data.preparation.array_writers import times_of, trained_events, write_has_features
from recsys.data.preparation.column_writers import beside, write_standardised
from recsys.data.preparation.earlier import CannotGrowError, Earlier, find_earlier, old_lengths, open_earlier
from recsys.data.preparation.engines import Engine, Session
from recsys.data.preparation.feature_drafts import drop_names
from recsys.data.preparation.feature_plans import Plan
from recsys.data.preparation.inserting import Insertion, Vocabulary, recode
from recsys.data.preparation.job import Build
from recsys.data.preparation.listed import write_listed
from recsys.data.preparation.pipeline import KEYS, PARTS, build, check_parts, open_listed, read_events, sizes, write_ids
from recsys.data.preparation.splits import NAMES, Continuing, Timeline
from recsys.data.preparation.vocabulary import Entities, ordered_items, write_values

log = logging.getLogger("recsys")

Indices = npt.NDArray[np.int64]

# Arrow and numpy leave the interpreter while they work; each thread holds a column.
_THREADS = 2


def build_or_grow(
    job: Build, name: str, settings: dict[str, Any], engine: Engine, prepared: Path, folder: Path
) -> None:
    """Fill `folder` with the data set `name`, from an earlier one in the folder `prepared` where that is possible."""
    earlier = find_earlier(prepared, settings)
    if earlier is not None:
        try:
            if not job.can_grow:
                raise CannotGrowError(
                    "with exposures, a least number of events or this split, new events change old ones"
                )
            build(job, name, settings, engine, folder, partial(_grow, earlier))
            return
        except CannotGrowError as reason:
            log.info("everything is prepared anew, not from %s: %s", earlier.path, reason)
            for inner in folder.iterdir():
                shutil.rmtree(inner)
    build(job, name, settings, engine, folder)


def _grow(earlier: Earlier, job: Build, session: Session, folder: Path) -> tuple[list[Feature], dict[str, Any]]:
    try:
        old, kept = open_earlier(earlier.path, job)
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise CannotGrowError(f"it is damaged ({error})") from error
    new = _new_events(job, session, earlier.num_shards)
    listed = {owner: _listed(job, session, owner) for owner in ("items", "users") if owner in job.tables}
    log.info("%d events more than in %s: they go between those", len(new), earlier.path)

    lasting = np.flatnonzero(np.diff(old.offsets))
    user_ids = lasting_ids = old.user_ids.take(pa.array(lasting)) if len(lasting) < old.num_users else old.user_ids
    if len(fresh := _fresh(user_ids, new["user_id"], _ids(listed, "users"))):
        user_ids = pa.concat_arrays([user_ids, fresh])
        user_ids = user_ids.take(pc.sort_indices(user_ids))
    by_part = job.split.needs == "split"
    lengths = np.zeros((len(user_ids), len(NAMES) if by_part else 1), np.int64)
    at = _places(lasting_ids, user_ids) if len(fresh) else slice(None)
    lengths[at] = old_lengths(old, by_part, kept.val_is_given)[lasting]
    row = _places(new["user_id"], user_ids) * lengths.shape[1] + (_parts(new["split"]) if by_part else 0)
    new_times = np.asarray(new["time"])
    order = np.lexsort((new_times, row))
    new, row, new_times = new.take(pa.array(order)), row[order], new_times[order]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    insertion = Insertion(len(kept.times), bisect(kept.times, bounds[row], bounds[row + 1], new_times))
    lengths += np.bincount(row, minlength=lengths.size).reshape(lengths.shape)

    times = insertion.merge(kept.times, new_times)
    assert isinstance(job.split, Continuing)
    parts = job.split.sizes(Timeline(times, lengths))
    rows = {"users": _places(listed["users"]["user_id"], user_ids) if "users" in listed else np.empty(0, np.int64)}
    is_listed = _is_listed(rows["users"], len(user_ids), "users")
    train, val, test = np.ascontiguousarray(parts.T)
    users = Entities(user_ids, train, val, test, is_listed, 0)
    check_parts(job, users)
    with ThreadPoolExecutor(_THREADS) as pool:
        # What takes longest begins first; the rest of the work goes on beside it.
        of_users = _start(pool, job, session, listed, rows, users, folder)
        trained = trained_events(users)
        columns = [
            pool.submit(_write_column, old, kept.columns.get(name), plan, plain(new[name]), insertion, trained, folder)
            for name, plan in job.plans_of("interactions").items()
        ]
        items, rows["items"] = _write_items(old, new, insertion, users, _ids(listed, "items"), folder)
        of_items = _start(pool, job, session, listed, rows, items, folder)
        write_ids(users, items, folder)
        np.save(folder / "events/time.npy", times_of(job, times))
        if not job.keeps_times:
            np.save(folder / KEPT / "time.npy", times)
        (folder / KEPT / PARTS).write_text(
            json.dumps({"val_is_given": not by_part or bool(lengths[:, 1].any())}) + "\n"
        )
        features = [column.result() for column in columns]
        for side in of_items, of_users:
            if (written := side.result() if side else []) is None:
                raise CannotGrowError("vectors of a table have more than one length")
            features += written
    write_has_features(features, len(items), folder)
    return features, sizes(job, users, items)


def _start(
    pool: ThreadPoolExecutor,
    job: Build,
    session: Session,
    listed: Mapping[str, pa.Table],
    rows: Mapping[str, Indices],
    entities: Entities,
    folder: Path,
) -> Future[list[Feature] | None] | None:
    """Begin to write the features of users or items, if they have any."""
    owner = "items" if entities.first else "users"
    if not (plans := job.plans_of(owner)):
        return None
    plans = drop_names(job.tables[owner], session, open_listed(job, session, owner), plans)
    return pool.submit(write_listed, listed[owner], rows[owner], plans, entities, folder)


def _new_events(job: Build, session: Session, num_shards: int) -> pa.Table:
    """Events of the shards from `num_shards` on, in the order of the files."""
    files = job.tables["interactions"].files
    events = read_events(job, session, files[num_shards:] or files[:1])
    if num_shards == len(files):
        events = events.limit(0)
    names = ["user_id", "item_id", "time", *(["split"] if job.split.needs == "split" else [])]
    ordered = events.order_by("shard", "row").select(*names, *job.plans_of("interactions"))
    table = pa.Table.from_batches(session.stream(ordered), ordered.schema().to_pyarrow())
    if any(table[name].null_count for name in names):
        raise CannotGrowError("new events have nulls")
    if "split" in names and not set(pc.unique(table["split"]).to_pylist()) <= NAMES.keys():
        raise CannotGrowError("new events have parts that are no parts")
    return table


def _listed(job: Build, session: Session, owner: str) -> pa.Table:
    key, listed = KEYS[owner], open_listed(job, session, owner).drop("shard", "row")
    table = pa.Table.from_batches(session.stream(listed), listed.schema().to_pyarrow())
    if table[key].null_count:
        raise CannotGrowError(f"the table of {owner} has ids that are null")
    return table


def _ids(listed: Mapping[str, pa.Table], owner: str) -> pa.Array | None:
    return plain(listed[owner][KEYS[owner]]) if owner in listed else None


def _fresh(known: pa.Array, *ids: pa.Array | pa.ChunkedArray | None) -> pa.Array:
    """Ids that are not `known`, each once."""
    some_ids = [plain(some) for some in ids if some is not None]
    return pc.unique(pa.concat_arrays([some.filter(pa.array(_places(some, known) < 0)) for some in some_ids]))


def _is_listed(rows: Indices, num_rows: int, owner: str) -> npt.NDArray[np.bool_]:
    """Which of the rows are those of the table."""
    is_listed = np.zeros(num_rows, bool)
    is_listed[rows] = True
    if is_listed.sum() != len(rows):
        raise CannotGrowError(f"the table of {owner} has ids more than once")
    return is_listed


def _places(ids: pa.Array | pa.ChunkedArray, among: pa.Array) -> Indices:
    """Place of each id among those, -1 where it is not there."""
    ids, keys = plain(ids), None
    if pa.types.is_integer(among.type) and ids.type == among.type and len(among):
        keys = np.asarray(among)
    if keys is None or not (keys[1:] > keys[:-1]).all():
        return np.asarray(pc.index_in(ids, value_set=among).fill_null(-1)).astype(np.int64)
    # Most often both ascend, and then a search takes a tenth of the time of a hash table.
    wanted = np.asarray(ids)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, at, -1)


def _parts(names: pa.ChunkedArray) -> Indices:
    return _places(names, pa.array(NAMES))


def _write_items(
    old: PreparedDataset, new: pa.Table, insertion: Insertion, users: Entities, listed: pa.Array | None, folder: Path
) -> tuple[Entities, Indices]:
    """Write the items of events; the items in their new order, and which of them each row of the items table is."""
    ids = pa.concat_arrays([old.item_ids, _fresh(old.item_ids, new["item_id"], listed)])
    # Old items keep their place here, so that their number is the one that it was.
    new_items = _places(new["item_id"], ids).astype(np.int32) + 1
    both = insertion.merge(old.item_idx, new_items)

    # Validation and test events are counted one by one; training events are what is left of all.
    def count(values: npt.NDArray[np.int32]) -> Indices:
        return np.bincount(values, minlength=len(ids) + 1)

    starts = np.cumsum(users.train + users.val + users.test) - users.val - users.test
    val = count(both[ragged_positions(starts, users.val)])
    test = count(both[ragged_positions(starts + users.val, users.test)])
    total = count(old.item_idx[ragged_positions(old.val_end, old.offsets[1:] - old.val_end)]) + count(new_items)
    total[: old.num_items + 1] += old.train_count + np.load(old.path / "items/val_count.npy")
    train = total - val - test
    rows = np.empty(0, np.int64) if listed is None else _places(listed, ids)
    is_listed = _is_listed(rows, len(ids), "items")
    items, index = ordered_items(ids, train[1:], val[1:], test[1:], is_listed)
    lookup = np.concatenate([[0], index]).astype(np.int32)
    insertion.stream(old.item_idx, new_items, folder / "events/item_idx.npy", lambda block: lookup[block])
    return items, index[rows] - 1


def _write_column(
    old: PreparedDataset,
    before: Any,
    plan: Plan,
    new: pa.Array,
    insertion: Insertion,
    trained: npt.NDArray[np.bool_],
    folder: Path,
) -> Feature:
    """Write a feature of events, and what must be kept of it."""
    feature = next(f for f in old.schema.features if f.key == f"interactions.{plan.name}")
    column = old.columns[feature.key]
    stem, kept = (folder / inner / f"feature.{plan.name}" for inner in ("events", KEPT))
    if plan.kind == "numeric":
        numbers = insertion.merge(before, to_floats(new) / plan.divisor)
        np.save(beside(kept, ".npy"), numbers)
        return write_standardised(feature, numbers, trained, stem)
    if feature.has_vocabulary:
        vocabulary = recode(feature, insertion, column, Vocabulary(old.vocabulary(feature), before), new, trained, stem)
        write_values(vocabulary.values, "value", folder / f"vocabularies/{feature.key}.parquet")
        write_values(vocabulary.unknown, "value", beside(kept, ".parquet"))
        return dataclasses.replace(feature, size=FIRST_CODE + len(vocabulary.values))
    try:
        encoded = FeatureEncoder(feature, None).encode(new)
    except UserError as error:
        raise CannotGrowError(f"new events have vectors of another length: {error}") from error
    insertion.save(column, encoded, stem)
    return feature
