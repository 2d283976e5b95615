"""Gives answers their impression ids, and writes impressions to the store in batches. Imports no torch.

A thread of its own writes, so a slow store delays no answer. Batches that it cannot write in time are dropped, and
counted.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from recsys.serving.events import StoreError, UserId
from recsys.serving.impressions.impression_store import ImpressionStore
from recsys.serving.impressions.records import Impression, ItemId, OpenBatch, encode_batch
from recsys.serving.impressions.rewriting import without_users
from recsys.serving.observability.background import BackgroundThread
from recsys.serving.observability.metrics import Metrics

log = logging.getLogger("recsys")

# A batch is closed when it has so many impressions, or after so many seconds.
MOST, CLOSE_SECONDS = 256, 0.1
# Letters of an id. A few hundred requests with longer ones would take the place of all other impressions.
_LONGEST_ID = 4096
# Batches that may wait for the thread.
_DEPTH = 64


class _Closed(NamedTuple):
    batch: OpenBatch
    at: float


class ImpressionRecorder:
    """Recorder of one process. `share` is the share of the users whose answers get ids; all answers of a user or none.

    `record` and `hurry` are called in the event loop.
    """

    def __init__(
        self,
        store: ImpressionStore,
        share: float,
        *,
        metrics: Metrics,
        forgotten: Callable[[Sequence[UserId]], set[UserId]] = lambda _: set(),
    ) -> None:
        self._forgotten = forgotten
        self._store, self._share, self._metrics = store, share, metrics
        self._thread = BackgroundThread(metrics)
        self._lane = self._thread.lane("impressions", self._write, depth=_DEPTH, batch=_DEPTH)
        self._open: OpenBatch | None = None
        self._pending: set[bytes] = set()
        self._has_failed = False

    def record(self, user_id: UserId | None, version: str, *, generator: str, item_ids: Sequence[ItemId]) -> str | None:
        """Return the id of a new impression; None if the answers of the user are not recorded."""
        if (self._share < 1 and not self._wants(user_id)) or (isinstance(user_id, str) and len(user_id) > _LONGEST_ID):
            return None
        current = self._open
        if current is None:
            current = self._open = OpenBatch(MOST)
            self._pending.add(current.name)
            asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._close, current)
        made = current.add(Impression(int(time.time()), user_id, version, generator, item_ids))
        if len(current.users) == MOST:
            self._close(current)
        return made

    def hurry(self, batch: bytes) -> bool:
        """Close a batch of this process; return True until the thread has written it."""
        if self._open is not None and self._open.name == batch:
            self._close(self._open)
        return batch in self._pending

    def close(self) -> None:
        """Write what is left, and end the thread; called when no request is in progress."""
        if self._open is not None:
            self._close(self._open)
        self._thread.close()

    def _wants(self, user_id: UserId | None) -> bool:
        if user_id is None:
            return random.random() < self._share
        digest = hashlib.blake2b(f"impressions:{user_id!r}".encode(), digest_size=8).digest()
        return int.from_bytes(digest) < self._share * 2**64

    def _close(self, batch: OpenBatch) -> None:
        if self._open is not batch:
            return
        self._open = None
        if not self._lane.put(_Closed(batch, time.time())):
            self._pending.discard(batch.name)
            self._metrics.impressions["dropped"].inc(len(batch.users))

    def _write(self, closed: Sequence[_Closed]) -> None:
        for batch, at in closed:
            try:
                users = list({user for user in batch.users if user is not None})
                hidden = self._forgotten(users) if users else set()
                content = encode_batch(without_users(batch.batch, hidden)[0]) if hidden else batch.encode()
                self._store.add(batch.name, content, at)
                # Users who were forgotten while the batch was written.
                if users and (late := self._forgotten(users) - hidden):
                    self._store.forget(list(late))
                self._metrics.impressions["written"].inc(len(batch.users))
                self._has_failed = False
            except StoreError as error:
                if not self._has_failed:
                    log.warning("impressions are lost: %s", error)
                self._has_failed = True
                self._metrics.impressions["failed"].inc(len(batch.users))
            finally:
                self._pending.discard(batch.name)
