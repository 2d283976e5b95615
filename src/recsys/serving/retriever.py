"""Answers requests with one release: raw values in, ranked items out. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data.columns import Column, Ragged, load_array
from recsys.data.encoding import FeatureEncoder
from recsys.errors import UserError, nearest
from recsys.index import Index, load_index, search_users
from recsys.release.manifest import EMBEDDINGS, ITEM_VOCABULARY, ITEMS, SCHEMA, SELF_CHECK, USER_VOCABULARY, Manifest
from recsys.release.store import ReleaseStore
from recsys.schema import Feature, Schema
from recsys.serving.items import Filter, IdMap, ItemFilter, to_values
from recsys.serving.times import event_seconds
from recsys.serving.tower import Floats, Histories, UserTowerSession

ItemId = int | str
# Tower and index answer their stored questions as they did when the release was made, up to other processors' rounding.
TOLERANCE = 1e-3


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Answer:
    """Ranked items of one request.

    Attributes:
        item_ids: best first; where a user has several embeddings, these take turns.
        scores: float32, of the same length; each from the embedding that brought the item.
        history_length: events that the tower read.
        unknown_items: distinct items of the history that the release does not know, in order; the tower read them as
            unknown ones.
    """

    item_ids: list[ItemId]
    scores: Floats
    history_length: int
    unknown_items: list[ItemId]


class Retriever:
    """One verified release, ready to answer.

    Args:
        folder: of the release.
        manifest: what `verify_release` gave for it.
        threads: of one call of the tower; 0 for as many as there are cores.
    """

    def __init__(self, folder: Path, manifest: Manifest, threads: int = 0) -> None:
        self.folder, self.manifest = folder, manifest
        self.schema = Schema.load(folder / SCHEMA)
        self.tower = UserTowerSession(folder, manifest, threads)
        embeddings = load_array(folder / EMBEDDINGS)
        self.index: Index = load_index(folder, embeddings.view(np.float32), verify=False)
        self.items = pq.read_table(folder / ITEMS)
        self.item_filter = ItemFilter(self.items)
        self.known_items = IdMap(pq.read_table(folder / ITEM_VOCABULARY)["item_id"].combine_chunks())
        self.row_of_item = np.full(len(self.known_items) + 1, -1)
        self.row_of_item[np.asarray(self.items["item_idx"])] = np.arange(len(self.items))
        self._users: IdMap | None = None
        if (folder / USER_VOCABULARY).exists():
            self._users = IdMap(pq.read_table(folder / USER_VOCABULARY)["user_id"].combine_chunks())
        self._names = {
            "interactions": {"item_id", "timestamp", *(f.name for f in self.schema.owned_by("interactions"))},
            "users": {f.name for f in self.schema.owned_by("users")},
            "request": {f.name for f in self.schema.with_role("request")},
        }
        self._events = self._encoders("event")
        self._profile = self._encoders("user")
        self._requests = self._encoders("request")
        self._check()

    @classmethod
    def load(cls, store: str | Path, release: str, threads: int = 0) -> Retriever:
        """Open a release by version or alias.

        Raises:
            UserError: there is no such release, or it is not what it says.
        """
        folder, manifest = ReleaseStore(store).open(release)
        return cls(folder, manifest, threads)

    @property
    def version(self) -> str:
        """Of the release."""
        return self.manifest.version

    @property
    def request_encoders(self) -> Mapping[str, FeatureEncoder]:
        """Encoders of the request features that the tower reads."""
        return self._requests

    def retrieve(
        self, queries: Sequence[Query], k: int = 100, exclude_seen: bool = True, filter: Filter | None = None
    ) -> list[Answer]:
        """The k best items for each query; fewer where the filter and exclusions leave fewer.

        Args:
            queries: B requests.
            k: items for each.
            exclude_seen: leave out the items of the whole history.
            filter: column -> value or values, over the columns of the release's items.

        Raises:
            UserError: a feature, column or value that the release does not know what to do with.
        """
        histories, unknown = self.encode(queries)
        embeddings = self.tower(histories)
        excluded = [
            [*([event["item_id"] for event in query.history] if exclude_seen else []), *query.exclude]
            for query in queries
        ]
        allow = self.item_filter(filter or {})
        scores, rows = search_users(self.index, embeddings, k, allow, self.rows_of_items(excluded))
        ids = self.items["item_id"]
        answers = []
        for number in range(len(queries)):
            found = rows[number] >= 0
            shown = ids.take(pa.array(rows[number][found])).to_pylist()
            length = int(histories.lengths[number])
            answers.append(Answer(shown, scores[number][found], length, unknown[number]))
        return answers

    def embed(self, queries: Sequence[Query]) -> Floats:
        """User embeddings float32 [B, D], or [B, M, D] of towers that give several."""
        histories, _ = self.encode(queries)
        return self.tower(histories)

    def encode(self, queries: Sequence[Query]) -> tuple[Histories, list[list[ItemId]]]:
        """What the tower reads of the queries, and each query's distinct unknown items."""
        for query in queries:
            self._check_names(query)
        item_idx, lengths, unknown = [], [], []
        recent = [list(query.history)[-self.manifest.max_history :] for query in queries]
        for query, events in zip(queries, recent, strict=True):
            ids = [event["item_id"] for event in query.history]
            found = self.known_items.rows(ids) + 1
            unknown.append(list(dict.fromkeys(value for value, idx in zip(ids, found, strict=True) if not idx)))
            item_idx.append(found[len(found) - len(events) :])
            lengths.append(len(events))
        user_idx = np.full(len(queries), -1)
        if self._users is not None:
            user_idx = self._users.rows([query.user_id for query in queries])
        histories = Histories(
            item_idx=np.concatenate([np.zeros(0, np.int64), *item_idx]),
            lengths=np.array(lengths, np.int64),
            user_idx=user_idx,
            time=event_seconds(recent) if self.tower.reads_time else np.zeros(sum(lengths), np.int64),
            events=_encode(self._events, [event for events in recent for event in events], "history"),
            users=_encode(self._profile, [query.user for query in queries], "user"),
            requests=_encode(self._requests, [query.request for query in queries], "request"),
        )
        return histories, unknown

    def rows_of_items(self, ids: Sequence[Sequence[ItemId]]) -> Ragged:
        """Rows of the index for the ids that it holds, for each query."""
        flat = [value for row in ids for value in row]
        lengths = np.array([len(row) for row in ids], np.int64)
        found = self.known_items.rows(flat) + 1
        return self.index_rows(Ragged(found.astype(np.int32), np.concatenate([[0], np.cumsum(lengths)])))

    def user_rows(self, ids: pa.Array) -> npt.NDArray[np.int64]:
        """The tower's index of each user, -1 for those that it has no embedding for."""
        return np.full(len(ids), -1) if self._users is None else self._users.rows_of(ids)

    def index_rows(self, items: Ragged) -> Ragged:
        """Rows of the index for rows of item_idx; those that it does not hold are left out."""
        owner = np.repeat(np.arange(len(items)), np.diff(items.offsets))
        known = items.values < len(self.row_of_item)
        rows = np.where(known, self.row_of_item[np.where(known, items.values, 0)], -1)
        counts = np.bincount(owner[rows >= 0], minlength=len(items))
        return Ragged(rows[rows >= 0].astype(np.int32), np.concatenate([[0], np.cumsum(counts)]))

    def encoder(self, feature: Feature) -> FeatureEncoder:
        """The encoder of a feature, as in training."""
        path = self.folder / f"vocabularies/{feature.key}.parquet"
        vocabulary = pq.read_table(path)["value"].combine_chunks() if feature.has_vocabulary else None
        return FeatureEncoder(feature, vocabulary)

    def _encoders(self, prefix: str) -> dict[str, FeatureEncoder]:
        owner = "users" if prefix == "user" else "interactions"
        read = {name for spec in self.manifest.inputs for head, _, name in [spec.name.partition(".")] if head == prefix}
        return {f.name: self.encoder(f) for f in self.schema.features if f.owner == owner and f.name in read}

    def _check_names(self, query: Query) -> None:
        # A feature that this tower happens not to read is fine; one that nobody declared is a mistake.
        events = self._names["interactions"]
        given_at: list[tuple[str, Mapping[str, Any], set[str]]] = [
            ("history", event, events) for event in query.history
        ]
        given_at += [("user", query.user, self._names["users"]), ("request", query.request, self._names["request"])]
        for place, given, valid in given_at:
            for name in given:
                if name not in valid:
                    raise UserError(f"{place}.{name}: no such feature{nearest(name, valid)}")
        for number, event in enumerate(query.history):
            if "item_id" not in event:
                raise UserError(f"history: event {number} has no item_id")

    def _check(self) -> None:
        """Tower and index must answer as they did when the release was made."""
        path = self.folder / SELF_CHECK
        try:
            with np.load(path, allow_pickle=False) as stored:
                check: dict[str, npt.NDArray[Any]] = dict(stored)
            inputs = {name.removeprefix("input:"): v for name, v in check.items() if name.startswith("input:")}
            expected, best = check["embeddings"], check["best_scores"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path}: damaged ({error})") from error
        found = self.tower.run(inputs)
        if found.shape != expected.shape or not np.allclose(found, expected, atol=TOLERANCE, rtol=TOLERANCE):
            raise UserError(f"{self.folder}: the user tower does not give the embeddings of {SELF_CHECK}")
        scores, _ = search_users(self.index, expected, 1)
        # An approximate search may go another way on another processor, but not for most questions.
        if np.isclose(scores[:, 0], best, atol=TOLERANCE, rtol=TOLERANCE).mean() < 0.75:
            raise UserError(
                f"{self.folder}: the index does not find the items of {SELF_CHECK}: tower and index are no pair"
            )


def _encode(encoders: Mapping[str, FeatureEncoder], rows: Sequence[Mapping[str, Any]], place: str) -> dict[str, Column]:
    return {
        name: encoder.encode(to_values([row.get(name) for row in rows], f"{place}.{name}"))
        for name, encoder in encoders.items()
    }
