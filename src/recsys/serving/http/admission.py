"""Admission of requests: how many are in progress, how long they may wait, and until when a client waits.

Imports no torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar

from recsys.serving.http.problems import Problem

# Milliseconds that the client still waits. The gateway sends hosts what is left of it.
DEADLINE_HEADER = "x-deadline-ms"
# Code of refusals for lack of capacity; another attempt at once would make it worse.
OVERLOADED = "overloaded"

# Time of `time.monotonic` at which the client of the present request gives up; None if it did not say.
deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


def overloaded(message: str = "the server has more requests than it can answer") -> Problem:
    """Return the refusal of a request that waited too long or found too many before it."""
    return Problem(503, OVERLOADED, message=message)


def set_deadline(header: bytes | None) -> None:
    """Set the deadline of the present request from its header; a header that is no number of milliseconds is none."""
    if header is not None and header.isdigit() and len(header) < 10:
        deadline.set(time.monotonic() + int(header) / 1000)


def is_late() -> bool:
    """Return True if the client of the present request has given up."""
    given = deadline.get()
    return given is not None and time.monotonic() >= given


class Admission:
    """Limit of the requests in progress, which follows from how they wait for their turn.

    The limit falls by a fifth while requests wait for more than half of `queue_seconds`, and while the queue stays
    longer than what is answered together (a standing queue, as in CoDel, adds to every wait and to no answer). It grows
    slowly while all of it is used and the queue stays short. So it settles where the server is busy and nobody waits
    long (additive increase, multiplicative decrease, as in TCP).

    Args:
        queue_seconds: longest wait. A request that waited longer is refused instead of answered.
        most, least: bounds of the limit, which begins at one and a half times the smaller one.
    """

    def __init__(
        self,
        queue_seconds: float,
        *,
        most: int = 1024,
        least: int = 64,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._least, self.clock = most, min(least, most), clock
        self.queue_seconds, self.in_progress, self.refused = queue_seconds, 0, 0
        self.limit = min(most, 3 * self._least // 2)
        self._changed = self._free = self._crowded = clock()
        self._full_at = -float("inf")

    def enter(self) -> None:
        """Count a whole request, which was not refused when it began: the limit may be exceeded meanwhile."""
        self.in_progress += 1
        if self.is_full:
            self._full_at = self.clock()

    def refuse(self) -> None:
        """Count a request as refused."""
        self.refused += 1

    def leave(self) -> None:
        """Count a request as ended."""
        self.in_progress -= 1

    @property
    def is_full(self) -> bool:
        """True if no request may enter."""
        return self.in_progress >= self.limit

    def was_full_within(self, seconds: float) -> bool:
        """Return True if the limit was reached so recently."""
        return self.clock() - self._full_at < seconds

    def waited(self, seconds: float, *, is_crowded: bool = False) -> None:
        """Adapt the limit to the longest wait of the requests whose turn it is, and to the queue behind them."""
        now, patience = self.clock(), self.queue_seconds / 2
        if is_crowded:
            self._crowded = now
        else:
            self._free = now
        if seconds > patience or now - self._free > patience:
            if now - self._changed >= patience:
                self._changed = now
                self.limit = max(self._least, int(0.8 * min(self.limit, self.in_progress)))
        elif now - self._crowded > patience and self.limit < self._most and self.in_progress >= 0.9 * self.limit:
            self.limit = min(self._most, self.limit + 4)
