"""Joins posted outcomes to the impressions that they name. Imports no torch."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from recsys.serving.impressions.impression_store import ImpressionStore, StoredOutcome
from recsys.serving.impressions.recorder import CLOSE_SECONDS
from recsys.serving.impressions.records import Batch, Impression, ImpressionKey, ItemId, parse_id
from recsys.serving.pools import EVENTS

# Seconds in which processes write the impressions of their last answers, and between two looks for them.
_WRITE_SECONDS, _LOOK_SECONDS = 2.5 * CLOSE_SECONDS, 0.01
# Seconds by which an outcome may come before its impression, because clocks differ.
_CLOCK_SECONDS = 300


class Joined(StrEnum):
    """Result of joining one outcome.

    An outcome is unknown if nobody showed the item with that id, or the impression has expired. It is late if its
    time is outside of the window after the impression.
    """

    STORED = "stored"
    REPEATED = "repeated"
    UNKNOWN = "unknown"
    LATE = "late"


class GivenOutcome(NamedTuple):
    """A checked outcome: id of an impression, item, action and UTC seconds."""

    impression_id: str
    item_id: ItemId
    action: str
    at: int


class OutcomeJoiner:
    """Joins outcomes within `window_hours` after their impression.

    `hurry` makes this process write a batch, and returns True until it is written: an outcome is acknowledged after
    its impression is stored.
    """

    def __init__(self, store: ImpressionStore, hurry: Callable[[bytes], bool], *, window_hours: float) -> None:
        self._store, self._hurry, self._window = store, hurry, 3600 * window_hours

    async def join(self, given: Sequence[GivenOutcome]) -> Counter[Joined]:
        """Store the outcomes that join, durably, and return how many have which result.

        Raises:
            StoreError: If the store cannot answer; then it may or may not have stored some of them.
        """
        keys = [parse_id(one.impression_id) for one in given]
        wanted = list(dict.fromkeys(key.batch for key in keys if key is not None))
        batches = await self._batches(wanted)
        results: Counter[Joined] = Counter()
        stored: list[StoredOutcome] = []
        for one, key in zip(given, keys, strict=True):
            found = _impression(key, one.item_id, batches=batches)
            if key is None or found is None:
                results[Joined.UNKNOWN] += 1
            elif not -_CLOCK_SECONDS <= one.at - found.at <= self._window:
                results[Joined.LATE] += 1
            else:
                stored.append(StoredOutcome(key.batch, key.place, one.item_id, one.action, one.at))
        is_new = await EVENTS.run(self._store.add_outcomes, stored) if stored else []
        results[Joined.STORED] += sum(is_new)
        results[Joined.REPEATED] += len(is_new) - sum(is_new)
        return results

    async def _batches(self, names: Sequence[bytes]) -> dict[bytes, Batch]:
        """Return batches, after waiting for those that this or another process may be about to write."""
        found = dict(await EVENTS.run(self._store.get, names)) if names else {}
        absent = [name for name in names if name not in found]
        give_up = time.monotonic() + _WRITE_SECONDS
        while absent and (left := give_up - time.monotonic()) > 0:
            # A list, because every batch is to be hurried.
            is_own = all([self._hurry(name) for name in absent])
            await asyncio.sleep(min(left, _LOOK_SECONDS) if is_own else left)
            found |= await EVENTS.run(self._store.get, absent)
            absent = [name for name in absent if name not in found]
        return found


def _impression(key: ImpressionKey | None, item_id: ItemId, *, batches: Mapping[bytes, Batch]) -> Impression | None:
    """Return the impression that has a key and shows an item."""
    batch = None if key is None else batches.get(key.batch)
    found = None if batch is None or key is None else batch.find(key)
    # 1 equals True and 1.0, but ids are integers or strings only.
    return found if found is not None and item_id in found.item_ids else None
