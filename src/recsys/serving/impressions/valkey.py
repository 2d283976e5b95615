"""Impressions and outcomes in Valkey or Redis, beside the events of users. Imports no torch.

On a cluster PREFIX is in braces, so that one node has them all.

PREFIX:impressions              sorted set of `batch:bytes` by time; bounds what is kept
PREFIX:impressions:bytes        sum of the sizes of the batches
PREFIX:impressions:<batch>      content of a batch; expires
PREFIX:outcomes:<batch>         hash: [place, item, action] -> time; expires
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from recsys.serving.events import StoreError, UserId
from recsys.serving.events.event_store import Searched
from recsys.serving.impressions.impression_store import StoredOutcome
from recsys.serving.impressions.records import Batch, decode_batch, encode_batch
from recsys.serving.impressions.rewriting import without_users
from recsys.serving.valkey import DurableServer

# Batches that one write may remove, and that one read returns.
_MOST = 100
# Seconds between two checks of the settings, which may change under a live connection.
_CHECK_EVERY = 3.0


class ValkeyImpressions:
    """`ImpressionStore` on a server or cluster, usually that of the events; nothing is written if it may lose that."""

    def __init__(self, url: str, *, keep_seconds: int, max_bytes: int, prefix: str = "recsys") -> None:
        self._server = DurableServer(url, key="events", what="outcomes", failed=StoreError)
        self._client, self._prefix = self._server.client, self._server.together(prefix)
        self._keep_seconds, self._max_bytes = keep_seconds, max_bytes
        self._index = f"{self._prefix}:impressions"
        self._bytes = f"{self._index}:bytes"
        self._checked = time.monotonic()

    def add(self, batch: bytes, content: bytes, at: float) -> None:
        """Store a batch; see `ImpressionStore.add`."""
        with self._writing():
            pipe = self._client.pipeline(transaction=True)
            pipe.set(self._content(batch.hex()), content, ex=self._keep_seconds)
            pipe.zadd(self._index, {f"{batch.hex()}:{len(content)}": at})
            pipe.incrby(self._bytes, len(content))
            pipe.zrange(self._index, 0, _MOST - 1, withscores=True)
            *_, held, oldest = pipe.execute()
            for member, score in oldest[:-1]:
                if held <= self._max_bytes and score >= at - self._keep_seconds:
                    break
                held = self._remove(member, held)

    def _remove(self, member: bytes, held: int) -> int:
        """Remove a batch, and return the bytes that are left of those `held`."""
        name, _, size = member.decode().partition(":")
        # Another gateway may remove the same batch.
        if not self._client.zrem(self._index, member):
            return held
        pipe = self._client.pipeline(transaction=True)
        pipe.delete(self._content(name), self._outcomes(name))
        pipe.decrby(self._bytes, int(size))
        return int(pipe.execute()[-1])

    def get(self, batches: Sequence[bytes]) -> Mapping[bytes, Batch]:
        """Return batches by id; see `ImpressionStore.get`."""
        if not batches:
            return {}
        with self._server.answers():
            contents: Any = self._client.mget([self._content(name.hex()) for name in batches])
        decoded = {
            name: decode_batch(content) for name, content in zip(batches, contents, strict=True) if content is not None
        }
        return {name: batch for name, batch in decoded.items() if batch is not None}

    def add_outcomes(self, outcomes: Sequence[StoredOutcome]) -> list[bool]:
        """Add outcomes; see `ImpressionStore.add_outcomes`. The server answers after fsync."""
        if not outcomes:
            return []
        with self._writing():
            pipe = self._client.pipeline(transaction=True)
            for one in outcomes:
                field = json.dumps([one.place, one.item_id, one.action], ensure_ascii=False)
                pipe.hsetnx(self._outcomes(one.batch.hex()), field, str(one.at))
            for name in {one.batch.hex() for one in outcomes}:
                pipe.expire(self._outcomes(name), self._keep_seconds)
            return [bool(added) for added in pipe.execute()[: len(outcomes)]]

    def batches(self, since: int) -> Iterator[tuple[bytes, Batch]]:
        """Yield batches; see `ImpressionStore.batches`."""
        names = self._names(since)
        for begin in range(0, len(names), _MOST):
            part = [bytes.fromhex(name) for name in names[begin : begin + _MOST]]
            found = self.get(part)
            yield from ((name, found[name]) for name in part if name in found)

    def _names(self, since: int) -> list[str]:
        with self._server.answers():
            # Others may keep impressions for longer; contents that expired are not there.
            members: Any = self._client.zrangebyscore(self._index, since, "+inf")
        return [member.decode().partition(":")[0] for member in members]

    def outcomes(self) -> Iterator[StoredOutcome]:
        """Yield outcomes; see `ImpressionStore.outcomes`."""
        names = self._names(0)
        for begin in range(0, len(names), _MOST):
            part = names[begin : begin + _MOST]
            with self._server.answers():
                pipe = self._client.pipeline(transaction=False)
                for name in part:
                    pipe.hgetall(self._outcomes(name))
                answers = pipe.execute()
            for name, fields in zip(part, answers, strict=True):
                for field, at in fields.items():
                    place, item_id, action = json.loads(field)
                    yield StoredOutcome(bytes.fromhex(name), place, item_id, action, int(at))

    def forget(self, user_ids: Sequence[UserId]) -> None:
        """Remove users; see `ImpressionStore.forget`. The append-only file keeps them until its next rewrite."""
        for name, batch in self.batches(0):
            kept, places = without_users(batch, user_ids)
            if places:
                with self._writing():
                    self._client.set(self._content(name.hex()), encode_batch(kept), keepttl=True)
                    fields: Any = self._client.hkeys(self._outcomes(name.hex()))
                    lost = [field for field in fields if json.loads(field)[0] in places]
                    if lost:
                        self._client.hdel(self._outcomes(name.hex()), *lost)

    def search(self, user_ids: Sequence[UserId]) -> list[Searched]:  # noqa: ARG002 (nothing is searched)
        """Return nothing: the event store of the same server lets it write its files anew."""
        return []

    def expire(self) -> None:
        """Remove what expired; see `ImpressionStore.expire`. Others may have written it to be kept for longer."""
        before = f"({time.time() - self._keep_seconds}"
        with self._writing():
            while found := self._client.zrangebyscore(self._index, "-inf", before, start=0, num=_MOST):
                for member in found:
                    self._remove(member, 0)

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if time.monotonic() - self._checked > _CHECK_EVERY:
            self._server.check()
            self._checked = time.monotonic()
        with self._server.answers():
            yield

    def _content(self, name: str) -> str:
        return f"{self._index}:{name}"

    def _outcomes(self, name: str) -> str:
        return f"{self._prefix}:outcomes:{name}"
