"""Event store in Valkey or Redis, on one server or on a cluster, which several gateways may share."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from recsys.core.errors import UserError
from recsys.core.suppression import hash_of
from recsys.serving.events.byte_search import search_file
from recsys.serving.events.event_store import (
    Erased,
    Event,
    Outcome,
    PartlyReadError,
    Restored,
    Searched,
    StoreError,
    Unreadable,
    UserId,
    both_forms,
    first_second,
    ignore,
)
from recsys.serving.events.grouping import GroupCommit
from recsys.serving.events.growing import edit_of, encode_growing
from recsys.serving.events.merging import (
    Arrivals,
    decode_events,
    decode_profile,
    encode_events,
    encode_profile,
    has_older,
    merge,
)
from recsys.serving.events.valkey_files import write_anew
from recsys.serving.events.valkey_keys import UserKeys
from recsys.serving.events.valkey_writes import Edits, Stored, write
from recsys.serving.valkey import DurableServer
from recsys.serving.valkey_edits import ANY, Edit

# Maximum number of parts of a search for users.
_PARTS = 200


class ValkeyEvents:
    """`EventStore` on a server or a cluster. Replicas are not used, because they may lack acknowledged events.

    A write compares what it has read, and starts again if another gateway has changed it. One server makes all changes
    of a write or none; a cluster all of each user.

    Args:
        url: address, see `DurableServer`.

    Raises:
        UserError: If the address is malformed, or the settings of the server allow it to lose acknowledged events.
        StoreError: If the server cannot be reached.
    """

    is_embedded = False

    def __init__(
        self,
        url: str,
        max_events: int = 200,
        *,
        prefix: str = "recsys",
        max_age_days: float | None = None,
        unreadable: Unreadable = ignore,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if max_events < 1:
            raise UserError(f"max_events: found {max_events}, expected at least 1")
        self._unreadable, self._max_age_days, self._clock = unreadable, max_age_days, clock
        self.max_events = max_events
        self._server = DurableServer(url, key="events", what="events", failed=StoreError)
        self._client, self._answers = self._server.client, self._server.answers
        self._keys, self._prefix = UserKeys(self._server, prefix), prefix
        self._group = GroupCommit(self._append, is_divisible=self._server.is_cluster)

    def check(self) -> None:
        """Check the settings, which may change under a live connection; nothing is written while they are wrong."""
        self._server.check()

    def append(self, events: Sequence[tuple[UserId, Event]]) -> list[Outcome]:
        """Add events; see `EventStore.append`."""
        # Encoding before the shared write makes an error affect only its own sender.
        encode_events([event for _, event in events])
        return self._group.append(events) if events else []

    def _append(self, events: Sequence[tuple[UserId, Event]]) -> list[Outcome]:
        arrivals = Arrivals(events, self.max_events, since=self._since)

        def edits(user_id: UserId, stored: Stored) -> list[Edit]:
            kept = arrivals.merge(user_id, stored.events)
            edit = edit_of(
                self._keys.key("history", user_id),
                stored.content,
                stored.events,
                kept,
                max_events=self.max_events,
                is_whole=stored.is_whole,
                member=hash_of(user_id),
            )
            return [] if edit is None else [edit]

        self._write(arrivals.users, edits, refused=arrivals.drop)
        return arrivals.outcomes()

    @property
    def _since(self) -> int | None:
        return first_second(self._max_age_days, self._clock)

    def _write(
        self, user_ids: Sequence[UserId], edits: Edits, *, refused: Callable[[UserId], None] = lambda _: None
    ) -> None:
        if self._server.fault is not None:
            raise StoreError(self._server.fault)
        with self._answers():
            write(self._server, self._keys, user_ids, read=self._stored, edits=edits, refused=refused)

    def _stored(self, content: bytes | None) -> Stored:
        lost: list[int] = []
        events = self._decode(content, lost.append)
        if lost:
            self._unreadable(sum(lost))
        return Stored(content, events, not lost)

    def history(self, user_id: UserId) -> list[Event]:
        """Return the events of a user; see `EventStore.history`."""
        with self._answers():
            content = self._client.get(self._keys.key("history", user_id))
        return self._decode(content, self._unreadable)

    def histories(self, user_ids: Sequence[UserId]) -> list[list[Event]]:
        """Return the history of each user; see `EventStore.histories`."""
        if not user_ids:
            return []
        keys = [self._keys.key("history", user_id) for user_id in user_ids]
        try:
            with self._answers():
                found = self._server.get_many(keys)
        except StoreError as error:
            if self._server.is_cluster:
                self._read_by_node(keys, error)
            raise
        return [self._decode(content, self._unreadable) for content in found]

    def _read_by_node(self, keys: Sequence[str], error: StoreError) -> None:
        """Raise `PartlyReadError`, unless every node was asked and none answered."""
        found: dict[str, bytes | None] = {}
        with self._answers():
            groups, num_nodes = self._server.by_node(keys), len(self._server.nodes())
        for group in groups:
            with contextlib.suppress(StoreError), self._answers():
                found.update(zip(group, self._server.get_many(group), strict=True))
        if found or len(groups) < num_nodes:
            histories = [self._decode(found[key], self._unreadable) if key in found else None for key in keys]
            raise PartlyReadError(str(error), histories) from error

    def _decode(self, content: bytes | None, unreadable: Unreadable) -> list[Event]:
        if content is None:
            return []
        return decode_events(content, self.max_events, unreadable=unreadable, since=self._since)

    def profile(self, user_id: UserId) -> Mapping[str, Any]:
        """Return the profile features of a user; see `EventStore.profile`."""
        with self._answers():
            content: Any = self._client.get(self._keys.key("profile", user_id))
        return {} if content is None else decode_profile(content, unreadable=self._unreadable)

    def users(self, prefix: str, limit: int) -> list[UserId]:
        """Return users in the order of ids from a bounded SCAN; see `EventStore.users`."""
        found: set[UserId] = set()
        with self._answers():
            # In a key, a text id begins with a quotation mark and a number with its digits.
            for kind in (prefix, json.dumps(prefix, ensure_ascii=False)[:-1]):
                for ids in itertools.islice(self._keys.ids("history", kind), _PARTS):
                    # An empty prefix, or a quotation mark, matches numbers and quoted texts alike.
                    found.update(user for user in map(json.loads, ids) if str(user).startswith(prefix))
                    if len(found) >= limit:
                        break
        ordered = sorted((isinstance(user, str), user) for user in found)
        return [user for _, user in ordered][:limit]

    def forget(self, user_ids: Sequence[UserId]) -> Erased:
        """Remove users; see `EventStore.forget`."""
        users = both_forms(user_ids)
        with self._answers():
            histories, profiles = self._keys.forget(set(map(hash_of, users)), users)
        return Erased(histories, profiles, frozenset())

    def suppressed(self, user_ids: Sequence[UserId]) -> set[UserId]:
        """Return the forgotten users; see `EventStore.suppressed`."""
        with self._answers():
            flags = self._keys.are_forgotten(map(hash_of, user_ids))
        return {user for user, is_forgotten in zip(user_ids, flags, strict=True) if is_forgotten}

    def suppress(self, hashes: Collection[str]) -> int:
        """Forget users by hash; see `EventStore.suppress`."""
        listed, unfinished = list(hashes), f"{self._prefix}:suppressing"
        with self._answers():
            flags = self._keys.are_forgotten(listed)
            new = {one for one, is_forgotten in zip(listed, flags, strict=True) if not is_forgotten}
            # Another call that did not end has left histories, or is still removing them.
            new |= {one.decode() for one in self._client.smembers(unfinished)}
            if not new:
                return 0
            self._client.sadd(unfinished, *new)
            self._keys.forget(new)
            stored = itertools.chain(self._keys.ids("history"), self._keys.ids("profile"))
            users = {user for ids in stored for user in map(json.loads, ids) if hash_of(user) in new}
        self.forget(list(users))
        with self._answers():
            self._client.srem(unfinished, *new)
        return len(users)

    def search(self, user_ids: Sequence[UserId], patterns: Collection[bytes]) -> list[Searched]:
        """Let each server write its files anew, and search them if they are on this machine; see `EventStore.search`.

        A server compresses long keys in the first part of its file, which it wrote after the users were removed.
        """
        ids = [self._keys.key(kind, user) for kind in ("history", "profile") for user in both_forms(user_ids)]
        with self._answers():
            remaining = sum(content is not None for content in self._server.get_many(ids))
            found = [file for node in self._server.nodes() for file in write_anew(node, self._server.place)]
        wanted = frozenset([*(key.encode() + b"\r" for key in ids), *patterns])
        keys = Searched(f"keys of {self._server.place}", 0, remaining)
        return [keys, *(search_file(file, wanted) for file in found)]

    def expire(self) -> int:
        """Remove old events; see `EventStore.expire`."""
        since = self._since
        if since is None:
            return 0
        expired: set[UserId] = set()

        def edits(user_id: UserId, stored: Stored) -> list[Edit]:
            if not has_older(stored.content, since):
                return []
            expired.add(user_id)
            key = self._keys.key("history", user_id)
            if not stored.events:
                return [Edit(key, stored.content, "delete")]
            return [Edit(key, stored.content, "set", encode_growing(stored.events))]

        for ids in self._keys.ids("history"):
            if ids:
                self._write(list(map(json.loads, ids)), edits)
        return len(expired)

    def restore(self, users: Sequence[Restored], source: str, *, done: int) -> None:
        """Merge users of a source; see `EventStore.restore`."""
        by_id = {user.user_id: user for user in users}

        def edits(user_id: UserId, stored: Stored) -> list[Edit]:
            user, member, found = by_id[user_id], hash_of(user_id), []
            if user.events:
                recent = user.events[-self.max_events :]
                kept = merge(recent, stored.events, max_events=self.max_events, since=self._since)
                key = self._keys.key("history", user_id)
                if not kept:
                    found.append(Edit(key, stored.content, "delete", member=member))
                elif kept != stored.events:
                    found.append(Edit(key, stored.content, "set", encode_growing(kept), member))
            if user.profile:
                found.append(Edit(self._keys.key("profile", user_id), ANY, "set", encode_profile(user.profile), member))
            return found

        self._write(list(by_id), edits)
        with self._answers():
            self._client.set(self._restored_key(source), done)

    def restored(self, source: str) -> int:
        """Return the progress of a source; see `EventStore.restored`."""
        with self._answers():
            content: Any = self._client.get(self._restored_key(source))
        return 0 if content is None else int(content)

    def close(self) -> None:
        """Close the store; see `EventStore.close`."""
        with self._group.exclusive():
            self._server.close()

    def _restored_key(self, source: str) -> str:
        return f"{self._prefix}:restored:{source}"
