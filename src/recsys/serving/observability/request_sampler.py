"""Request sampler: stores a share of the requests with their answers, so that they can be replayed on another release.

A background thread writes the samples. Imports no torch.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from recsys.core.errors import UserError
from recsys.core.io import PRIVATE_FILE, private_folder
from recsys.serving.events.event_store import StoreError, UserId
from recsys.serving.http.codec import encode
from recsys.serving.observability.background import BackgroundThread
from recsys.serving.observability.metrics import Metrics
from recsys.serving.observability.samples import PATTERN, RequestSample, begun, lock_of

log = logging.getLogger("recsys")

# The bytes are spread over this many files, so a rotation drops that share of the samples.
_FILES = 8
# Maximum number of files: every start of a server begins a new one.
_MAX_FILES = 64
_BATCH = 64
# Seconds after which a new file is begun, because old samples are removed by file.
_FILE_SECONDS = 86_400.0

# Returns those of the users whose requests must not be kept.
Forgotten = Callable[[Sequence[UserId]], set[UserId]]


class RequestSampler:
    """Samples of one process; several processes may share the folder, whose files only the owner can read.

    All files hold at most `max_bytes`, so the oldest are removed. At most `depth` samples wait; more are dropped.
    """

    def __init__(
        self,
        share: float,
        folder: str | Path,
        *,
        max_bytes: int,
        background: BackgroundThread,
        metrics: Metrics,
        depth: int = 256,
        seed: int | None = None,
        forgotten: Forgotten = lambda _: set(),
    ) -> None:
        if not 0 <= share <= 1:
            raise UserError(f"samples.share: found {share}, expected a share of the requests from 0 to 1")
        if max_bytes < 1:
            raise UserError(f"samples.bytes: found {max_bytes}, expected at least 1")
        self.share, self.folder, self.max_bytes = share, Path(folder), max_bytes
        self._outcomes = metrics.request_samples
        self._forgotten = forgotten
        self._random = random.Random(seed)
        self._lane = background.lane("request_sampler", self._write_all, depth=depth, batch=_BATCH)
        self._has_failed = False
        self._path: Path | None = None
        self._size = 0

    def wants(self) -> bool:
        """Return True if the next request must be kept."""
        return self.share > 0 and self._random.random() < self.share

    def put(self, sample: RequestSample) -> None:
        """Keep a request; returns at once."""
        if not self._lane.put(sample):
            self._outcomes["dropped"].inc()

    def _write_all(self, samples: Sequence[RequestSample]) -> None:
        try:
            private_folder(self.folder)
            with lock_of(self.folder):
                users = {sample.request.user_id for sample in samples if sample.request.user_id is not None}
                hidden = self._forgotten(list(users)) if users else set()
                kept = [sample for sample in samples if sample.request.user_id not in hidden]
                self._outcomes["dropped"].inc(len(samples) - len(kept))
                self._write([encode(sample) + b"\n" for sample in kept])
        except (OSError, StoreError):
            # For example a full disk. The file may end in the middle of a line, so the next samples go to a new file.
            if not self._has_failed:
                log.exception("samples of requests could not be written to %s", self.folder)
            self._has_failed, self._path = True, None
            self._outcomes["failed"].inc(len(samples))

    def _write(self, lines: Sequence[bytes]) -> None:
        largest = max(1, self.max_bytes // _FILES)
        block: list[bytes] = []
        for line in [*lines, b""]:
            size = sum(map(len, block))
            if block and (not line or size + len(line) > largest):
                self._append(b"".join(block), largest)
                self._outcomes["written"].inc(len(block))
                block = []
            if len(line) > largest:
                self._outcomes["dropped"].inc()
            elif line:
                block.append(line)

    def _append(self, content: bytes, largest: int) -> None:
        # Another process may have removed the file.
        is_usable = self._path is not None and self._size + len(content) <= largest and self._path.exists()
        if self._path is None or not is_usable or time.time() - begun(self._path) > _FILE_SECONDS:
            # Never the file of an earlier start, which may end in the middle of a line.
            self._path, self._size = self.folder / f"{time.time_ns()}-{os.getpid()}.jsonl", 0
        self._make_room(len(content), self._path)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE_FILE)
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(descriptor, left) :]
        finally:
            os.close(descriptor)
        self._size += len(content)

    def _make_room(self, size: int, own: Path) -> None:
        files = {path: path.stat().st_size for path in sorted(self.folder.glob(PATTERN)) if path.exists()}
        for path in list(files):
            if sum(files.values()) + size <= self.max_bytes and len({*files, own}) <= _MAX_FILES:
                return
            if path != own:
                path.unlink(missing_ok=True)
                del files[path]
