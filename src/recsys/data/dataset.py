"""Prepared data set: flat, memory-mapped columns, ordered by user and time.

    <fingerprint>/meta.json                     `Meta`
                  schema.json                   `recsys.core.schema.Schema`
                  vocabularies/items.parquet    item_id; row r is item_idx r + 1 (item_idx 0: an unknown item)
                  vocabularies/users.parquet    user_id; row r is user_idx r
                  vocabularies/<owner>.<feature>.parquet    value; row r is code r + 2 (0 missing, 1 unknown)
                  events/item_idx.npy int32 [E], time.npy int64 [E], feature.<name>.npy ..., weight.npy float32 [E] if
                      the events are weighted
                  users/offsets.npy int64 [U+1], train_end.npy, val_end.npy int64 [U], feature.<name>.npy ...
                  items/train_count.npy, val_count.npy int64 [N+1], has_features.npy bool [N+1], feature.<name>.npy ...
                  items/born.npy int64 [N+1] if a column of items holds their births
                  exposures/...                 `recsys.data.exposures`, if the source declares any

A distributed engine leaves `events` and `exposures` in shards (`recsys.data.shards`): `events/shards.json` says where.

Events of user u are `offsets[u]:offsets[u+1]`: the training part up to `train_end[u]`, validation up to `val_end[u]`,
test after it (absolute positions). Items come in four runs: trained (most frequent first), seen in validation but not
in training, only in the items table, only in test events. So one comparison decides whether a model may know an item.

Shapes: U users, E events, N items.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.core.columns import Column, load_array, load_column, quantile_of_ranges
from recsys.core.errors import UnsuitableDataError, UserError
from recsys.core.index_time import DAY, IndexTime
from recsys.core.schema import Feature, Schema, TimeResolution
from recsys.core.types import Int64Array
from recsys.data.exposures import Exposures, load_exposures
from recsys.data.portions import LocalColumns, Portion
from recsys.data.user_bounds import UserBounds

FORMAT = 1
META = "meta.json"
Part = Literal["val", "test"]
# Birth of an item that has none.
NO_BIRTH = int(np.iinfo(np.int64).min)


@dataclass(frozen=True, kw_only=True)
class Meta:
    """Sizes and settings of a prepared data set.

    Attributes:
        fingerprint: name of the data set, derived from the content of its files and its settings.
        time_resolution: precision of the timestamps. `meta.json` calls it `time`.
        num_trained: items 1..num_trained have training events.
        num_seen: items 1..num_seen have training or validation events.
        num_known: items 1..num_known have events before the test part, or a row in the items table.
        num_items: number of all items, including those of test events only; item_idx runs from 1 to num_items.
        settings: everything that the data set depends on.
        format: version of the layout of the folder.
    """

    fingerprint: str
    time_resolution: TimeResolution
    num_users: int
    num_events: int
    num_trained: int
    num_seen: int
    num_known: int
    num_items: int
    settings: dict[str, Any]
    format: int = FORMAT

    def save(self, path: Path) -> None:
        """Write `meta.json`."""
        content = dataclasses.asdict(self)
        path.write_text(json.dumps({"time": content.pop("time_resolution"), **content}, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Meta:
        """Read `meta.json`.

        Raises:
            UserError: If the file is missing, is not a `meta.json`, or has another format.
        """
        try:
            content = json.loads(path.read_text())
            meta = cls(time_resolution=TimeResolution(content.pop("time")), **content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path.parent}: not a prepared data set ({error})") from error
        if meta.format != FORMAT:
            raise UserError(f"{path}: format {meta.format}, expected {FORMAT}; prepare the data again")
        return meta


@dataclass(frozen=True)
class DataSizes:
    """Everything about a data set that towers are built from.

    Attributes:
        schema: features of events, items and users.
        time_resolution: precision of the timestamps.
        num_trained: items 1..num_trained have training events.
        trained_users: bool [U], users with training events.
        item_columns: encoded features of items by `Feature.key`; row r belongs to item_idx r.
        train_count: int64 [N + 1], number of training events of each item.
    """

    schema: Schema
    time_resolution: TimeResolution
    num_trained: int
    trained_users: npt.NDArray[np.bool_]
    item_columns: dict[str, Column]
    train_count: Int64Array


class Requests(NamedTuple):
    """Requests to answer: user `user_idx[r]` with the events `offsets[user]:end[r]` as history. Both int64 [R]."""

    user_idx: Int64Array
    end: Int64Array


@dataclass(frozen=True)
class PreparedDataset:
    """Memory-mapped view of a prepared data set. Opening it as one reads no events.

    Attributes:
        path: folder of the data set.
        meta: sizes and settings.
        schema: features.
        item_idx: int32 [E], item of each event.
        time: int64 [E], time of each event.
        offsets: int64 [U + 1], bounds of each user's events.
        train_end: int64 [U], end of each user's training part.
        val_end: int64 [U], end of each user's validation part.
        train_count: int64 [N + 1], number of training events of each item.
        has_features: bool [N + 1], whether an item has a value in any feature.
        columns: encoded features by `Feature.key`.
        exposures: items that users were shown and did not engage with; None if the source declares none.
        weight: float32 [E], weight of each event as a target; None for equal weights.
        born: int64 [N + 1], second since 1970 from which an item can be shown, or `NO_BIRTH`; None if no column of
            items holds births.
        known_users: bool [U], users with an embedding of their own in trained towers; None for those with training
            events.
        portion: users whose events are open; None for all.
    """

    path: Path
    meta: Meta
    schema: Schema
    item_idx: npt.NDArray[np.int32]
    time: Int64Array
    offsets: Int64Array
    train_end: Int64Array
    val_end: Int64Array
    train_count: Int64Array
    has_features: npt.NDArray[np.bool_]
    columns: dict[str, Column]
    exposures: Exposures | None = None
    weight: npt.NDArray[np.float32] | None = None
    born: Int64Array | None = None
    known_users: npt.NDArray[np.bool_] | None = None
    portion: Portion | None = None

    @classmethod
    def open(cls, path: Path, *, rank: int = 0, world_size: int = 1) -> PreparedDataset:
        """Open the folder `path`, or the events of a range of its users.

        With several processes each opens its own users, about as many events as the others. Users keep their user_idx;
        those of other processes have no events here. Shards are copied into the folder, once for all processes of a
        machine: those of the own users now, and those of all users when a column of the whole data set is first used.

        Args:
            path: folder of the data set.
            rank: number of this process.
            world_size: number of processes that share the users.

        Raises:
            UserError: If `path` is not a prepared data set, is one of another format, has the bounds of other users or
                events, or has fewer shards than processes.
        """
        meta = Meta.load(path / META)
        schema = Schema.load(path / "schema.json")
        bounds = UserBounds.load(path / "users", num_users=meta.num_users, num_events=meta.num_events)
        offsets, train_end, val_end = bounds
        portion = Portion.of(path / "events", rank, world_size=world_size, offsets=offsets, train_end=train_end)
        events = LocalColumns.of(path / "events", offsets, portion)
        return cls(
            path=path,
            meta=meta,
            schema=schema,
            item_idx=events.load("item_idx"),
            time=events.load("time"),
            offsets=events.local(offsets),
            train_end=events.local(train_end),
            val_end=events.local(val_end),
            train_count=np.asarray(load_array(path / "items/train_count.npy")),
            has_features=np.asarray(load_array(path / "items/has_features.npy")),
            columns={f.key: _load(path, f, events) for f in schema.features},
            exposures=load_exposures(path, num_users=meta.num_users, portion=portion),
            weight=events.load("weight") if meta.settings["settings"].get("weight") else None,
            born=np.asarray(load_array(born)) if (born := path / "items/born.npy").exists() else None,
            known_users=None if portion is None else train_end > offsets[:-1],
            portion=portion,
        )

    def share(self, rank: int, world_size: int) -> PreparedDataset:
        """Return the events of the users of one process, with the parts, counts and users of this data set.

        Raises:
            UserError: If the data set has fewer shards than processes.
        """
        own = PreparedDataset.open(self.path, rank=rank, world_size=world_size)
        if own.portion is None:
            return self
        first = self.offsets[own.portion.cuts[rank]]
        return dataclasses.replace(
            own,
            meta=self.meta,
            train_count=self.train_count,
            train_end=np.clip(self.train_end - first, 0, own.offsets[-1]),
            known_users=self.trained_users,
            portion=dataclasses.replace(own.portion, num_trained=self.train_end - self.offsets[:-1]),
        )

    @property
    def num_items(self) -> int:
        """Number of items. Their dense index is 1..num_items."""
        return self.meta.num_items

    @property
    def num_users(self) -> int:
        """Number of users. Their dense index is 0..num_users-1."""
        return self.meta.num_users

    @property
    def num_trained(self) -> int:
        """Number of items with training events. Their dense index is 1..num_trained."""
        return self.meta.num_trained

    @property
    def sizes(self) -> DataSizes:
        """Sizes and columns that towers are built from."""
        return DataSizes(
            schema=self.schema,
            time_resolution=self.meta.time_resolution,
            num_trained=self.num_trained,
            trained_users=self.trained_users,
            item_columns={f.key: self.columns[f.key] for f in self.schema.owned_by("items")},
            train_count=self.train_count,
        )

    @property
    def trained_users(self) -> npt.NDArray[np.bool_]:
        """Users with training events, or those that trained towers know; bool [U]."""
        return self.train_end > self.offsets[:-1] if self.known_users is None else self.known_users

    @property
    def train_until(self) -> int | None:
        """Time of the last event of the training part, in seconds; None if the timestamps have no clock."""
        if not self.meta.time_resolution.has_clock:
            return None
        last = self.train_end[self.train_end > self.offsets[:-1]] - 1
        return int(np.asarray(self.time)[last].max())

    @cached_property
    def parts_follow_in_time(self) -> bool:
        """True if timestamps have a clock, and validation begins after training and the test part after validation."""
        if not self.meta.time_resolution.has_clock:
            return False
        val, test = self.part_times("val"), self.part_times("test")
        trained = self.train_until
        if trained is None or test is None or (val is not None and val[1] > test[0]):
            return False
        return trained <= (test if val is None else val)[0]

    def needs_all_users(self) -> None:
        """Raise an `UnsuitableDataError` if only the events of some users are open."""
        if (portion := self.portion) is not None:
            raise UnsuitableDataError(
                f"{self.path}: found events of process {portion.rank + 1} of {len(portion.cuts) - 1}, "
                "expected those of all users: open the data set without `rank`"
            )

    def part_times(self, part: Part) -> tuple[int, int] | None:
        """Return the first and last time of the events of a part; None if it has no events.

        Raises:
            UnsuitableDataError: If only the events of some users are open.
        """
        self.needs_all_users()
        begin, end = self.part_bounds(part)
        has = end > begin
        if not has.any():
            return None
        time = np.asarray(self.time)
        return int(time[begin[has]].min()), int(time[end[has] - 1].max())

    def index_time(self, part: Part) -> IndexTime | None:
        """Return the time of an index that serves one part, from the first event of the part to its last.

        Returns:
            None if the parts do not follow each other in time, so that a part has no time of its own.
        """
        times = self.part_times(part)
        if times is None or not self.parts_follow_in_time:
            return None
        return IndexTime(times[0], max((times[1] - times[0]) / DAY, 1.0))

    def refit(self) -> PreparedDataset:
        """Return the data with the validation part moved into training, for `refit=true`."""
        val_count = np.asarray(load_array(self.path / "items/val_count.npy"))
        meta = dataclasses.replace(self.meta, num_trained=self.meta.num_seen)
        return dataclasses.replace(self, meta=meta, train_end=self.val_end, train_count=self.train_count + val_count)

    def corpus(self, *, reads_features: bool, reads_ids: bool = True) -> Int64Array:
        """Return the item_idx of the items that can be recommended, ascending.

        These are all items of the items table and of train and val events, except those with neither a trained id nor
        a feature that the item tower reads.

        Args:
            reads_features: whether the item tower reads features.
            reads_ids: whether the item tower has embeddings of trained ids.
        """
        if (reads_features, reads_ids) not in self._corpora:
            usable = np.zeros(self.meta.num_known, bool)
            if reads_ids:
                usable[: self.num_trained] = True
            if reads_features:
                usable |= self.has_features[1 : len(usable) + 1]
            found = np.flatnonzero(usable)
            found += 1
            self._corpora[reads_features, reads_ids] = found
        return self._corpora[reads_features, reads_ids]

    @cached_property
    def _corpora(self) -> dict[tuple[bool, bool], Int64Array]:
        # Training and each evaluation share one array of a corpus.
        return {}

    def training_time(self, share: float) -> float:
        """Return the quantile `share` of the times of the training events."""
        return quantile_of_ranges(self.time, share, begin=self.offsets[:-1], end=self.train_end)

    def requests(self, part: Part) -> Requests:
        """Return one request for each user with events in `part`. Its history ends where the part begins."""
        begin, end = self.part_bounds(part)
        users = np.flatnonzero(end > begin)
        return Requests(users, begin[users])

    def part_bounds(self, part: Part) -> tuple[Int64Array, Int64Array]:
        """Return the absolute positions (begin, end) of each user's events in `part`; both int64 [U]."""
        return (self.train_end, self.val_end) if part == "val" else (self.val_end, self.offsets[1:])

    @cached_property
    def item_ids(self) -> pa.Array:
        """Outside ids in the order of item_idx. Row r is item_idx r + 1."""
        return _read_values(self.path / "vocabularies/items.parquet", "item_id")

    @cached_property
    def user_ids(self) -> pa.Array:
        """Outside ids in the order of user_idx."""
        return _read_values(self.path / "vocabularies/users.parquet", "user_id")

    def vocabulary(self, feature: Feature) -> pa.Array | None:
        """Return the values of a categorical feature in the order of their codes (row r is code r + 2), else None."""
        if not feature.has_vocabulary:
            return None
        return _read_values(self.path / f"vocabularies/{feature.key}.parquet", "value")


def _load(path: Path, feature: Feature, events: LocalColumns) -> Column:
    stem = f"feature.{feature.name}"
    if feature.owner == "interactions":
        return events.load_column(stem, ragged=feature.is_ragged)
    return load_column(path / feature.owner / stem, ragged=feature.is_ragged)


def _read_values(path: Path, column: str) -> pa.Array:
    return pq.read_table(path, columns=[column]).column(column).combine_chunks()
