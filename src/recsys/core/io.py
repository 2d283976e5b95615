"""Writes files and folders so that a reader, or a process that starts after a crash, finds all of one or nothing.

What is written lies aside under a hidden name, reaches the disk (`fsync`), and is then renamed. A process that is
killed leaves at most a hidden leftover, which nothing reads.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

_SYNC_THREADS = 8


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replace the content of a file: a reader sees the old content or the new, and the new survives a crash.

    Args:
        path: file in a folder that exists.
        content: text is written as UTF-8.
    """
    with atomic_file(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a writer a path aside; when the block ends without an error, that file takes the place of `path`.

    Args:
        path: file in a folder that exists. The path aside keeps its suffix, since some writers read it.

    Yields:
        The path to write to, in the same folder. It is removed if the block raises.
    """
    aside = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield aside
        sync(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def build_folder(path: Path) -> Iterator[Path]:
    """Give a writer an empty folder aside; when the block ends without an error, it becomes `path`.

    If `path` exists by then, it stays as it is and the new folder is removed: another process was faster.

    Args:
        path: folder to make; its parent is made too.

    Yields:
        The folder to write to, beside `path`. It is removed if the block raises.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        yield aside
        entries = [aside, *aside.rglob("*")]
        # The file system serves waiting threads together: 30 small files take a tenth of the time of one by one.
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
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    # There is no way to read it but to set it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
