"""What keeps users' events.

A history holds at most `max_events` events, oldest first, by time; events of one time stand in the order in which they
arrived. A late event takes its place, or none where the history is full of later ones. A repeat (the same item at the
same second of the same user, whatever its features) counts once and the first stays: a client that got no answer can
send its list again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

UserId = int | str
ItemId = int | str


class Event(NamedTuple):
    """One event of a user.

    Attributes:
        item_id: outside id.
        timestamp: UTC seconds.
        features: columns of interactions by name, as far as they are given.
    """

    item_id: ItemId
    timestamp: int
    features: Mapping[str, Any] = {}


class Restored(NamedTuple):
    """What another place knows of a user.

    Attributes:
        user_id: outside id.
        events: oldest first; here repeats are events of their own.
        profile: features of the user.
    """

    user_id: UserId
    events: Sequence[Event]
    profile: Mapping[str, Any]


class StoreError(RuntimeError):
    """The store cannot answer now. What was to be written may or may not be there: sending it again is safe."""


class EventStore(Protocol):
    """Events and profiles of users, safe to use from several threads. Ids keep their type: 5 and "5" are two users.

    Every method raises `StoreError` where the store cannot do it now.

    Attributes:
        max_events: kept of each user.
        is_embedded: whether reading is a matter of microseconds in this process, and no way to another one.
    """

    max_events: int
    is_embedded: bool

    def append(self, events: Sequence[tuple[UserId, Event]]) -> None:
        """Add events, all or none; they are durable, and in the next `history`, when this returns.

        Raises:
            UserError: features that no store can hold.
        """

    def history(self, user_id: UserId) -> list[Event]:
        """Events of a user, oldest first; none for an unknown user."""

    def histories(self, user_ids: Sequence[UserId]) -> list[list[Event]]:
        """As `history`, for each of several users, in one round trip."""

    def profile(self, user_id: UserId) -> Mapping[str, Any]:
        """Profile features of a user, as far as they were restored."""

    def users(self, prefix: str, limit: int) -> list[UserId]:
        """Up to `limit` users with events whose id begins, as it is written, with `prefix`; numbers before texts.

        For people who look for one: a large store may not look through all that it has.
        """

    def forget(self, user_id: UserId) -> None:
        """Remove events and profile of a user, durably.

        A later backfill from a changed folder that still has them brings them back.
        """

    def restore(self, users: Sequence[Restored], source: str, done: int) -> None:
        """Merge what a source knows into the store, all or none; repeating it changes nothing.

        Among events of one time those of the source come first, in its order.

        Args:
            users: distinct.
            source: names the source.
            done: how much of it is restored with this, in its own measure.
        """

    def restored(self, source: str) -> int:
        """The last `done` of a source, 0 where nothing was restored."""

    def close(self) -> None:
        """Release files and connections; nothing acknowledged depends on it."""
