"""Event store in Valkey or Redis, which several gateways may share."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import redis

from recsys.core.errors import UserError
from recsys.serving.events.event_store import Event, Outcome, Restored, StoreError, Unreadable, UserId, ignore
from recsys.serving.events.grouping import GroupCommit
from recsys.serving.events.merging import (
    Arrivals,
    decode_events,
    decode_profile,
    encode_events,
    encode_profile,
    merge,
)
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
        self, url: str, max_events: int = 200, *, prefix: str = "recsys", unreadable: Unreadable = ignore
    ) -> None:
        if max_events < 1:
            raise UserError(f"max_events: found {max_events}, expected at least 1")
        self._unreadable = unreadable
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
        arrivals = Arrivals(events, self.max_events)
        keys = {user_id: self._key("history", user_id) for user_id in arrivals.users}

        def change(held: Mapping[str, list[Event]]) -> dict[str, bytes]:
            kept = {key: arrivals.merge(user_id, held[key]) for user_id, key in keys.items()}
            return {key: encode_events(history) for key, history in kept.items() if history != held[key]}

        self._write(list(keys.values()), change)
        return arrivals.outcomes()

    def _write(
        self, keys: Sequence[str], change: Callable[[Mapping[str, list[Event]]], Mapping[str, str | bytes]]
    ) -> None:
        """Set what `change` returns for the histories of `keys`; repeat while other gateways change them."""
        if self._server.fault is not None:
            raise StoreError(self._server.fault)
        give_up = time.monotonic() + _TIMEOUT_SECONDS
        pause = 0.0005
        with self._answers(), self._client.pipeline(transaction=True) as pipe:
            while True:
                try:
                    held: dict[str, list[Event]] = {}
                    if keys:
                        pipe.watch(*keys)
                        held = dict(zip(keys, map(self._decode, pipe.mget(keys)), strict=True))
                    # Held events are durable already, because the server shows nothing before fsync.
                    if changed := change(held):
                        pipe.multi()
                        pipe.mset(changed)
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
        return [] if content is None else decode_events(content, self.max_events, unreadable=self._unreadable)

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

    def forget(self, user_id: UserId) -> None:
        """Remove a user; see `EventStore.forget`. The append-only file keeps the user until its next rewrite."""
        with self._group.exclusive(), self._answers():
            self._client.delete(self._key("history", user_id), self._key("profile", user_id))

    def restore(self, users: Sequence[Restored], source: str, *, done: int) -> None:
        """Merge users of a source; see `EventStore.restore`."""
        mark = {self._restored_key(source): str(done)}
        recent = {self._key("history", user.user_id): user.events[-self.max_events :] for user in users if user.events}
        profiles = {self._key("profile", user.user_id): encode_profile(user.profile) for user in users if user.profile}

        def change(held: Mapping[str, list[Event]]) -> dict[str, str | bytes]:
            kept = {
                key: encode_events(merge(events, held[key], max_events=self.max_events))
                for key, events in recent.items()
            }
            return {**kept, **profiles, **mark}

        self._write(list(recent), change)

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

    def _restored_key(self, source: str) -> str:
        return f"{self._prefix}:restored:{source}"


def _literal(text: str) -> str:
    return re.sub(r"([*?\[\]\\])", r"\\\1", text)
