"""Files of sampled requests. Imports no torch.

<folder>/<time>-<process>.jsonl     one sample per line; a line without its end was cut off by a kill and is skipped
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock

from recsys.core.io import PRIVATE_FILE, atomic_write
from recsys.core.suppression import hash_of
from recsys.release.runtime.query_encoder import Query, QueryEncoder
from recsys.serving.events.event_store import UserId, both_forms
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


def lock_of(folder: Path) -> FileLock:
    """Return the lock that writers of a folder hold."""
    return FileLock(folder / ".lock", mode=PRIVATE_FILE)


def remove_users(folder: Path, hashes: Collection[str]) -> int:
    """Remove the samples of users below a folder, and return their number; `hashes` are of `recsys.core.suppression`.

    A line that a kill cut off is removed, too, because it may be of one of them.
    """
    removed = 0
    for inner in sorted({path.parent for path in folder.rglob(PATTERN)}):
        with lock_of(inner):
            for path in sorted(inner.glob(PATTERN)):
                *lines, torn = path.read_bytes().split(b"\n")
                kept = [line for line in lines if not _is_of(line, hashes)]
                if len(kept) < len(lines) or torn:
                    atomic_write(path, b"".join(line + b"\n" for line in kept), is_private=True)
                removed += len(lines) - len(kept)
    return removed


def _is_of(line: bytes, hashes: Collection[str]) -> bool:
    try:
        user_id = msgspec.json.decode(line)["asked"].get("user_id")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return True
    return user_id is not None and hash_of(user_id) in hashes


def patterns_of(user_ids: Sequence[UserId]) -> frozenset[bytes]:
    """Return the bytes by which a sample names one of the users."""
    ids = map(msgspec.json.encode, both_forms(user_ids))
    return frozenset(b'"user_id":' + one + end for one in ids for end in (b",", b"}"))


def remove_old(folder: Path, before: float) -> int:
    """Remove the files of a folder that were begun before a time in seconds since 1970, and return their number."""
    old = [path for path in folder.glob(PATTERN) if begun(path) < before]
    for path in old:
        path.unlink(missing_ok=True)
    return len(old)


def begun(path: Path) -> float:
    """Return the time at which a file of samples was begun, which is in its name."""
    digits = path.name.partition("-")[0]
    return int(digits) / 1e9 if digits.isdigit() else path.stat().st_mtime
