"""Files of sampled requests. Imports no torch.

<folder>/<time>-<process>.jsonl     one sample per line; a line without its end was cut off by a kill and is skipped
"""

from __future__ import annotations

import heapq
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.release.runtime.query_encoder import Query, QueryEncoder

log = logging.getLogger("recsys")

PATTERN = "*.jsonl"


@dataclass(frozen=True, slots=True)
class RequestSample:
    """One answered request.

    Attributes:
        at: time of the answer, in seconds since 1970.
        asked: fields of the request, as in `recsys.serving.http.messages.RetrieveRequest`.
        history: stored events of the user at that time; None if the request has a history or no user.
        profile: stored features of the user at that time; None if the request has no user.
        version: version of the release that answered.
        item_ids: items of the response, best first.
    """

    at: float
    asked: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]] | None
    profile: Mapping[str, Any] | None
    version: str
    item_ids: Sequence[int | str]

    def query(self, tower: QueryEncoder) -> Query:
        """Return the query that the gateway would build for a tower.

        Stored features that the tower does not know are left out. The tower refuses unknown features of the request.
        """
        history: Sequence[Mapping[str, Any]] = self.asked["history"] or ()
        if self.history is not None:
            known = tower.names["history"]
            history = [{name: value for name, value in event.items() if name in known} for event in self.history]
        stored = {name: value for name, value in (self.profile or {}).items() if name in tower.names["user"]}
        return Query(
            history,
            self.asked["user_id"],
            {**stored, **(self.asked["user"] or {})},
            self.asked["request"] or {},
            self.asked["exclude"] or (),
        )


def read_samples(folder: str | Path | None, newest: int) -> list[RequestSample]:
    """Return the newest samples below a folder, oldest first; none if there is no folder.

    Args:
        folder: folder of one server, or a folder with those of several servers.
        newest: maximum number of samples.
    """
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
            file = path.open("rb")
        except FileNotFoundError:
            # A running server has removed it.
            continue
        with file:
            for line in file:
                try:
                    sample = RequestSample(**json.loads(line)) if line.endswith(b"\n") else None
                except (ValueError, TypeError):
                    sample = None
                if sample is None:
                    skipped += 1
                else:
                    yield sample
    if skipped:
        log.info("samples: %d lines below %s skipped: cut off by a kill, or of another format", skipped, folder)
