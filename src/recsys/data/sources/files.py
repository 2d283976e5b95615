"""Files of sources, local or remote (fsspec): listing, digests of their content, and folders built from them."""

from __future__ import annotations

import glob
import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import fsspec
import xxhash
from filelock import FileLock

from recsys.core.errors import UserError
from recsys.core.io import build_folder

log = logging.getLogger("recsys")

_CHUNK = 1 << 22


@dataclass(frozen=True)
class Tables:
    """Parquet files (paths or URLs) of each table, with shards in name order. A missing table has no files."""

    interactions: tuple[str, ...]
    items: tuple[str, ...] = ()
    users: tuple[str, ...] = ()

    def of(self, owner: str) -> tuple[str, ...]:
        """Return the files of the table `owner`."""
        return {"interactions": self.interactions, "items": self.items, "users": self.users}[owner]


@dataclass(frozen=True)
class ParquetFolder:
    """Source: a folder with `interactions.parquet`, a file or a folder of shards, and optionally items and users.

    Attributes:
        root: path, or address that fsspec reads (s3://, gs://, hf://, memory://).
    """

    root: str

    def tables(self, cache: Path) -> Tables:  # noqa: ARG002 - the files are read in place
        """Return the files of the folder."""
        return find_tables(self.root, ".parquet")


@dataclass(frozen=True)
class ParquetFiles:
    """Source: a fixed list of Parquet files. Files added to their folders later are not read.

    Attributes:
        interactions, items, users: paths, or addresses that fsspec reads, with shards in order.
    """

    interactions: Sequence[str]
    items: Sequence[str] = ()
    users: Sequence[str] = ()

    def tables(self, cache: Path) -> Tables:  # noqa: ARG002 - the files are read in place
        """Return the files."""
        return Tables(tuple(self.interactions), tuple(self.items), tuple(self.users))


def find_tables(root: str, ending: str) -> Tables:
    """Return `interactions<ending>`, `items<ending>` and `users<ending>` of a folder: files, or folders of shards.

    Raises:
        UserError: If the folder or its interactions are missing, or a folder of shards is empty.
    """
    filesystem, path = _filesystem(root)
    if not filesystem.exists(path):
        raise UserError(f"{root}: no such folder; expected one with interactions{ending}")
    if not filesystem.isdir(path):
        raise UserError(f"{root}: found a file, expected a folder with interactions{ending}")
    interactions = _shards(root, f"interactions{ending}", ending)
    if not interactions:
        names = sorted(name["name"].rstrip("/").rsplit("/", 1)[-1] for name in filesystem.ls(path, detail=True))
        found = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise UserError(
            f"{root}: no interactions{ending}; found {found or 'nothing'}, "
            f"expected a file or a folder of shards of that name"
        )
    return Tables(interactions, _shards(root, f"items{ending}", ending), _shards(root, f"users{ending}", ending))


def _shards(root: str, name: str, ending: str) -> tuple[str, ...]:
    filesystem, path = _filesystem(root)
    path = path.rstrip("/") + "/" + name
    if filesystem.isfile(path):
        return (_address(filesystem, path),)
    if not filesystem.isdir(path):
        return ()
    # Writers such as Spark leave markers and unfinished parts under names that begin with _ or a dot.
    inner = [file for file in filesystem.find(path) if file.endswith(ending)]
    kept = [f for f in inner if not any(part[:1] in "_." for part in f[len(path) :].strip("/").split("/"))]
    if not kept:
        raise UserError(f"{_address(filesystem, path)}: a folder without shards; expected files named *{ending}")
    return tuple(_address(filesystem, file) for file in sorted(kept))


def _filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise UserError(f"{url}: {error}") from error
    return filesystem, path


def _address(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    if is_local(filesystem):
        return path
    return str(filesystem.unstrip_protocol(path))


def local_copy(file: str, folder: Path) -> Path:
    """Return the path of a local file, or of a copy of a remote one in `folder`."""
    filesystem, path = _filesystem(file)
    if is_local(filesystem):
        return Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / f"{fingerprint([file])}-{path.rsplit('/', 1)[-1]}"
    filesystem.get_file(path, str(copy))
    return copy


def is_local(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Return whether a file system is the local one."""
    return bool(filesystem.protocol == "file" or "file" in filesystem.protocol)


def digest(file: str) -> str:
    """Return a text that identifies the content of a file.

    For a local file it is a hash; for a remote one, the size, etag or time that the store reports.

    Raises:
        UserError: If the file cannot be read.
    """
    filesystem, path = _filesystem(file)
    try:
        if not is_local(filesystem):
            return str(filesystem.ukey(path))
        running = xxhash.xxh3_128()
        with open(path, "rb") as opened:
            while chunk := opened.read(_CHUNK):
                running.update(chunk)
        return running.hexdigest()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error})") from error


def fingerprint(parts: Iterable[object]) -> str:
    """Return a short name for `parts`, each represented by its `repr`."""
    running = xxhash.xxh3_128()
    for part in parts:
        running.update(repr(part).encode() + b"\0")
    return running.hexdigest()


def build_once(folder: Path, build: Callable[[Path], None]) -> bool:
    """Build a folder unless it exists. Return whether it was built.

    It is built under a lock and a hidden name and then renamed, so readers never find it incomplete. A second process
    that needs the folder waits for the first. Leftovers of killed processes are removed.

    Args:
        folder: folder to make.
        build: function that fills an empty folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.*.part"):
            shutil.rmtree(leftover, ignore_errors=True)
        if folder.is_dir():
            return False
        with build_folder(folder) as aside:
            build(aside)
    return True
