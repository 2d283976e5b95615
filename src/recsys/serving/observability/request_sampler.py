"""Keeps a share of the requests, with what was answered, for whoever wants to ask another release the same.

Written by a thread of its own: serving hands a sample over and never waits. Where the thread falls behind, samples are
dropped and counted. Imports no torch.
"""

from __future__ import annotations

import logging
import os
import queue
import random
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recsys.core.errors import UserError
from recsys.serving.http.codec import encode
from recsys.serving.http.messages import RetrieveRequest, RetrieveResponse
from recsys.serving.observability.metrics import Metrics
from recsys.serving.observability.samples import PATTERN

log = logging.getLogger("recsys")

# Files that the bytes are spread over, so that a rotation loses this share of the samples; and how many there are at
# most, since every start of a server begins one.
_FILES, _MOST_FILES = 8, 64
_BATCH = 64


class _Kept(NamedTuple):
    at: float
    asked: RetrieveRequest
    history: Sequence[Mapping[str, Any]] | None
    profile: Mapping[str, Any] | None
    answer: RetrieveResponse

    def line(self) -> bytes:
        """A line of the format of `recsys.serving.observability.samples`."""
        content = {
            "at": self.at,
            "asked": self.asked,
            "history": self.history,
            "profile": self.profile,
            "version": self.answer.version,
            "item_ids": [item.item_id for item in self.answer.items],
        }
        return encode(content) + b"\n"


class Sampling:
    """Samples of one process; several may share the folder.

    Args:
        share: of the requests that are kept, 0 to 1.
        folder: of the files; made, readable by its owner alone, with the first sample.
        max_bytes: of all files in it; the oldest give way.
        depth: samples that may wait; more are dropped.
        seed: of the choice of requests.
    """

    def __init__(
        self,
        share: float,
        folder: str | Path,
        *,
        max_bytes: int,
        depth: int = 256,
        seed: int | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        if not 0 <= share <= 1:
            raise UserError(f"samples.share: found {share}, expected a share of the requests from 0 to 1")
        if max_bytes < 1:
            raise UserError(f"samples.bytes: found {max_bytes}, expected at least 1")
        self.share, self.folder, self.max_bytes = share, Path(folder), max_bytes
        self.metrics = metrics or Metrics()
        self._counts = self.metrics.request_samples
        self._has_failed = False
        self._random = random.Random(seed)
        self._waiting: queue.Queue[_Kept | None] = queue.Queue(depth)
        self._thread: threading.Thread | None = None
        self._path: Path | None = None
        self._size = 0

    def wants(self) -> bool:
        """Whether the request that comes now is kept."""
        return self.share > 0 and self._random.random() < self.share

    def put(
        self,
        asked: RetrieveRequest,
        history: Sequence[Mapping[str, Any]] | None,
        profile: Mapping[str, Any] | None,
        answer: RetrieveResponse,
    ) -> None:
        """Keep a request; returns at once. For the arguments see `recsys.serving.observability.samples.Sample`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="request-samples", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait(_Kept(time.time(), asked, history, profile, answer))
        except queue.Full:
            self._counts["dropped"].inc()

    def close(self) -> None:
        """End the thread, after what waits."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._waiting.put(None)
            thread.join()

    def _work(self) -> None:
        goes_on = True
        while goes_on:
            kept = [self._waiting.get()]
            while len(kept) < _BATCH and not self._waiting.empty():
                kept.append(self._waiting.get())
            goes_on = kept[-1] is not None
            samples = [sample for sample in kept if sample is not None]
            try:
                self._write([sample.line() for sample in samples])
            except Exception:
                # Such as a full disk. The file may end in the middle of a line, so another one follows.
                if not self._has_failed:
                    log.exception("samples of requests could not be written to %s", self.folder)
                self._has_failed = True
                self._counts["failed"].inc(len(samples))
                self._path = None

    def _write(self, lines: Sequence[bytes]) -> None:
        largest = max(1, self.max_bytes // _FILES)
        block: list[bytes] = []
        for line in [*lines, b""]:
            size = sum(map(len, block))
            if block and (not line or size + len(line) > largest):
                self._append(b"".join(block), largest)
                self._counts["written"].inc(len(block))
                block = []
            if len(line) > largest:
                self._counts["dropped"].inc()
            elif line:
                block.append(line)

    def _append(self, content: bytes, largest: int) -> None:
        # Another process may have rotated the file away.
        if self._path is None or self._size + len(content) > largest or not self._path.exists():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Never the file of an earlier start: that may end in the middle of a line.
            self._path, self._size = self.folder / f"{time.time_ns()}-{os.getpid()}.jsonl", 0
        self._make_room(len(content), self._path)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(descriptor, left) :]
        finally:
            os.close(descriptor)
        self._size += len(content)

    def _make_room(self, size: int, mine: Path) -> None:
        files = {path: path.stat().st_size for path in sorted(self.folder.glob(PATTERN)) if path.exists()}
        for path in list(files):
            if sum(files.values()) + size <= self.max_bytes and len({*files, mine}) <= _MOST_FILES:
                return
            if path != mine:
                path.unlink(missing_ok=True)
                del files[path]
