"""Atomic writing of files and folders: readers find a complete file or folder or none, even after a crash.

Content is written under a hidden name, synced to disk (`fsync`) and then renamed. A killed process leaves at most a
hidden leftover, which nothing reads.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

_SYNC_THREADS = 8
# Modes of files and folders with data of users, and with the state of servers.
PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700


def atomic_write(path: Path, content: str | bytes, *, is_private: bool = False) -> None:
    """Replace the content of a file: a reader sees the old content or the new, and the new survives a crash.

    Args:
        path: file in a folder that exists.
        content: text is written as UTF-8.
        is_private: only the owner may read and write the file (0600).
    """
    with atomic_file(path) as aside:
        if is_private:
            aside.unlink(missing_ok=True)
            aside.touch(PRIVATE_FILE)
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


def private_folder(path: Path) -> None:
    """Make a folder that only its owner can enter (0700), unless it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(PRIVATE_FOLDER, exist_ok=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a hidden path; when the block ends without an error, the file written there replaces `path`.

    Args:
        path: file in a folder that exists. The hidden path has the same suffix, because some writers depend on it.

    Yields:
        The path to write to, in the same folder. It is removed if the block raises.
    """
    aside = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield aside
        sync(aside)
        os.replace(aside, path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(aside)):
            # The error of a full disk names no file.
            error.filename = str(path)
        raise
    sync(path.parent)


@contextmanager
def build_folder(path: Path) -> Iterator[Path]:
    """Yield an empty hidden folder, which becomes `path` when the block ends without an error.

    If another process has made `path` meanwhile, that folder stays and the new one is removed.

    Args:
        path: folder to make, with its parents.

    Yields:
        The folder to write to, beside `path`. It is removed if the block raises.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        yield aside
        entries = [aside, *aside.rglob("*")]
        # Threads sync at the same time, because file systems combine concurrent requests: 30 small files take a tenth
        # of the time.
        with ThreadPoolExecutor(_SYNC_THREADS) as pool:
            for _ in pool.map(sync, entries):
                pass
        # The mode of `mkdtemp` would keep other users from reading.
        aside.chmod(0o777 & ~_umask())
        try:
            os.rename(aside, path)
        except OSError:
            if not path.is_dir():
                raise
            shutil.rmtree(aside)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    sync(path.parent)


def open_plain(path: Path) -> BufferedReader:
    """Open a file that somebody else may have made. It must be a plain one: others could block or never end.

    Raises:
        OSError: If it cannot be opened, or is a link, a folder or a special file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    return os.fdopen(descriptor, "rb")


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    # The umask can be read only by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
