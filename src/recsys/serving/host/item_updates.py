"""Item updates of a running host: items added after the index was built, and takedowns. Imports no torch.

A new item belongs to one version, whose item tower embedded it. A takedown holds for every version, including those
that are loaded later. Both are in one ordered log before they are acknowledged, and every server that reads the log
applies them from its next search on. The log is a file, or on a Valkey server. Shapes: A new items, D dim.
"""

from __future__ import annotations

import base64
import logging
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.release.runtime.query_encoder import ItemId
from recsys.release.runtime.shard import CorpusShard
from recsys.serving.events.event_store import both_forms
from recsys.serving.host.additions import Additions
from recsys.serving.host.journal import Journal, Record
from recsys.serving.http.problems import ServerFault
from recsys.serving.valkey import is_server

if TYPE_CHECKING:
    from recsys.serving.host.valkey_log import ValkeyLog

log = logging.getLogger("recsys")

# Seconds between two attempts to read a log that cannot be read, and between two checks of its settings.
_RETRY_SECONDS, _CHECK_SECONDS = 0.2, 3.0
_UNREADABLE = "its item updates cannot be read; its log has the reason"


class NewItem(NamedTuple):
    """A new item: its columns, and its embedding float32 [D]."""

    item: Mapping[str, Any]
    embedding: Float32Array


class AcceptsItems(Protocol):
    """An index that new items can be added to."""

    def check_additions(self, additions: Additions) -> list[ItemId]:
        """Return the ids of the items; raise `UserError` if one of them does not fit."""
        ...


def open_log(place: str | Path, name: str | None, *, listens: tuple[str, int] | None = None) -> Journal | ValkeyLog:
    """Return the log at a path, or at the address of a server; see `ItemUpdates`."""
    if not is_server(str(place)):
        return Journal(Path(place))
    # Imported late, so that files work without the client library.
    from recsys.serving.host.valkey_log import ValkeyLog

    return ValkeyLog(str(place), name, listens=listens)


