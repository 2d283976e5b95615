"""Events in Valkey or Redis: the store that several gateways share."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import ExponentialBackoff
from redis.connection import Connection
from redis.retry import Retry

from recsys.core.errors import UserError
from recsys.serving.events.event_store import Event, Restored, StoreError, UserId
from recsys.serving.events.grouping import GroupCommit
from recsys.serving.events.merging import (
    by_user,
    decode_events,
    decode_profile,
    encode_events,
    encode_profile,
    merge,
)

# With these a server answers a write only after fsync, and throws nothing away.
DURABLE = {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no"}

_CONNECT_SECONDS, _ANSWER_SECONDS, _RETRIES = 2.0, 5.0, 2
# Looking for users: keys of one step, and steps.
_SCANNED, _SCANS = 1000, 200
# How long a write tries again because others change the same users.
_PATIENCE_SECONDS = 10.0


class _NotDurableError(Exception):
    """The server may lose what it has acknowledged."""


class ValkeyEvents:
    """`EventStore` on one server (its replicas may be behind it, and know nothing of what is acknowledged).

    A history is one key. A write watches the keys that it reads, and starts anew if another gateway changes one.

    Args:
        url: `redis://host:port/db`, `rediss://` or `unix://`, as redis-py takes them; `valkey://` and `valkeys://` too.
        max_events: kept of each user.
        prefix: of all keys.

    Raises:
        UserError: the address is none, or the server may lose what it has acknowledged.
        StoreError: the server cannot be reached.
    """

    is_embedded = False

    def __init__(self, url: str, max_events: int = 200, prefix: str = "recsys") -> None:
        if max_events < 1:
            raise UserError(f"max_events: found {max_events}, expected at least 1")
        scheme, separator, rest = url.partition("://")
        scheme = {"valkey": "redis", "valkeys": "rediss"}.get(scheme, scheme)
        self._place, self.max_events, self._prefix = rest.rpartition("@")[2], max_events, prefix
        try:
            pool = redis.ConnectionPool.from_url(
                scheme + separator + rest,
                redis_connect_func=self._check_connection,
                socket_connect_timeout=_CONNECT_SECONDS,
                socket_timeout=_ANSWER_SECONDS,
                retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), _RETRIES),
            )
        except ValueError as error:
            raise UserError(f"events: {self._place}: no address of a server ({error})") from error
        self._client = redis.Redis(connection_pool=pool)
        self._group = GroupCommit(self._append)
        try:
            self._client.ping()
        except _NotDurableError as error:
            raise UserError(str(error)) from error
        except redis.RedisError as error:
            raise self._failure(error) from error

    def _check_connection(self, connection: Connection) -> None:
        """Of every new connection: a server may have been started anew, with other settings."""
        connection.on_connect()
        try:
            self._check_durable(connection)
        except _NotDurableError:
            # Else it would go back to the pool as one that is checked.
            connection.disconnect()
            raise

    def _check_durable(self, connection: Connection) -> None:
        found: dict[str, str] = {}
        for pattern in ("*append*", "maxmemory*"):
            try:
                connection.send_command("CONFIG", "GET", pattern)
                answer = connection.read_response()
            except redis.ResponseError as error:
                raise _NotDurableError(
                    f"events: {self._place}: does not say whether it is durable (CONFIG GET: {error}); expected a "
                    f"server that may be asked, with {_settings(DURABLE)}"
                ) from error
            pairs = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=True)
            found.update((name.decode(), value.decode()) for name, value in pairs)
        wrong = {name: found.get(name, "nothing") for name, value in DURABLE.items() if found.get(name) != value}
        if wrong:
            raise _NotDurableError(
                f"events: {self._place}: would lose acknowledged events, found {_settings(wrong)}; "
                f"expected {_settings({name: DURABLE[name] for name in wrong})}"
            )
        policy = found.get("maxmemory-policy", "noeviction")
        if found.get("maxmemory", "0") != "0" and policy != "noeviction":
            raise _NotDurableError(
                f"events: {self._place}: would throw events away when its memory is full, found "
                f"maxmemory-policy {policy}; expected noeviction"
            )

    def append(self, events: Sequence[tuple[UserId, Event]]) -> None:
        """As in `EventStore`."""
        # Fails here for the one who sent it, rather than in a write shared with others.
        encode_events([event for _, event in events])
        if events:
            self._group.append(events)

    def _append(self, events: Sequence[tuple[UserId, Event]]) -> None:
        arrivals = by_user(events)
        keys = {user_id: self._key("history", user_id) for user_id in arrivals}

        def change(held: Mapping[str, list[Event]]) -> dict[str, bytes]:
            kept = {key: merge(held[key], arrivals[user_id], self.max_events) for user_id, key in keys.items()}
            return {key: encode_events(history) for key, history in kept.items() if history != held[key]}

        self._write(list(keys.values()), change)

    def _write(
        self, keys: Sequence[str], change: Callable[[Mapping[str, list[Event]]], Mapping[str, str | bytes]]
    ) -> None:
        """Set what `change` makes of the histories of `keys`, anew until nobody else changes them meanwhile."""
        give_up = time.monotonic() + _PATIENCE_SECONDS
        pause = 0.0005
        with self._answers(), self._client.pipeline(transaction=True) as pipe:
            while True:
                try:
                    held: dict[str, list[Event]] = {}
                    if keys:
                        pipe.watch(*keys)
                        held = dict(zip(keys, map(self._decode, pipe.mget(keys)), strict=True))
                    # What is held already is durable: the server shows nothing before fsync.
                    if changed := change(held):
                        pipe.multi()
                        pipe.mset(changed)
                        pipe.execute()
                    return
                except redis.WatchError as error:
                    if time.monotonic() > give_up:
                        raise StoreError(f"events: {self._place}: others change the same users all the time") from error
                    time.sleep(random.uniform(0, pause))
                    pause = min(2 * pause, 0.05)

    def history(self, user_id: UserId) -> list[Event]:
        """As in `EventStore`."""
        with self._answers():
            return self._decode(self._client.get(self._key("history", user_id)))

    def histories(self, user_ids: Sequence[UserId]) -> list[list[Event]]:
        """As in `EventStore`."""
        if not user_ids:
            return []
        with self._answers():
            found = self._client.mget([self._key("history", user_id) for user_id in user_ids])
        return [self._decode(content) for content in found]

    def _decode(self, content: Any) -> list[Event]:
        return [] if content is None else decode_events(content, self.max_events)

    def profile(self, user_id: UserId) -> Mapping[str, Any]:
        """As in `EventStore`."""
        with self._answers():
            content: Any = self._client.get(self._key("profile", user_id))
        return {} if content is None else decode_profile(content)

    def users(self, prefix: str, limit: int) -> list[UserId]:
        """As in `EventStore`; looks at so many keys at most, in an order that is the server's own."""
        found: set[UserId] = set()
        begin = len(self._key("history", 0).encode()) - 1
        with self._answers():
            # A text begins with a quotation mark in its key, a number with its digits.
            for kind in (prefix, json.dumps(prefix, ensure_ascii=False)[:-1]):
                pattern, cursor = f"{_literal(self._prefix)}:history:{_literal(kind)}*", 0
                for _ in range(_SCANS):
                    cursor, keys = self._client.scan(cursor, pattern, _SCANNED)
                    users = (json.loads(key[begin:]) for key in keys)
                    # The prefix of a number may be that of a quoted text, where it is empty or a quotation mark.
                    found.update(user for user in users if str(user).startswith(prefix))
                    if not cursor or len(found) >= limit:
                        break
        ordered = sorted((isinstance(user, str), user) for user in found)
        return [user for _, user in ordered][:limit]

    def forget(self, user_id: UserId) -> None:
        """As in `EventStore`; the server's append-only file holds them until it is rewritten the next time."""
        with self._group.exclusive(), self._answers():
            self._client.delete(self._key("history", user_id), self._key("profile", user_id))

    def restore(self, users: Sequence[Restored], source: str, done: int) -> None:
        """As in `EventStore`."""
        mark = {self._restored_key(source): str(done)}
        recent = {self._key("history", user.user_id): user.events[-self.max_events :] for user in users if user.events}
        profiles = {self._key("profile", user.user_id): encode_profile(user.profile) for user in users if user.profile}

        def change(held: Mapping[str, list[Event]]) -> dict[str, str | bytes]:
            kept = {key: encode_events(merge(events, held[key], self.max_events)) for key, events in recent.items()}
            return {**kept, **profiles, **mark}

        self._write(list(recent), change)

    def restored(self, source: str) -> int:
        """As in `EventStore`."""
        with self._answers():
            content: Any = self._client.get(self._restored_key(source))
        return 0 if content is None else int(content)

    def close(self) -> None:
        """As in `EventStore`."""
        with self._group.exclusive():
            self._client.close()

    def _key(self, kind: str, user_id: UserId) -> str:
        # JSON tells 5 from "5".
        return f"{self._prefix}:{kind}:{json.dumps(user_id, ensure_ascii=False)}"

    def _restored_key(self, source: str) -> str:
        return f"{self._prefix}:restored:{source}"

    @contextmanager
    def _answers(self) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, _NotDurableError) as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> StoreError:
        return StoreError(f"events: {self._place}: {error or type(error).__name__}")


def _literal(text: str) -> str:
    """Of a pattern, meaning itself."""
    return re.sub(r"([*?\[\]\\])", r"\\\1", text)


def _settings(settings: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
