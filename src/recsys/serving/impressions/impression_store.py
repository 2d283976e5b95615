"""Interface of stores of impressions and outcomes. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from recsys.serving.events import UserId
from recsys.serving.events.event_store import Searched
from recsys.serving.impressions.records import Batch, ItemId


class StoredOutcome(NamedTuple):
    """Action of a user on one item of an answer, as it is stored.

    Attributes:
        batch: id of the batch of the impression.
        place: place of the impression in the batch.
        item_id: item of the answer.
        action: name of the action, such as `save`.
        at: UTC seconds.
    """

    batch: bytes
    place: int
    item_id: ItemId
    action: str
    at: int


class ImpressionStore(Protocol):
    """Batches of impressions, and outcomes. Both expire. Thread-safe; servers may share a store.

    Every method raises `StoreError` if the store cannot answer now.
    """

    def add(self, batch: bytes, content: bytes, at: float) -> None:
        """Store a batch that was closed at a time, and remove what expired. A crash may lose the last batches."""

    def get(self, batches: Sequence[bytes]) -> Mapping[bytes, Batch]:
        """Return the batches that the store has, of those asked for."""

    def add_outcomes(self, outcomes: Sequence[StoredOutcome]) -> list[bool]:
        """Add outcomes, all or none, durably; return for each whether it is new (item and action of an impression)."""

    def batches(self, since: int) -> Iterator[tuple[bytes, Batch]]:
        """Yield the batches that were closed at or after a time, oldest first."""

    def outcomes(self) -> Iterator[StoredOutcome]:
        """Yield all outcomes."""

    def forget(self, user_ids: Sequence[UserId]) -> None:
        """Remove the impressions of users from all batches, with their outcomes, durably."""

    def search(self, user_ids: Sequence[UserId]) -> list[Searched]:
        """Compact the files of the store, then search them for users who were forgotten."""

    def expire(self) -> None:
        """Remove what expired, as `add` does."""

    def close(self) -> None:
        """Close files and connections."""
