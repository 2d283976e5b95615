"""Event store in Valkey or Redis, on one server or on a cluster, which several gateways may share.

Keys of user U after PREFIX, or on a cluster after PREFIX:{TAG}, where the tag is the begin of the user's hash:
  history:U   events, see `growing`;   profile:U: profile features
  suppressed  set of the hashes of forgotten users
"""

from __future__ import annotations

import itertools
import json
import random
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from redis.exceptions import ClusterDownError, ClusterError

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
from recsys.serving.valkey import DurableServer
from recsys.serving.valkey_edits import ANY, CHANGED, REFUSED, Edit

# Search for users: number of keys of one SCAN, and maximum number of SCANs.
_SCANNED, _SCANS = 1000, 200
# Seconds in which a write is retried because other gateways change the same users.
_TIMEOUT_SECONDS = 10.0
# Digits of a tag: more tags than a cluster has slots, so that its nodes can share the users evenly.
_TAG, _ANY_TAG = 4, "{????}:"


class _Stored(NamedTuple):
    """A stored history: its bytes, its events, and whether all of them could be read."""

    content: bytes | None
    events: list[Event]
    is_whole: bool


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
        self.max_events, self._prefix = max_events, prefix
        self._server = DurableServer(url, key="events", what="events", failed=StoreError)
        self._client, self._answers = self._server.client, self._server.answers
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

        def edits(user_id: UserId, stored: _Stored) -> list[Edit]:
            kept = arrivals.merge(user_id, stored.events)
            edit = edit_of(
                self._key("history", user_id),
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
        self,
        user_ids: Sequence[UserId],
        edits: Callable[[UserId, _Stored], list[Edit]],
        *,
        refused: Callable[[UserId], None] = lambda _: None,
    ) -> None:
        """Make the edits of each user; repeat those that changes of other gateways prevent.

        `refused` is called with forgotten users.
        """
        if self._server.fault is not None:
            raise StoreError(self._server.fault)
        give_up, pause = time.monotonic() + _TIMEOUT_SECONDS, 0.0005
        waiting = list(user_ids)
        while True:
            parts: dict[str, dict[UserId, list[Edit]]] = {}
            with self._answers():
                contents = self._server.get_many([self._key("history", user_id) for user_id in waiting])
                for user_id, content in zip(waiting, contents, strict=True):
                    # Held events are durable already, because the server shows nothing before fsync.
                    if changed := edits(user_id, self._stored(content)):
                        parts.setdefault(self._part(hash_of(user_id)), {})[user_id] = changed
                with self._client.pipeline(transaction=False) as pipe:
                    for part, changes in parts.items():
                        self._server.swap(list(itertools.chain(*changes.values())), f"{part}:suppressed", pipe=pipe)
                    answers = pipe.execute(raise_on_error=False)
                for answer in answers:
                    if isinstance(answer, Exception) and not _is_moving(answer):
                        raise answer
            waiting = []
            for changes, answer in zip(parts.values(), answers, strict=True):
                # A slot on its way to another node answers no script until it has arrived.
                if isinstance(answer, Exception) or CHANGED in answer:
                    waiting += changes
                    continue
                found = iter(answer)
                for user_id, changed in changes.items():
                    if REFUSED in [next(found) for _ in changed]:
                        refused(user_id)
            if not waiting:
                return
            if time.monotonic() > give_up:
                raise StoreError(f"events: {self._server.place}: other gateways, or moving slots, keep writes waiting")
            time.sleep(random.uniform(0, pause))
            pause = min(2 * pause, 0.05)

    def _stored(self, content: bytes | None) -> _Stored:
        lost: list[int] = []
        events = self._decode(content, lost.append)
        if lost:
            self._unreadable(sum(lost))
        return _Stored(content, events, not lost)

    def history(self, user_id: UserId) -> list[Event]:
        """Return the events of a user; see `EventStore.history`."""
        with self._answers():
            content = self._client.get(self._key("history", user_id))
        return self._decode(content, self._unreadable)

    def histories(self, user_ids: Sequence[UserId]) -> list[list[Event]]:
        """Return the history of each user; see `EventStore.histories`."""
        if not user_ids:
            return []
        with self._answers():
            found = self._server.get_many([self._key("history", user_id) for user_id in user_ids])
        return [self._decode(content, self._unreadable) for content in found]

    def _decode(self, content: bytes | None, unreadable: Unreadable) -> list[Event]:
        if content is None:
            return []
        return decode_events(content, self.max_events, unreadable=unreadable, since=self._since)

    def profile(self, user_id: UserId) -> Mapping[str, Any]:
        """Return the profile features of a user; see `EventStore.profile`."""
        with self._answers():
            content: Any = self._client.get(self._key("profile", user_id))
        return {} if content is None else decode_profile(content, unreadable=self._unreadable)

    def users(self, prefix: str, limit: int) -> list[UserId]:
        """Return users in the order of ids from a bounded SCAN; see `EventStore.users`."""
        found: set[UserId] = set()
        with self._answers():
            # In a key, a text id begins with a quotation mark and a number with its digits.
            for kind in (prefix, json.dumps(prefix, ensure_ascii=False)[:-1]):
                for ids in itertools.islice(self._scan("history", kind), _SCANS):
                    # An empty prefix, or a quotation mark, matches numbers and quoted texts alike.
                    found.update(user for user in map(json.loads, ids) if str(user).startswith(prefix))
                    if len(found) >= limit:
                        break
        ordered = sorted((isinstance(user, str), user) for user in found)
        return [user for _, user in ordered][:limit]

    def _scan(self, kind: str, prefix: str = "") -> Iterator[list[bytes]]:
        """Yield the ids in JSON that begin with a text, of keys of a kind, in parts; some may come twice."""
        pattern = f"{_literal(self._prefix)}:{_ANY_TAG if self._server.is_cluster else ''}{kind}:{_literal(prefix)}*"
        begin = len(self._key(kind, 0).encode()) - 1
        for node in self._server.nodes():
            cursor = -1
            while cursor:
                found: Any = node.scan(max(cursor, 0), pattern, _SCANNED)
                cursor, keys = found
                yield [key[begin:] for key in keys]

    def forget(self, user_ids: Sequence[UserId]) -> Erased:
        """Remove users; see `EventStore.forget`."""
        users = both_forms(user_ids)
        # In this order no other gateway can write a user again; after a failure the call is repeated.
        with self._answers(), self._client.pipeline(transaction=False) as pipe:
            for user in users:
                pipe.sadd(self._suppressed_key(user), hash_of(user))
            for kind in ("history", "profile"):
                for user in users:
                    pipe.delete(self._key(kind, user))
            removed = pipe.execute()[len(users) :]
        return Erased(sum(removed[: len(users)]), sum(removed[len(users) :]), frozenset())

    def suppressed(self, user_ids: Sequence[UserId]) -> set[UserId]:
        """Return the forgotten users; see `EventStore.suppressed`."""
        with self._answers():
            flags = self._are_members(map(hash_of, user_ids))
        return {user for user, is_member in zip(user_ids, flags, strict=True) if is_member}

    def _are_members(self, hashes: Iterable[str]) -> list[bool]:
        with self._client.pipeline(transaction=False) as pipe:
            for one in hashes:
                pipe.sismember(f"{self._part(one)}:suppressed", one)
            return [bool(found) for found in pipe.execute()]

    def suppress(self, hashes: Collection[str]) -> int:
        """Forget users by hash; see `EventStore.suppress`."""
        listed = list(hashes)
        with self._answers():
            flags = self._are_members(listed)
            new = {one for one, is_member in zip(listed, flags, strict=True) if not is_member}
            if not new:
                return 0
            with self._client.pipeline(transaction=False) as pipe:
                for one in new:
                    pipe.sadd(f"{self._part(one)}:suppressed", one)
                pipe.execute()
            users = {
                user
                for kind in ("history", "profile")
                for ids in self._scan(kind)
                for user in map(json.loads, ids)
                if hash_of(user) in new
            }
        self.forget(list(users))
        return len(users)

    def search(self, user_ids: Sequence[UserId], patterns: Collection[bytes]) -> list[Searched]:
        """Let each server write its files anew, and search them if they are on this machine; see `EventStore.search`.

        A server compresses long keys in the first part of its file, which it wrote after the users were removed.
        """
        ids = [self._key(kind, user) for kind in ("history", "profile") for user in both_forms(user_ids)]
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

        def edits(user_id: UserId, stored: _Stored) -> list[Edit]:
            if not has_older(stored.content, since):
                return []
            expired.add(user_id)
            key = self._key("history", user_id)
            if not stored.events:
                return [Edit(key, stored.content, "delete")]
            return [Edit(key, stored.content, "set", encode_growing(stored.events))]

        for ids in self._scan("history"):
            if ids:
                self._write(list(map(json.loads, ids)), edits)
        return len(expired)

    def restore(self, users: Sequence[Restored], source: str, *, done: int) -> None:
        """Merge users of a source; see `EventStore.restore`."""
        by_id = {user.user_id: user for user in users}

        def edits(user_id: UserId, stored: _Stored) -> list[Edit]:
            user, member, found = by_id[user_id], hash_of(user_id), []
            if user.events:
                recent = user.events[-self.max_events :]
                kept = merge(recent, stored.events, max_events=self.max_events, since=self._since)
                key = self._key("history", user_id)
                if not kept:
                    found.append(Edit(key, stored.content, "delete", member=member))
                elif kept != stored.events:
                    found.append(Edit(key, stored.content, "set", encode_growing(kept), member))
            if user.profile:
                found.append(Edit(self._key("profile", user_id), ANY, "set", encode_profile(user.profile), member))
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

    def _key(self, kind: str, user_id: UserId) -> str:
        # In JSON 5 and "5" differ.
        part = self._part(hash_of(user_id)) if self._server.is_cluster else self._prefix
        return f"{part}:{kind}:{json.dumps(user_id, ensure_ascii=False)}"

    def _part(self, hashed: str) -> str:
        """Return the prefix of the keys of a user. Nodes of a cluster are chosen by what is in braces."""
        return f"{self._prefix}:{{{hashed[:_TAG]}}}" if self._server.is_cluster else self._prefix

    def _suppressed_key(self, user_id: UserId) -> str:
        return f"{self._part(hash_of(user_id))}:suppressed"

    def _restored_key(self, source: str) -> str:
        return f"{self._prefix}:restored:{source}"


def _is_moving(error: Exception) -> bool:
    """Return True if the client gave up because a slot is on its way to another node."""
    return isinstance(error, ClusterError) and not isinstance(error, ClusterDownError)


def _literal(text: str) -> str:
    return re.sub(r"([*?\[\]\\])", r"\\\1", text)
