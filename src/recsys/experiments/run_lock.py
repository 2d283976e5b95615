"""Lock of a run folder: one process trains in it at a time. A killed process leaves no lock behind."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recsys.core import distributed
from recsys.core.errors import UserError

LOCK = ".lock"
# Folders that this process holds. It may enter them again.
_held: set[Path] = set()


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold a run folder, which is created, until the block ends. Of several training processes the first one does.

    Raises:
        UserError: If another process holds the folder, or the folder cannot be written.
    """
    place = path.resolve()
    if not distributed.is_first() or place in _held:
        yield
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Opened without truncation, because the file names the process that holds it.
        lock = (path / LOCK).open("a+")
    except OSError as error:
        raise UserError(
            f"hydra.run.dir={path}: cannot be written ({error.strerror}), expected a folder that can"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise UserError(
                f"{path}: {lock.read().strip() or 'another process'} trains in this folder; wait until it has ended, "
                "or choose another hydra.run.dir"
            ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()} (since {time.strftime('%H:%M:%S')})\n")
        lock.flush()
        _held.add(place)
        try:
            yield
        finally:
            _held.remove(place)
