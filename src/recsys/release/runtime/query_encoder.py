"""The user half of a release: returns user embeddings for raw values of requests. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys.core.columns import Column, Dense, Ragged
from recsys.core.errors import UserError, nearest
from recsys.core.schema import Feature
from recsys.core.time_units import LATEST
from recsys.core.types import Float32Array
from recsys.data.encoding import FeatureEncoder, plain
from recsys.release.bounds import damaged
from recsys.release.files import read_schema, read_table, read_vocabulary
from recsys.release.manifest import ITEM_VOCABULARY, SELF_CHECK, USER_TOWER, USER_VOCABULARY, Manifest
from recsys.release.runtime.feature_values import ValueType
from recsys.release.runtime.item_ids import IdMap, to_values
from recsys.release.runtime.self_check import TOLERANCE, stored_check
from recsys.release.runtime.timestamps import event_seconds
from recsys.release.runtime.user_tower import Histories, UserTowerSession, pad

ItemId = int | str
EVENT_KEYS = ("item_id", "timestamp")
# Time limit of the tower in the self-check.
CHECK_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Query:
    """Raw values of one request.

    Attributes:
        history: events, oldest first: `item_id`, values of event features, and optionally `timestamp`. An event without
            one has the time of the event before it (see `event_seconds`).
        user_id: user; only towers with an embedding for each user read it.
        user: values of profile features.
        request: values of request features.
        exclude: items that are not returned, in addition to those of the history.
    """

    history: Sequence[Mapping[str, Any]] = ()
    user_id: ItemId | None = None
    user: Mapping[str, Any] = field(default_factory=dict)
    request: Mapping[str, Any] = field(default_factory=dict)
    exclude: Sequence[ItemId] = ()


class QueryEncoder:
    """Encodes requests as in training, and runs the user tower of one release.

    Args:
        known_items: ids of the item vocabulary if they are in memory already; None to read them.
        threads: threads of one call of the tower; 0 for one per core.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, known_items: IdMap | None = None, threads: int = 1) -> None:
        self.folder, self.manifest = folder, manifest
        self._users: IdMap | None = None
        with damaged(folder):
            self.schema = read_schema(folder, manifest)
            self.tower = UserTowerSession(folder, manifest, threads=threads)
            self.known_items = load_known_items(folder, manifest) if known_items is None else known_items
            if USER_VOCABULARY in manifest.files:
                self._users = IdMap(_ids(folder, USER_VOCABULARY, manifest, column="user_id"))
            self.names = {
                "history": {*EVENT_KEYS, *(f.name for f in self.schema.owned_by("interactions"))},
                "user": {f.name for f in self.schema.owned_by("users")},
                "request": {f.name for f in self.schema.with_role("request")},
            }
            self._events = self._encoders("event")
            self._profile = self._encoders("user")
            self.request_encoders: Mapping[str, FeatureEncoder] = self._encoders("request")
            self.event_values = self._values("interactions", {**self.request_encoders, **self._events})
            self.profile_values = self._values("users", self._profile)

    @property
    def version(self) -> str:
        """Version of the release."""
        return self.manifest.version

    @property
    def reads_profiles(self) -> bool:
        """True if the tower reads a profile feature."""
        return bool(self._profile)

    def embed(self, queries: Sequence[Query]) -> Float32Array:
        """Return user embeddings float32 [B, D], or [B, M, D] if the tower returns several per user."""
        histories, _ = self.encode(queries)
        return self.tower(histories)

    def encode(self, queries: Sequence[Query]) -> tuple[Histories, list[list[ItemId]]]:
        """Return the encoded histories of the queries, and the distinct unknown items of each query."""
        given = set[str]().union(*map(self.check_names, queries))
        ids = [_item_ids(query.history) for query in queries]
        longest = self.manifest.max_history
        recent = [query.history[-longest:] for query in queries]
        found = self.known_items.rows([item for row in ids for item in row]) + 1
        num_events = np.array([len(row) for row in ids], np.int64)
        lengths = np.minimum(num_events, longest)
        ends = np.cumsum(num_events)
        unknown: list[list[ItemId]] = [[] for _ in queries]
        if not found.all():
            for number, (end, row) in enumerate(zip(ends, ids, strict=True)):
                missing = np.flatnonzero(found[end - len(row) : end] == 0)
                unknown[number] = list(dict.fromkeys(row[at] for at in missing))
        if (num_events > longest).any():
            found = found[np.repeat(ends, num_events) - np.arange(len(found)) <= longest]
        events = [event for row in recent for event in row] if self._events else []
        users = [query.user_id for query in queries]
        histories = Histories(
            item_idx=found,
            lengths=lengths,
            user_idx=np.full(len(queries), -1) if self._users is None else self._users.rows(users),
            time=event_seconds(recent) if self.tower.reads_time else np.zeros(len(found), np.int64),
            events=_encode(self._events, events, place="history", given=given),
            users=_encode(self._profile, [query.user for query in queries], place="user"),
            requests=_encode(self.request_encoders, [query.request for query in queries], place="request"),
        )
        return histories, unknown

    def readable_events(self, history: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], int]:
        """Return what this release can read of stored events, and the number of events and values that it cannot."""
        kept: list[Mapping[str, Any]] = []
        unreadable = 0
        for event in history:
            item, seconds = event.get("item_id"), event.get("timestamp")
            if not isinstance(item, str | int) or not (
                seconds is None or (_is_whole(seconds) and abs(seconds) <= LATEST)
            ):
                unreadable += 1
                continue
            features, lost = _readable(event, self.event_values)
            unreadable += lost
            kept.append({**features, "item_id": item} | ({} if seconds is None else {"timestamp": seconds}))
        return kept, unreadable

    def readable_profile(self, profile: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """Return the stored profile features that this release can read, and the number of those that it cannot."""
        return _readable(profile, self.profile_values)

    def user_rows(self, ids: pa.Array) -> npt.NDArray[np.int64]:
        """Return the tower's index of each user, -1 for users without an embedding of their own."""
        return np.full(len(ids), -1) if self._users is None else self._users.rows_of(ids)

    def encoder(self, feature: Feature) -> FeatureEncoder:
        """Return the encoder of a feature, equal to that of training."""
        known = read_vocabulary(self.folder, feature.key, self.manifest) if feature.has_vocabulary else None
        return FeatureEncoder(feature, known)

    def check_names(self, query: Query) -> set[str]:
        """Refuse features that are not declared, and return the names in the history.

        Declared features that this tower does not read are accepted.
        """
        given = set[str]().union(*query.history)
        if not given <= self.names["history"]:
            self.refuse("history", given)
        if query.user:
            self.refuse("user", query.user)
        if query.request:
            self.refuse("request", query.request)
        return given

    def refuse(self, place: str, given: Iterable[str]) -> None:
        """Raise a `UserError` for the first name that is no feature of `place`: history, user or request."""
        valid = self.names[place]
        for name in given:
            if name not in valid:
                raise UserError(f"{place}.{name}: no such feature{nearest(name, valid)}")

    def check(self) -> None:
        """Raise `UserError` unless the tower returns the same embeddings as when the release was made."""
        check = stored_check(self.folder, self.manifest)
        inputs = {name.removeprefix("input:"): v for name, v in check.items() if name.startswith("input:")}
        expected = check["embeddings"]
        with damaged(self.folder / SELF_CHECK):
            found = self.tower.run(inputs, seconds=CHECK_SECONDS)
        if found.shape != expected.shape or not np.allclose(found, expected, atol=TOLERANCE, rtol=TOLERANCE):
            raise UserError(f"{self.folder}: the user tower does not return the embeddings of {SELF_CHECK}")
        with damaged(self.folder / USER_TOWER):
            found = self.tower.run(pad(self._last_codes(), self.manifest.inputs), seconds=CHECK_SECONDS)
        if found.shape != (1, *self.tower.shape) or not np.isfinite(found).all():
            raise UserError(f"{self.folder / USER_TOWER}: cannot read the last codes of the vocabularies")

    def _last_codes(self) -> Histories:
        """Return one event with the largest code of each input, which a tower of another size cannot read."""
        columns = [
            {name: _last_code(encoder.feature) for name, encoder in encoders.items()}
            for encoders in (self._events, self._profile, self.request_encoders)
        ]
        one = np.ones(1, np.int64)
        users = 0 if self._users is None else len(self._users)
        return Histories(one * len(self.known_items), one, one * (users - 1), one, *columns)

    def _values(self, owner: str, encoders: Mapping[str, FeatureEncoder]) -> dict[str, ValueType]:
        types = {name: encoder.vocabulary.type for name, encoder in encoders.items() if encoder.vocabulary is not None}
        return {f.name: ValueType(f, types.get(f.name)) for f in self.schema.features if f.owner == owner}

    def _encoders(self, prefix: str) -> dict[str, FeatureEncoder]:
        owner = "users" if prefix == "user" else "interactions"
        read = {name for spec in self.manifest.inputs for head, _, name in [spec.name.partition(".")] if head == prefix}
        return {f.name: self.encoder(f) for f in self.schema.features if f.owner == owner and f.name in read}


def read_event_values(folder: Path, manifest: Manifest) -> dict[str, ValueType]:
    """Return `QueryEncoder.event_values` of a release without its tower."""
    with damaged(folder):
        read = {spec.name.partition(".")[::2] for spec in manifest.inputs}
        found: dict[str, ValueType] = {}
        for feature in read_schema(folder, manifest).owned_by("interactions"):
            codes = None
            if feature.has_vocabulary and {("event", feature.name), ("request", feature.name)} & read:
                codes = plain(read_vocabulary(folder, feature.key, manifest)).type
            found[feature.name] = ValueType(feature, codes)
        return found


def _last_code(feature: Feature) -> Column:
    if feature.is_ragged:
        return Ragged(np.array([feature.size - 1], np.int32), np.array([0, 1]))
    if feature.has_vocabulary:
        return Dense(np.array([feature.size - 1], np.int32))
    return Dense(np.zeros((1, feature.size) if feature.kind == "vector" else 1, np.float32))


def _item_ids(history: Sequence[Mapping[str, Any]]) -> list[ItemId]:
    try:
        return [event["item_id"] for event in history]
    except KeyError:
        number = next(number for number, event in enumerate(history) if "item_id" not in event)
        raise UserError(f"history: event {number} has no item_id") from None


def _readable(row: Mapping[str, Any], types: Mapping[str, ValueType]) -> tuple[dict[str, Any], int]:
    kept = {
        name: types[name].normal(value) for name, value in row.items() if name in types and types[name].holds(value)
    }
    return kept, sum(name in types and name not in kept for name in row)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def load_known_items(folder: Path, manifest: Manifest) -> IdMap:
    """Return the map from the ids of the item vocabulary to item_idx - 1."""
    return IdMap(_ids(folder, ITEM_VOCABULARY, manifest, column="item_id"))


def _ids(folder: Path, name: str, manifest: Manifest, *, column: str) -> pa.Array:
    with damaged(folder / name):
        ids = plain(read_table(folder, name, manifest)[column])
        if ids.null_count or not (pa.types.is_integer(ids.type) or pa.types.is_string(ids.type)):
            raise UserError(f"{folder / name}: {column}: found {ids.type} with {ids.null_count} nulls, expected ids")
        if pc.count_distinct(ids).as_py() < len(ids):
            raise UserError(f"{folder / name}: {column}: found an id more than once")
    return ids


def _encode(
    encoders: Mapping[str, FeatureEncoder],
    rows: Sequence[Mapping[str, Any]],
    *,
    place: str,
    given: set[str] | None = None,
) -> dict[str, Column]:
    """Encode features; those that are not `given` are in no row, so that the rows need not be read."""
    columns = {}
    for name, encoder in encoders.items():
        is_given = given is None or name in given
        values = to_values([row.get(name) for row in rows] if is_given else [None] * len(rows), f"{place}.{name}")
        try:
            columns[name] = encoder.encode(values)
        except pa.ArrowException as error:
            raise UserError(
                f"{place}.{name}: found {values.type}, which cannot be read as {encoder.feature.kind}"
            ) from error
    return columns
