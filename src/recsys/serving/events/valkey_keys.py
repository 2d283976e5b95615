"""Keys of users on a Valkey server or cluster, and the sets of forgotten users beside them. Imports no torch.

Keys of user U after PREFIX, or on a cluster after PREFIX:{TAG}, where the tag is the begin of the user's hash:
  history:U   events, see `growing`;   profile:U: profile features
  suppressed  set of the hashes of forgotten users
PREFIX:suppressing has the hashes of a list of forgotten users while their keys are being removed.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from recsys.core.suppression import hash_of
from recsys.serving.events.event_store import UserId
from recsys.serving.valkey import DurableServer

# Number of keys of one SCAN.
_SCANNED = 1000
# Digits of a tag: more tags than a cluster has slots, so that its nodes can share the users evenly.
_TAG, _ANY_TAG = 4, "{????}:"


class UserKeys:
    """Keys of the users of one store. Methods raise the errors of the client."""

    def __init__(self, server: DurableServer, prefix: str) -> None:
        self._server, self.prefix = server, prefix

    def key(self, kind: str, user_id: UserId) -> str:
        """Return the key of a user's history or profile."""
        part = self.part(hash_of(user_id)) if self._server.is_cluster else self.prefix
        # In JSON 5 and "5" differ.
        return f"{part}:{kind}:{json.dumps(user_id, ensure_ascii=False)}"

    def part(self, hashed: str) -> str:
        """Return the prefix of the keys that are on one node with those of a user."""
        return f"{self.prefix}:{{{hashed[:_TAG]}}}" if self._server.is_cluster else self.prefix

    def suppressed(self, hashed: str) -> str:
        """Return the key of the set that has a forgotten user."""
        return f"{self.part(hashed)}:suppressed"

    def ids(self, kind: str, prefix: str = "") -> Iterator[list[bytes]]:
        """Yield the ids in JSON that begin with a text, of keys of a kind, in parts; some may come twice."""
        pattern = f"{_literal(self.prefix)}:{_ANY_TAG if self._server.is_cluster else ''}{kind}:{_literal(prefix)}*"
        begin = len(self.key(kind, 0).encode()) - 1
        for node in self._server.nodes():
            cursor = -1
            while cursor:
                found: Any = node.scan(max(cursor, 0), pattern, _SCANNED)
                cursor, keys = found
                yield [key[begin:] for key in keys]

    def are_forgotten(self, hashes: Iterable[str]) -> list[bool]:
        """Return for each user whether it was forgotten."""
        with self._server.client.pipeline(transaction=False) as pipe:
            for one in hashes:
                pipe.sismember(self.suppressed(one), one)
            return [bool(found) for found in pipe.execute()]

    def forget(self, hashes: Iterable[str], users: Sequence[UserId] = ()) -> tuple[int, int]:
        """Keep users out, remove what is stored of them, and return the numbers of histories and of profiles."""
        # In this order no other gateway can write a user again; after a failure the call is repeated.
        with self._server.client.pipeline(transaction=False) as pipe:
            for one in hashes:
                pipe.sadd(self.suppressed(one), one)
            begin = len(pipe)
            for kind, user in itertools.product(("history", "profile"), users):
                pipe.delete(self.key(kind, user))
            removed = pipe.execute()[begin:]
        return sum(removed[: len(users)]), sum(removed[len(users) :])


def _literal(text: str) -> str:
    return re.sub(r"([*?\[\]\\])", r"\\\1", text)
