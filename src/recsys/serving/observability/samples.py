"""Requests that were sampled while they were served, and where they lie. Imports no torch.

<folder>/<when>-<process>.jsonl     one sample a line; a line without its end was cut off by a kill, and is none
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
class Sample:
    """One request as it was answered.

    Attributes:
        at: seconds since 1970, when it was answered.
        asked: its fields, as in `recsys.serving.http.messages.RetrieveRequest`.
        history: stored events of the user as they were then; None where the request brought its own, or nobody's is
            asked for.
        profile: stored features of the user; None likewise.
        version: of the release that answered.
        item_ids: that were shown, best first.
    """

    at: float
    asked: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]] | None
    profile: Mapping[str, Any] | None
    version: str
    item_ids: Sequence[int | str]

    def query(self, tower: QueryEncoder) -> Query:
        """As the gateway would put it to a tower.

        Of what is stored, features that the tower does not know are left out; a request that names such is refused.
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


def read_samples(folder: str | Path | None, newest: int) -> list[Sample]:
    """The newest samples below a folder, oldest first; none where there is no folder.

    Args:
        folder: of one server, or with a folder for each of several.
        newest: so many at most.
    """
    if folder is None:
        return []
    if not Path(folder).is_dir():
        log.warning("samples: there is no folder %s", folder)
        return []
    found = heapq.nlargest(newest, _all(Path(folder)), key=lambda sample: sample.at)
    return found[::-1]


def _all(folder: Path) -> Iterator[Sample]:
    skipped = 0
    for path in sorted(folder.rglob(PATTERN)):
        try:
            file = path.open("rb")
        except FileNotFoundError:
            # A server that is running has rotated it away.
            continue
        with file:
            for line in file:
                try:
                    sample = Sample(**json.loads(line)) if line.endswith(b"\n") else None
                except (ValueError, TypeError):
                    sample = None
                if sample is None:
                    skipped += 1
                else:
                    yield sample
    if skipped:
        log.info("samples: %d lines below %s are none: cut off by a kill, or of another format", skipped, folder)
