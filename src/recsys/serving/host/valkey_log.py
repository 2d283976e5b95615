"""Log of item updates on a Valkey server or cluster, which servers on separate machines share. Imports no torch.

Keys after PREFIX:changes, which is in braces on a cluster:
  log         stream of the records since the last compaction; the id of record N is N-0
  head        number of the last record
  snapshot    records that mean the same as all up to a number, and that number
  compacted   that number alone;   tail: bytes of the records after it
  id          random name of the log, by which its readers notice that it was emptied
  readers     names of the hosts that read it;   reader:NAME: number of the last record that a host has applied

A change is acknowledged when every host has applied it, except those at whose port nobody listens any more: they read
the log to its head before they answer again. A host that cannot read the log for `REST_SECONDS` rests, and
only later the others stop waiting for it. So a removed item is not shown by a host that the server cannot reach, and
all hosts continue through a shorter pause of the server, in which nothing can be acknowledged.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from recsys.core.errors import UserError
from recsys.serving.host.journal import COMPACT_BYTES, Record
from recsys.serving.http.problems import ServerFault
from recsys.serving.valkey import DurableServer

# A host rests if it has not read the log for so long. Its registration lasts a little longer.
REST_SECONDS, EXPIRE_SECONDS = 60.0, 75.0
# Time in which a change must be applied by every host.
CONFIRM_SECONDS = 5.0
# Longest wait for a new record, and thus between two reads.
_WAIT_SECONDS, _CONFIRM_EVERY = 1.0, 0.002
# Time limit of a connection to a host that has not confirmed.
_CONNECT_SECONDS = 0.2

# Scripts, which the server runs alone. They are no transactions with WATCH for the reason in `valkey_edits`.
_READ = """
return {redis.call('MGET', KEYS[1], KEYS[2], KEYS[3]), redis.call('XRANGE', KEYS[4], ARGV[1], '+')}
"""
_APPEND = """
local number = (tonumber(redis.call('GET', KEYS[2])) or 0) + 1
redis.call('XADD', KEYS[1], number .. '-0', 'record', ARGV[1])
redis.call('SET', KEYS[2], number)
local tail = redis.call('INCRBY', KEYS[3], #ARGV[1])
return {tail, redis.call('STRLEN', KEYS[4])}
"""
_COMPACT = """
if (tonumber(redis.call('GET', KEYS[2])) or 0) < tonumber(ARGV[1]) then
  redis.call('SET', KEYS[4], ARGV[2])
  redis.call('SET', KEYS[2], ARGV[1])
  redis.call('SET', KEYS[3], 0)
  redis.call('XTRIM', KEYS[1], 'MINID', ARGV[3])
end
"""

# Counts the time in which the machine sleeps.
now = functools.partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class ValkeyLog:
    """Records on a server, in one order for all readers.

    Only `wait` and `wait_confirmed` may be called during another call.

    Args:
        url: address of the server (see `DurableServer`).
        name: name of this host, different from that of every other process; None for a reader that nobody waits for.
        listens: address and port at which this host will listen, if that is known.

    Raises:
        UserError: If the server cannot be reached (`ServerFault`), or may lose what it acknowledges.
    """

    # A thread reads it, so that no search waits for the server.
    is_followed = True
    has_new = False
    # True if the last `read_new` began with all that is left of earlier records.
    is_from_start = False

    def __init__(
        self, url: str, name: str | None = None, *, listens: tuple[str, int] | None = None, prefix: str = "recsys"
    ) -> None:
        self._server = DurableServer(url, key="changes", what="item updates", failed=ServerFault)
        self._client, self._answers, self._prefix, self._name = (
            self._server.client,
            self._server.answers,
            self._server.together(f"{prefix}:changes"),
            name,
        )
        self.place = self._server.place
        host, port = listens or ("", 0)
        self._home = f"{_network()} {host or '*'} {port}"
        self._position = self._before = 0
        self._asked = self._fresh = now()
        with self._answers():
            self._client.setnx(self._key("id"), uuid.uuid4().hex)
            self._id = self._client.get(self._key("id"))
        # Before the first read, so that no change is acknowledged that this host may not have read.
        self._register(-1)

    def read_new(self) -> list[Record]:
        """Return the records since the last call, oldest first; a compaction returns its records again.

        Raises:
            UserError: If the server does not answer, or the log has lost records.
        """
        self._before, asked = self._position, now()
        with self._answers():
            (found, head, compacted), tail = self._read("compacted", since=self._position + 1)
            records: list[Record] = []
            self.is_from_start = False
            if found == self._id and int(compacted or 0) > self._position:
                (found, head, snapshot), tail = self._read("snapshot", since=0)
                self.is_from_start = True
                self._position, records = msgspec.msgpack.decode(snapshot, type=tuple[int, list[Record]])
        if found != self._id or int(head or 0) < self._position:
            raise UserError(f"changes: {self.place}: has lost records; restore the data of the server")
        numbers = [int(number.partition(b"-")[0]) for number, _ in tail]
        records += [msgspec.msgpack.decode(record, type=Record) for _, (_, record) in tail]
        if numbers != list(range(self._position + 1, int(head or 0) + 1)):
            raise UserError(f"changes: {self.place}: lacks records; restore the data of the server")
        self._position, self._asked = int(head or 0), asked
        return records

    def _read(self, name: str, *, since: int) -> Any:
        """Return id, head and another key, and the records from a number on, as they are at one moment."""
        keys = [self._key(one) for one in ("id", "head", name, "log")]
        return self._client.eval(_READ, len(keys), *keys, f"{since}-0")

    @staticmethod
    def decode(field: msgspec.Raw) -> Any:
        """Return the value of a field of a record."""
        return msgspec.msgpack.decode(field)

    def read_again(self) -> None:
        """Let the next `read_new` return the records of the last one too."""
        self._position = self._before

    def confirm(self) -> None:
        """Tell writers that everything that was read is applied."""
        self._register(self._position)
        self._fresh = self._asked

    @property
    def is_stale(self) -> bool:
        """True if a host must rest, because the others may not wait for it any more."""
        return self._name is not None and now() - self._fresh > REST_SECONDS

    def wait(self) -> None:
        """Return when there are new records, or after a second."""
        with self._answers():
            self._client.xread({self._key("log"): f"{self._position}-0"}, count=1, block=int(1000 * _WAIT_SECONDS))

    def write(self, record: dict[str, Any], compact: Callable[[], Sequence[dict[str, Any]]] | None = None) -> None:
        """Append a record and return when it is on the disk of the server. The next `read_new` returns it.

        A large log is replaced by the records of `compact`, which mean the same as all of it.
        """
        if self._server.fault is not None:
            raise ServerFault(self._server.fault)
        content = msgspec.msgpack.encode(record)
        keys = [self._key(name) for name in ("log", "head", "tail", "snapshot")]
        with self._answers():
            size, compacted = self._client.eval(_APPEND, len(keys), *keys, content)
        if compact is not None and size > max(COMPACT_BYTES, compacted):
            self._compact(compact())

    def _compact(self, records: Sequence[dict[str, Any]]) -> None:
        # If another host has compacted at the same moment, its snapshot holds the same records.
        snapshot = msgspec.msgpack.encode((self._position, records))
        keys = [self._key(name) for name in ("log", "compacted", "tail", "snapshot")]
        with self._answers():
            self._client.eval(_COMPACT, len(keys), *keys, self._position, snapshot, f"{self._position + 1}-0")

    def check(self) -> None:
        """Check the settings of the server; nothing is written while they are wrong."""
        self._server.check()

    def wait_confirmed(self) -> None:
        """Return when every host has applied what this one has read.

        Raises:
            ServerFault: If one has not in time.
        """
        give_up, position = now() + CONFIRM_SECONDS, self._position
        while missing := self._unconfirmed(position):
            if now() > give_up:
                raise ServerFault(
                    f"the change is stored, but not confirmed by {', '.join(missing)}; repeat the call. "
                    f"A host that is gone is not waited for after {EXPIRE_SECONDS:g} s"
                )
            time.sleep(_CONFIRM_EVERY)

    def _unconfirmed(self, position: int) -> list[str]:
        with self._answers():
            members: set[Any] = self._client.smembers(self._key("readers"))
            names = sorted(members)
            applied: list[Any] = (
                self._client.mget([self._key("reader:") + name.decode() for name in names]) if names else []
            )
            gone = [name for name, number in zip(names, applied, strict=True) if number is None]
            if gone:
                self._client.srem(self._key("readers"), *gone)
        pairs = [(name.decode(), found.decode()) for name, found in zip(names, applied, strict=True) if found]
        return [name for name, found in pairs if int(found.partition(" ")[0]) < position and not _is_gone(found)]

    def close(self) -> None:
        """End the registration, so that nobody waits for this host."""
        with contextlib.suppress(ServerFault), self._answers():
            if self._name is not None:
                self._client.delete(self._key(f"reader:{self._name}"))
        self._server.close()

    def _register(self, number: int) -> None:
        if self._name is None:
            return
        with self._answers():
            pipe = self._client.pipeline(transaction=False)
            pipe.set(self._key(f"reader:{self._name}"), f"{number} {self._home}", px=int(1000 * EXPIRE_SECONDS))
            pipe.sadd(self._key("readers"), self._name)
            pipe.execute()

    def _key(self, name: str) -> str:
        return f"{self._prefix}:{name}"


def _network() -> str:
    """Return a name of the network of this process, in which loopback addresses mean the same; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/net')}"
    except OSError:
        return "unknown"


def _is_gone(registration: str) -> bool:
    """Return True if nobody listens at the port of a host. Any doubt counts as somebody."""
    _, network, host, port = registration.split(" ")
    is_here = network == _network() != "unknown"
    try:
        is_local = host == "*" or ipaddress.ip_address(host).is_loopback or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
    if port == "0" or (is_local and not is_here):
        return False
    try:
        with socket.create_connection(
            ("127.0.0.1" if host in ("*", "0.0.0.0", "::") else host, int(port)), _CONNECT_SECONDS
        ):
            return False
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