class ItemUpdates:
    """All item updates of one fleet, as one server sees them. Thread-safe.

    Each new item belongs to one shard of the corpus, chosen by its id.

    Args:
        place: path of the log, or the address of a server.
        name: name of this host in a log on a server, where a change is acknowledged when all hosts have applied it;
            None for a server that nobody waits for.
        listens: address and port at which this host will listen.
    """

    def __init__(
        self,
        place: str | Path,
        shard: CorpusShard | None = None,
        *,
        name: str | None = None,
        listens: tuple[str, int] | None = None,
    ) -> None:
        self.shard = shard
        # The first is held while the log is read or written, which may take long; searches need only the second.
        self._reading, self._lock = threading.RLock(), threading.RLock()
        self._fault: str | None = None
        # Ids in the order of the takedowns; version -> new items in the order in which they were added.
        self._removed: dict[ItemId, None] = {}
        self._added: dict[str, dict[ItemId, NewItem]] = {}
        # Version -> records of new items that nobody has asked for yet.
        self._unread: dict[str, list[Record]] = {}
        # Number of records read; results computed at another number are outdated.
        self.number = 0
        self._log = open_log(place, name, listens=listens)
        self._apply_all()
        self._closed = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="item updates", daemon=True)
        if self._log.is_followed:
            self._follower.start()

    def refresh(self) -> None:
        """Apply the records that any server has written since, unless a thread does."""
        if self._log.is_followed:
            fault = "its item updates were not read for too long" if self._log.is_stale else self._fault
            if fault is not None:
                raise ServerFault(fault)
        elif self._fault is not None or self._log.has_new:
            self.read()

    def read(self) -> None:
        """Apply the records that any server has written since; the log may take long to answer."""
        with self._reading:
            try:
                self._apply_all()
            except Exception as error:
                # Whatever is wrong with the log is no fault of a request, and later takedowns are unknown.
                self._log.read_again()
                # A server that does not answer may be back in a moment, and its changes wait for this host.
                if self._log.is_followed and isinstance(error, ServerFault):
                    raise
                if self._fault is None:
                    log.error("item updates cannot be read, and the host rests: %s: %s", type(error).__name__, error)
                self._fault = _UNREADABLE
                raise ServerFault(self._fault) from error
            self._fault = None

    def _apply_all(self) -> None:
        records = self._log.read_new()
        with self._lock:
            if self._log.is_from_start:
                # They are among the records that were read now.
                self._unread.clear()
            for record in records:
                self._apply(record)
                self.number += 1
        self._log.confirm()

    def _follow(self) -> None:
        """Read the log whenever there is something new, until closed."""
        checked, is_silent = -float("inf"), False
        while not self._closed.is_set():
            try:
                self._log.wait()
                self.read()
                if time.monotonic() - checked > _CHECK_SECONDS:
                    checked = time.monotonic()
                    self._log.check()
                is_silent = False
            except Exception as error:
                if not is_silent and not self._closed.is_set():
                    log.warning("item updates are not read: %s: %s", type(error).__name__, error)
                is_silent = True
                self._closed.wait(_RETRY_SECONDS)

    def close(self) -> None:
        """Stop reading, so that no other host waits for this one."""
        self._closed.set()
        if self._follower.is_alive():
            self._follower.join()
        self._log.close()

    def fault(self) -> str | None:
        """Return why the updates cannot be read, or None."""
        try:
            self.refresh()
        except ServerFault as error:
            return error.message
        return None

    @property
    def has_new(self) -> bool:
        """True if there may be records that were not applied yet."""
        return self._log.has_new

    def take_down(self, item_ids: Sequence[ItemId]) -> int:
        """Remove items from every version, and return how many were not removed before, once no host shows them.

        Ids that no release has are accepted, because a release that is loaded later may have them. A number and the
        text of its digits are one item here, so that a takedown cannot miss an item only because its id was quoted.
        """
        with self._reading:
            self.read()
            new = [item for item in dict.fromkeys(item_ids) if item not in self._removed]
            if new:
                self._log.write({"take_down": new}, self._compacted)
                self.read()
        # Also for a repeated call, because the first one may not have been acknowledged.
        self._log.wait_confirmed()
        return len(new)

    def add(self, additions: Additions, index: AcceptsItems) -> int:
        """Add items to the index of one version, and return their number once that is durable.

        An item that was added before is replaced. `UserError` if one was indexed or taken down already.
        """
        with self._reading:
            self.read()
            ids = index.check_additions(additions)
            for number, item in enumerate(ids):
                if item in self._removed:
                    raise UserError(f"items[{number}].item_id: {item!r} was taken down")
            if ids:
                rows = [{name: _to_json(value) for name, value in item.items()} for item in additions.items]
                self._log.write(_addition(additions.version, rows, additions.embeddings), self._compacted)
                self.read()
        self._log.wait_confirmed()
        return len(ids)

    def of(self, version: str) -> tuple[int, list[ItemId], list[NewItem]]:
        """Return the number of records read, the ids taken down, and the present new items of a version."""
        with self._lock:
            new = self._new_items(version)
            shown = [new[item] for item in new if item not in self._removed and self._is_in_shard(item)]
            return self.number, list(self._removed), shown

    def _is_in_shard(self, item: ItemId) -> bool:
        # Every host gets every new item, and the hash puts an item into the same shard in every process.
        return self.shard is None or zlib.crc32(repr(item).encode()) % self.shard.count == self.shard.number

    def not_added(self, version: str, item_ids: Sequence[ItemId]) -> list[ItemId]:
        """Return those of the items that were not added to a version."""
        if not item_ids:
            return []
        self.refresh()
        added = self._new_items(version)
        return [item for item in item_ids if item not in added]

    def columns_of(self, version: str, item_id: ItemId) -> Mapping[str, Any]:
        """Return the columns of an item that was added to a version; none for any other item."""
        added = self._new_items(version).get(item_id)
        return {} if added is None else added.item

    def removed_of(self, item_ids: Sequence[ItemId]) -> list[ItemId]:
        """Return the items among `item_ids` that were taken down."""
        self.refresh()
        return [item for item in item_ids if item in self._removed] if self._removed else []

    def _compacted(self) -> list[dict[str, Any]]:
        """Return records that mean the same as all that were read."""
        self.read()
        records: list[dict[str, Any]] = [{"take_down": list(self._removed)}] if self._removed else []
        with self._lock:
            for version in [*self._unread, *(one for one in self._added if one not in self._unread)]:
                unread = self._unread.get(version, [])
                if len(unread) == 1 and version not in self._added:
                    records += unread
                    continue
                kept = [one for item, one in self._new_items(version).items() if item not in self._removed]
                if kept:
                    rows = [dict(one.item) for one in kept]
                    records.append(_addition(version, rows, np.stack([one.embedding for one in kept])))
        return records

    def _apply(self, record: Record) -> None:
        if "take_down" in record:
            self._removed |= dict.fromkeys(both_forms(self._log.decode(record["take_down"])))
        else:
            self._unread.setdefault(self._log.decode(record["version"]), []).append(record)

    def _new_items(self, version: str) -> Mapping[ItemId, NewItem]:
        """Return the new items of a version, by id."""
        if version in self._unread:
            with self._lock:
                for record in self._unread.get(version, ()):
                    rows = self._log.decode(record["add"])
                    content = base64.b64decode(self._log.decode(record["embeddings"]))
                    embeddings = np.frombuffer(content, "<f4").reshape(len(rows), -1)
                    added = self._added.setdefault(version, {})
                    for item, embedding in zip(rows, embeddings, strict=True):
                        added[item["item_id"]] = NewItem(item, embedding)
                # At the end, so that other threads wait for all of them, and a failure loses none.
                self._unread.pop(version, None)
        return self._added.get(version, {})


def _addition(version: str, rows: list[dict[str, Any]], embeddings: Float32Array) -> dict[str, Any]:
    content = base64.b64encode(embeddings.astype("<f4").tobytes()).decode()
    return {"add": rows, "version": version, "embeddings": content}


def _to_json(value: Any) -> Any:
    return value.isoformat() if isinstance(value, date) else value
