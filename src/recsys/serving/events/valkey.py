"""Event store in Valkey or Redis, which several gateways may share."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import redis

from recsys.core.errors import UserError
from recsys.core.suppression import hash_of
from recsys.serving.events.byte_search import search_file
from recsys.serving.events.event_store import (
    Erased,
    Event,
    Outcome,
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
from recsys.serving.events.merging import (
    Arrivals,
    decode_events,
    decode_profile,
    encode_events,
    encode_profile,
    merge,
)
from recsys.serving.events.valkey_files import write_anew
from recsys.serving.valkey import DurableServer

# Search for users: number of keys of one SCAN, and maximum number of SCANs.
_SCANNED, _SCANS = 1000, 200
# Seconds in which a write is retried because other gateways change the same users.
_TIMEOUT_SECONDS = 10.0


class ValkeyEvents:
    """`EventStore` on one server. Replicas are not used, because they may lack acknowledged events.

    A history is one key. A write watches the keys that it reads, and starts again if another gateway changes one.

    Args:
        url: `redis://host:port/db`, `rediss://` or `unix://` as in redis-py, or `valkey://` and `valkeys://`.

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
        self.max_events, self._prefix = max_events, prefix
        self._server = DurableServer(url, key="events", what="events", failed=StoreError)
        self._client, self._answers = self._server.client, self._server.answers
        self._group = GroupCommit(self._append)

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

        def change(held: Mapping[UserId, list[Event]]) -> dict[str, bytes | None]:
            changed: dict[str, bytes | None] = {}
            for user_id in arrivals.users:
                if user_id not in held:
                    arrivals.drop(user_id)
                elif (kept := arrivals.merge(user_id, held[user_id])) != held[user_id]:
                    changed[self._key("history", user_id)] = encode_events(kept)
            return changed

        self._write(arrivals.users, change)
        return arrivals.outcomes()

    @property
    def _since(self) -> int | None:
        return first_second(self._max_age_days, self._clock)

    def _write(
        self,
        user_ids: Sequence[UserId],
        change: Callable[[Mapping[UserId, list[Event]]], Mapping[str, str | bytes | None]],
    ) -> None:
        """Set what `change` returns for the histories of users; repeat while other gateways change them.

        `change` gets no forgotten users. A key whose value is None is removed.
        """
        if self._server.fault is not None:
            raise StoreError(self._server.fault)
        give_up = time.monotonic() + _TIMEOUT_SECONDS
        pause = 0.0005
        with self._answers(), self._client.pipeline(transaction=True) as pipe:
            while True:
                try:
                    pipe.watch(self._suppressed_key, *(self._key("history", user_id) for user_id in user_ids))
                    forgotten = self._forgotten(pipe, user_ids)
                    known = [user_id for user_id in user_ids if user_id not in forgotten]
                    contents = pipe.mget([self._key("history", user_id) for user_id in known]) if known else []
                    # Held events are durable already, because the server shows nothing before fsync.
                    if changed := change(dict(zip(known, map(self._decode, contents), strict=True))):
                        pipe.multi()
                        if kept := {key: value for key, value in changed.items() if value is not None}:
                            pipe.mset(kept)
                        if removed := changed.keys() - kept.keys():
                            pipe.delete(*removed)
                        pipe.execute()
                    return
                except redis.WatchError as error:
                    if time.monotonic() > give_up:
                        raise StoreError(
                            f"events: {self._server.place}: other gateways keep changing the same users"
                        ) from error
                    time.sleep(random.uniform(0, pause))
                    pause = min(2 * pause, 0.05)

    def history(self, user_id: UserId) -> list[Event]:
        """Return the events of a user; see `EventStore.history`."""
        with self._answers():
            return self._decode(self._client.get(self._key("history", user_id)))

    def histories(self, user_ids: Sequence[UserId]) -> list[list[Event]]:
        """Return the history of each user; see `EventStore.histories`."""
        if not user_ids:
            return []
        with self._answers():
            found = self._client.mget([self._key("history", user_id) for user_id in user_ids])
        return [self._decode(content) for content in found]

    def _decode(self, content: Any) -> list[Event]:
        if content is None:
            return []
        return decode_events(content, self.max_events, unreadable=self._unreadable, since=self._since)

    def profile(self, user_id: UserId) -> Mapping[str, Any]:
        """Return the profile features of a user; see `EventStore.profile`."""
        with self._answers():
            content: Any = self._client.get(self._key("profile", user_id))
        return {} if content is None else decode_profile(content, unreadable=self._unreadable)

    def users(self, prefix: str, limit: int) -> list[UserId]:
        """Return users in the order of ids from a bounded SCAN; see `EventStore.users`."""
        found: set[UserId] = set()
        begin = len(self._key("history", 0).encode()) - 1
        with self._answers():
            # In a key, a text id begins with a quotation mark and a number with its digits.
            for kind in (prefix, json.dumps(prefix, ensure_ascii=False)[:-1]):
                pattern, cursor = f"{_literal(self._prefix)}:history:{_literal(kind)}*", 0
                for _ in range(_SCANS):
                    cursor, keys = self._client.scan(cursor, pattern, _SCANNED)
                    users = (json.loads(key[begin:]) for key in keys)
                    # An empty prefix, or a quotation mark, matches numbers and quoted texts alike.
                    found.update(user for user in users if str(user).startswith(prefix))
                    if not cursor or len(found) >= limit:
                        break
        ordered = sorted((isinstance(user, str), user) for user in found)
        return [user for _, user in ordered][:limit]

    def forget(self, user_ids: Sequence[UserId]) -> Erased:
        """Remove users; see `EventStore.forget`."""
        users = both_forms(user_ids)
        if not users:
            return Erased(0, 0, frozenset())
        with self._group.exclusive(), self._answers(), self._client.pipeline(transaction=True) as pipe:
            pipe.sadd(self._suppressed_key, *map(hash_of, users))
            for kind in ("history", "profile"):
                pipe.delete(*(self._key(kind, user) for user in users))
            _, histories, profiles = pipe.execute()
        return Erased(int(histories), int(profiles), frozenset())

    def suppressed(self, user_ids: Sequence[UserId]) -> set[UserId]:
        """Return the forgotten users; see `EventStore.suppressed`."""
        with self._answers():
            return self._forgotten(self._client, user_ids)

    def _forgotten(self, client: Any, user_ids: Sequence[UserId]) -> set[UserId]:
        if not user_ids:
            return set()
        flags = client.smismember(self._suppressed_key, [hash_of(user) for user in user_ids])
        return {user for user, is_member in zip(user_ids, flags, strict=True) if is_member}

    def suppress(self, hashes: Collection[str]) -> int:
        """Forget users by hash; see `EventStore.suppress`."""
        with self._answers():
            known: Any = self._client.smembers(self._suppressed_key)
            new = set(hashes) - {one.decode() for one in known}
            if not new:
                return 0
            self._client.sadd(self._suppressed_key, *new)
            users = {
                user
                for kind in ("history", "profile")
                for user in map(json.loads, self._all_ids(kind))
                if hash_of(user) in new
            }
        self.forget(list(users))
        return len(users)

    def _all_ids(self, kind: str) -> Iterator[bytes]:
        """Yield the ids of all users with a key of a kind, in JSON; some may come twice."""
        begin = f"{self._prefix}:{kind}:"
        for key in self._client.scan_iter(f"{_literal(begin)}*", _SCANNED):
            yield key[len(begin.encode()) :]

    def search(self, user_ids: Sequence[UserId], patterns: Collection[bytes]) -> list[Searched]:
        """Let the server write its files anew, and search them if they are on this machine; see `EventStore.search`.

        The server compresses long keys in the first part of its file, which it wrote after the users were removed.
        """
        ids = [self._key(kind, user) for kind in ("history", "profile") for user in both_forms(user_ids)]
        with self._answers():
            parts = [ids[begin : begin + _SCANNED] for begin in range(0, len(ids), _SCANNED)]
            remaining = sum(self._client.exists(*part) for part in parts)
            found = write_anew(self._server)
        wanted = frozenset([*(key.encode() + b"\r" for key in ids), *patterns])
        keys = Searched(f"keys of {self._server.place}", 0, remaining)
        return [keys, *(search_file(file, wanted) for file in found)]

    def expire(self) -> int:
        """Remove old events; see `EventStore.expire`."""
        since = self._since
        if since is None:
            return 0
        expired = 0
        with self._answers():
            for user in map(json.loads, self._all_ids("history")):
                content: Any = self._client.get(self._key("history", user))
                events = [] if content is None else decode_events(content, self.max_events, unreadable=ignore)
                if events and events[0].timestamp < since:
                    self._write([user], self._without_old)
                    expired += 1
        return expired

    def _without_old(self, held: Mapping[UserId, list[Event]]) -> dict[str, bytes | None]:
        return {self._key("history", user): encode_events(kept) if kept else None for user, kept in held.items()}

    def restore(self, users: Sequence[Restored], source: str, *, done: int) -> None:
        """Merge users of a source; see `EventStore.restore`."""
        by_id = {user.user_id: user for user in users}

        def change(held: Mapping[UserId, list[Event]]) -> dict[str, str | bytes | None]:
            changed: dict[str, str | bytes | None] = {self._restored_key(source): str(done)}
            for user_id, history in held.items():
                user = by_id[user_id]
                if user.events:
                    recent = user.events[-self.max_events :]
                    kept = merge(recent, history, max_events=self.max_events, since=self._since)
                    changed[self._key("history", user_id)] = encode_events(kept) if kept else None
                if user.profile:
                    changed[self._key("profile", user_id)] = encode_profile(user.profile)
            return changed

        self._write(list(by_id), change)

    def restored(self, source: str) -> int:
        """Return the progress of a source; see `EventStore.restored`."""
        with self._answers():
            content: Any = self._client.get(self._restored_key(source))
        return 0 if content is None else int(content)

    def close(self) -> None:
        """Close the store; see `EventStore.close`."""
        with self._group.exclusive():
            self._server.close()

    def _key(self, kind: str, user_id: UserId) -> str:
        # In JSON 5 and "5" differ.
        return f"{self._prefix}:{kind}:{json.dumps(user_id, ensure_ascii=False)}"

    @property
    def _suppressed_key(self) -> str:
        return f"{self._prefix}:suppressed"

    def _restored_key(self, source: str) -> str:
        return f"{self._prefix}:restored:{source}"


def _literal(text: str) -> str:
    return re.sub(r"([*?\[\]\\])", r"\\\1", text)
