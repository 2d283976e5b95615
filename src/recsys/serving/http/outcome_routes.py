"""Rows of the route table for outcomes of impressions. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable

from recsys.core.errors import UserError
from recsys.release.runtime.timestamps import to_seconds
from recsys.serving.events import StoreError
from recsys.serving.events.incoming import MAX_AHEAD_SECONDS, MAX_BYTES, is_id, is_text, short
from recsys.serving.http.codec import encode
from recsys.serving.http.endpoint import route
from recsys.serving.http.messages import OutcomesResponse, PostedOutcome
from recsys.serving.http.problems import too_large, unavailable
from recsys.serving.impressions.joining import GivenOutcome, Joined, OutcomeJoiner
from recsys.serving.observability.metrics import Metrics


class OutcomeRoutes:
    """Outcomes of served answers. `clock` returns the time in seconds since 1970."""

    def __init__(
        self, joiner: OutcomeJoiner, *, batch: int, metrics: Metrics, clock: Callable[[], float] = time.time
    ) -> None:
        self._joiner, self._batch, self._metrics, self._clock = joiner, batch, metrics, clock

    @route("POST", "/v1/outcomes", errors=(400, 413, 415, 503), writes=True)
    async def outcomes(self, posted: PostedOutcome | list[PostedOutcome]) -> OutcomesResponse:
        """Join what users did to the answers that showed it; durable when acknowledged."""
        is_list = isinstance(posted, list)
        given = posted if isinstance(posted, list) else [posted]
        if len(given) > self._batch:
            raise too_large(f"found {len(given)} outcomes, expected at most {self._batch}")
        now = self._clock()
        checked = [_checked(one, now, place=f"[{n}]" if is_list else "") for n, one in enumerate(given)]
        try:
            results = await self._joiner.join(checked)
        except StoreError as error:
            raise unavailable(str(error)) from error
        for what in Joined:
            self._metrics.outcomes[what].inc(results[what])
        return OutcomesResponse(*(results[what] for what in Joined))


def _checked(one: PostedOutcome, now: float, *, place: str) -> GivenOutcome:
    prefix = f"{place}." if place else ""
    if not is_id(one.item_id):
        raise UserError(f"{prefix}item_id: found {short(one.item_id)}, expected an integer of 64 bits or a string")
    for name, text in (("impression_id", one.impression_id), ("action", one.action)):
        if not is_text(text) or min(text) < " ":
            raise UserError(f"{prefix}{name}: found {short(text)}, expected printable text")
    seconds = int(now) if one.timestamp is None else to_seconds(one.timestamp, f"{prefix}timestamp")
    if not 0 <= seconds <= now + MAX_AHEAD_SECONDS:
        raise UserError(
            f"{prefix}timestamp: found {short(one.timestamp)}, expected seconds from 0 (1970) to at most "
            f"{MAX_AHEAD_SECONDS} s ahead of the server's clock"
        )
    if (size := len(encode(one))) > MAX_BYTES:
        raise UserError(f"{place or 'outcomes'}: found an outcome of {size} bytes, expected at most {MAX_BYTES}")
    return GivenOutcome(one.impression_id, one.item_id, one.action, seconds)
