"""Files of sampled requests. Imports no torch.

<folder>/<time>-<process>.jsonl     one sample per line; a line without its end was cut off by a kill and is skipped
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from recsys.release.runtime.query_encoder import Query, QueryEncoder
from recsys.serving.http.messages import RetrieveRequest

log = logging.getLogger("recsys")

PATTERN = "*.jsonl"


class RequestSample(msgspec.Struct):
    """One answered request.

    Attributes:
        at: time of the answer, in seconds since 1970.
        request: request; `asked` in the files.
        history: stored events of the user at that time; None if the request has a history or no user.
        profile: stored features of the user at that time; None if the request has no user.
        version: version of the release that answered.
        item_ids: items of the response, best first.
    """

    at: float
    request: RetrieveRequest = msgspec.field(name="asked")
    history: Sequence[Mapping[str, Any]] | None
    profile: Mapping[str, Any] | None
    version: str
    item_ids: Sequence[int | str]

    def query(self, tower: QueryEncoder) -> Query:
        """Return the query that the gateway would build for a tower.

        Stored values that the tower cannot read are left out. The tower refuses unknown features of the request.
        """
        request = self.request
        history: Sequence[Mapping[str, Any]] = request.history or ()
        if self.history is not None:
            history, _ = tower.readable_events(self.history)
        stored, _ = tower.readable_profile(self.profile or {})
        user = {**stored, **(request.user or {})}
        return Query(history, request.user_id, user, request.request or {}, request.exclude or ())


_decoder = msgspec.json.Decoder(RequestSample)


def read_samples(folder: str | Path | None, newest: int) -> list[RequestSample]:
    """Return the newest samples below the folder of one or several servers, oldest first; none without a folder."""
    if folder is None:
        return []
    if not Path(folder).is_dir():
        log.warning("samples: folder %s does not exist", folder)
        return []
    found = heapq.nlargest(newest, _all(Path(folder)), key=lambda sample: sample.at)
    return found[::-1]


def _all(folder: Path) -> Iterator[RequestSample]:
    skipped = 0
    for path in sorted(folder.rglob(PATTERN)):
        try:
            *lines, torn = path.read_bytes().split(b"\n")
        except FileNotFoundError:
            # A running server has removed it.
            continue
        skipped += bool(torn)
        for line in lines:
            try:
                yield _decoder.decode(line)
            except ValueError:
                skipped += 1
    if skipped:
        log.info("samples: %d lines below %s skipped: cut off by a kill, or of another format", skipped, folder)
