"""The user half of a release: raw values of requests in, user embeddings out. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.core.columns import Column
from recsys.core.errors import UserError, nearest
from recsys.core.schema import Feature, Schema
from recsys.core.types import Float32Array
from recsys.data.encoding import FeatureEncoder
from recsys.release.manifest import ITEM_VOCABULARY, SCHEMA, SELF_CHECK, USER_VOCABULARY, Manifest
from recsys.release.runtime.item_ids import IdMap, to_values
from recsys.release.runtime.self_check import TOLERANCE, stored_check
from recsys.release.runtime.timestamps import event_seconds
from recsys.release.runtime.user_tower import Histories, UserTowerSession

ItemId = int | str
EVENT_KEYS = ("item_id", "timestamp")


@dataclass(frozen=True, slots=True)
class Query:
    """What is known of one request.

    Attributes:
        history: events, oldest first: `item_id`, perhaps `timestamp`, and values of event features. Towers that read
            time take an event without one for simultaneous with the event before it (see `event_seconds`).
        user_id: read only by towers that learn an embedding for each user.
        user: values of profile features.
        request: values of request features.
        exclude: items that must not be shown, besides those of the history.
    """

    history: Sequence[Mapping[str, Any]] = ()
    user_id: ItemId | None = None
    user: Mapping[str, Any] = field(default_factory=dict)
    request: Mapping[str, Any] = field(default_factory=dict)
    exclude: Sequence[ItemId] = ()


class QueryEncoder:
    """Encodes requests as in training, and runs the user tower of one release.

    Args:
        folder: of the release.
        manifest: what `verify_release` gave for it.
        known_items: ids of the release's vocabulary of items, where they are in memory already.
        threads: of one call of the tower; 0 for as many as there are cores.
    """

    def __init__(self, folder: Path, manifest: Manifest, known_items: IdMap | None = None, threads: int = 1) -> None:
        self.folder, self.manifest = folder, manifest
        self.schema = Schema.load(folder / SCHEMA)
        self.tower = UserTowerSession(folder, manifest, threads)
        self.known_items = load_known_items(folder) if known_items is None else known_items
        self._users: IdMap | None = None
        if (folder / USER_VOCABULARY).exists():
            self._users = IdMap(pq.read_table(folder / USER_VOCABULARY)["user_id"].combine_chunks())
        self.names = {
            "history": {*EVENT_KEYS, *(f.name for f in self.schema.owned_by("interactions"))},
            "user": {f.name for f in self.schema.owned_by("users")},
            "request": {f.name for f in self.schema.with_role("request")},
        }
        self._events = self._encoders("event")
        self._profile = self._encoders("user")
        self.request_encoders: Mapping[str, FeatureEncoder] = self._encoders("request")

    @property
    def version(self) -> str:
        """Of the release that the tower belongs to."""
        return self.manifest.version

    @property
    def reads_profiles(self) -> bool:
        """Whether the tower reads any profile feature."""
        return bool(self._profile)

    def embed(self, queries: Sequence[Query]) -> Float32Array:
        """User embeddings float32 [B, D], or [B, M, D] of towers that give several."""
        histories, _ = self.encode(queries)
        return self.tower(histories)

    def encode(self, queries: Sequence[Query]) -> tuple[Histories, list[list[ItemId]]]:
        """What the tower reads of the queries, and each query's distinct unknown items.

        Raises:
            UserError: a feature that nobody declared, or a value that cannot be read.
        """
        for query in queries:
            self.check_names(query)
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
            events=_encode(self._events, events, "history"),
            users=_encode(self._profile, [query.user for query in queries], "user"),
            requests=_encode(self.request_encoders, [query.request for query in queries], "request"),
        )
        return histories, unknown

    def user_rows(self, ids: pa.Array) -> npt.NDArray[np.int64]:
        """The tower's index of each user, -1 for those that it has no embedding for."""
        return np.full(len(ids), -1) if self._users is None else self._users.rows_of(ids)

    def encoder(self, feature: Feature) -> FeatureEncoder:
        """The encoder of a feature, as in training."""
        path = self.folder / f"vocabularies/{feature.key}.parquet"
        vocabulary = pq.read_table(path)["value"].combine_chunks() if feature.has_vocabulary else None
        return FeatureEncoder(feature, vocabulary)

    def check_names(self, query: Query) -> None:
        """Refuse features that nobody declared; one that this tower happens not to read is fine.

        Raises:
            UserError: it names the feature and the nearest valid one.
        """
        given = set[str]().union(*query.history)
        if not given <= self.names["history"]:
            self.refuse("history", given)
        if query.user:
            self.refuse("user", query.user)
        if query.request:
            self.refuse("request", query.request)

    def refuse(self, place: str, given: Iterable[str]) -> None:
        """Refuse names that are none of `place`: history, user or request."""
        valid = self.names[place]
        for name in given:
            if name not in valid:
                raise UserError(f"{place}.{name}: no such feature{nearest(name, valid)}")

    def check(self) -> None:
        """The tower must answer its stored questions as when the release was made.

        Raises:
            UserError: it does not.
        """
        check = stored_check(self.folder)
        inputs = {name.removeprefix("input:"): v for name, v in check.items() if name.startswith("input:")}
        found, expected = self.tower.run(inputs), check["embeddings"]
        if found.shape != expected.shape or not np.allclose(found, expected, atol=TOLERANCE, rtol=TOLERANCE):
            raise UserError(f"{self.folder}: the user tower does not give the embeddings of {SELF_CHECK}")

    def _encoders(self, prefix: str) -> dict[str, FeatureEncoder]:
        owner = "users" if prefix == "user" else "interactions"
        read = {name for spec in self.manifest.inputs for head, _, name in [spec.name.partition(".")] if head == prefix}
        return {f.name: self.encoder(f) for f in self.schema.features if f.owner == owner and f.name in read}


def _item_ids(history: Sequence[Mapping[str, Any]]) -> list[ItemId]:
    try:
        return [event["item_id"] for event in history]
    except KeyError:
        number = next(number for number, event in enumerate(history) if "item_id" not in event)
        raise UserError(f"history: event {number} has no item_id") from None


def load_known_items(folder: Path) -> IdMap:
    """Ids of the release's vocabulary of items -> item_idx - 1."""
    return IdMap(pq.read_table(folder / ITEM_VOCABULARY)["item_id"].combine_chunks())


def _encode(encoders: Mapping[str, FeatureEncoder], rows: Sequence[Mapping[str, Any]], place: str) -> dict[str, Column]:
    columns = {}
    for name, encoder in encoders.items():
        values = to_values([row.get(name) for row in rows], f"{place}.{name}")
        try:
            columns[name] = encoder.encode(values)
        except pa.ArrowException as error:
            raise UserError(
                f"{place}.{name}: found {values.type}, which cannot be read as {encoder.feature.kind}"
            ) from error
    return columns
