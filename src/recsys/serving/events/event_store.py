"""Interface of event stores.

A history contains at most `max_events` events, sorted by time, oldest first; events of one second keep their order of
arrival. A late event is inserted by its time, or dropped if the history is full of later events. A history has
at most `MAX_HISTORY_BYTES`; beyond them its oldest events are dropped. A repeated event (same
user, item and second, whatever its features) is stored once and the first one stays, so a client that got no answer can
send its events again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, NamedTuple, Protocol

from msgspec import Meta

from recsys.core.time_units import LATEST

# What a stored id and a stored time can be. A decoder checks it, so that other content counts as unreadable.
_Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
UserId = int | str
ItemId = _Integer | Annotated[str, Meta(min_length=1)]
Seconds = Annotated[int, Meta(ge=-LATEST, le=LATEST)]

_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,18}", re.ASCII)
# Size of the history of one user, as it is stored.
MAX_HISTORY_BYTES = 256 << 10


class Event(NamedTuple):
    """One event of a user, in UTC seconds. `features` are values of columns of interactions; columns may be missing."""

    item_id: ItemId
    timestamp: Seconds
    features: Mapping[str, Any] = {}


class Restored(NamedTuple):
    """Events (oldest first, repeated ones count separately) and profile features of one user from a data folder."""

    user_id: UserId
    events: Sequence[Event]
    profile: Mapping[str, Any]


class Outcome(StrEnum):
    """Result of adding one event.

    A dropped one is older than all events of a history that is full, too old to be kept, or of a forgotten user.
    """

    STORED = "stored"
    REPEATED = "repeated"
    DROPPED = "dropped"


# Called with the number of stored events or profiles that could not be decoded; they count as missing.
Unreadable = Callable[[int], None]


def ignore(number: int) -> None:
    """Do not count what could not be decoded."""


class Erased(NamedTuple):
    """Histories and profiles that were removed, and byte patterns that the files of the store must not have now."""

    histories: int
    profiles: int
    patterns: frozenset[bytes]


class Searched(NamedTuple):
    """A file that was searched for the bytes of forgotten users, and the number of places where they were found."""

    place: str
    bytes: int
    found: int


class StoreError(RuntimeError):
    """The store cannot answer now. A failed write may or may not be stored; repeating it is safe."""


class PartlyReadError(StoreError):
    """Part of the store cannot answer now.

    Attributes:
        histories: history of each user; None for a user of that part.
    """

    def __init__(self, message: str, histories: Sequence[list[Event] | None]) -> None:
        super().__init__(message)
        self.histories = histories


class EventStore(Protocol):
    """Events and profiles of users. Thread-safe. Ids keep their type: 5 and "5" are two users.

    Every method raises `StoreError` if the store cannot answer now.

    Attributes:
        max_events: maximum number of events of a user.
        is_embedded: whether a read takes microseconds in this process, instead of a round trip to a server.
    """

    max_events: int
    is_embedded: bool

    def append(self, events: Sequence[tuple[UserId, Event]]) -> list[Outcome]:
        """Add events, and return the outcome of each. Stored ones are durable and in the next `history`.

        All are added or none; on a cluster, all of each user.

        Raises:
            UserError: If a feature cannot be stored.
        """

    def check(self) -> None:
        """Raise `StoreError` if the store lost what it acknowledged, or may lose it; servers call it regularly."""

    def history(self, user_id: UserId) -> list[Event]:
        """Return the events of a user, oldest first; none for an unknown user."""

    def histories(self, user_ids: Sequence[UserId]) -> list[list[Event]]:
        """Return the history of each user, in one round trip.

        Raises:
            PartlyReadError: If the histories of some users cannot be read now.
        """

    def profile(self, user_id: UserId) -> Mapping[str, Any]:
        """Return the restored profile features of a user."""

    def users(self, prefix: str, limit: int) -> list[UserId]:
        """Return up to `limit` users with events whose id, as text, begins with `prefix`; numbers before texts.

        Meant for people: a large store may return fewer users than it has.
        """

    def forget(self, user_ids: Sequence[UserId]) -> Erased:
        """Remove events and profiles of users, durably, and let no later write bring them back.

        A number and the text of its digits are one user here.
        """

    def suppressed(self, user_ids: Sequence[UserId]) -> set[UserId]:
        """Return those of the users that were forgotten."""

    def suppress(self, hashes: Collection[str]) -> int:
        """Forget the users with these hashes (`recsys.core.suppression`), and return the number of them in the store.

        A store that was restored from a copy learns so whom it has to forget. Reads the ids of all users.
        """

    def search(self, user_ids: Sequence[UserId], patterns: Collection[bytes]) -> list[Searched]:
        """Compact the files of the store, then search them for forgotten users and for patterns of `forget`.

        Bytes that belong to other users do not count as found.
        """

    def expire(self) -> int:
        """Remove events older than the maximum age of the store, and return the number of histories that had some."""

    def restore(self, users: Sequence[Restored], source: str, *, done: int) -> None:
        """Merge users of a source into the store; repeating a call changes nothing.

        Among events of one second those of the source come first, in its order.

        Args:
            users: distinct users.
            source: name of the source.
            done: progress of the source after this call, in a unit of the caller.
        """

    def restored(self, source: str) -> int:
        """Return the last `done` of a source; 0 if nothing was restored."""

    def close(self) -> None:
        """Close files and connections. Acknowledged events are durable without it."""


def both_forms(user_ids: Sequence[UserId]) -> list[UserId]:
    """Return each user as a number and as text, if both exist."""
    found: dict[UserId, None] = {}
    for user_id in user_ids:
        found[str(user_id)] = None
        if _NUMBER.fullmatch(str(user_id)) and -(2**63) <= int(user_id) < 2**63:
            found[int(user_id)] = None
    return list(found)


def first_second(max_age_days: float | None, clock: Callable[[], float] = time.time) -> int | None:
    """Return the first second whose events are kept; None if all are."""
    return None if max_age_days is None else int(clock() - max_age_days * 86_400)
