"""Writes of histories on a Valkey server or cluster: read, compare and change, again if others were faster.

Imports no torch.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from redis.exceptions import ClusterDownError, ClusterError

from recsys.core.suppression import hash_of
from recsys.serving.events.event_store import Event, StoreError, UserId
from recsys.serving.events.valkey_keys import UserKeys
from recsys.serving.valkey import DurableServer
from recsys.serving.valkey_edits import CHANGED, REFUSED, Edit

# Seconds in which a write is repeated because other gateways change the same users, or slots move.
_TIMEOUT_SECONDS = 10.0


class Stored(NamedTuple):
    """A stored history: its bytes, its events, and whether all of them could be read."""

    content: bytes | None
    events: list[Event]
    is_whole: bool


Edits = Callable[[UserId, Stored], list[Edit]]


def write(
    server: DurableServer,
    keys: UserKeys,
    user_ids: Sequence[UserId],
    *,
    read: Callable[[bytes | None], Stored],
    edits: Edits,
    refused: Callable[[UserId], None],
) -> None:
    """Make the edits of each user's stored history, in two round trips; repeat those that others prevent.

    Args:
        server: server or cluster; of a cluster, only the edits of each user are made together or not at all.
        keys: keys of the users.
        user_ids: distinct users.
        read: returns the events of a content.
        edits: returns the changes of a user; called again for each repetition.
        refused: called with forgotten users.

    Raises:
        StoreError: If others prevent it for too long.
    """
    give_up, pause = time.monotonic() + _TIMEOUT_SECONDS, 0.0005
    waiting = list(user_ids)
    while True:
        parts: dict[str, dict[UserId, list[Edit]]] = {}
        contents = server.get_many([keys.key("history", user_id) for user_id in waiting])
        for user_id, content in zip(waiting, contents, strict=True):
            # Held events are durable already, because the server shows nothing before fsync.
            if changed := edits(user_id, read(content)):
                parts.setdefault(keys.suppressed(hash_of(user_id)), {})[user_id] = changed
        with server.client.pipeline(transaction=False) as pipe:
            for suppressed, changes in parts.items():
                server.swap(list(itertools.chain(*changes.values())), suppressed, pipe=pipe)
            answers = pipe.execute(raise_on_error=False)
        waiting = []
        for changes, answer in zip(parts.values(), answers, strict=True):
            if isinstance(answer, Exception) and not _is_moving(answer):
                raise answer
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
            raise StoreError(f"events: {server.place}: other gateways, or moving slots, keep writes waiting")
        time.sleep(random.uniform(0, pause))
        pause = min(2 * pause, 0.05)


def _is_moving(error: Exception) -> bool:
    """Return True if a slot was on its way to another node, and answered no script, for as long as the client tried."""
    return isinstance(error, ClusterError) and not isinstance(error, ClusterDownError)
