"""Files of sources, local or remote (fsspec): listing, digests of their content, and folders built from them."""

from __future__ import annotations

import glob
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import xxhash
from filelock import FileLock

from recsys.core.errors import UserError, nearest
from recsys.core.io import build_folder
from recsys.core.schema import OWNERS

log = logging.getLogger("recsys")

_CHUNK = 1 << 22


@dataclass(frozen=True)
class Tables:
    """Parquet files (paths or URLs) of each table, with shards in name order. A missing table has no files.

    Attributes:
        interactions, items, users: files of each table.
        origins: converted file -> file of the user that it was made from, for messages.
    """

    interactions: tuple[str, ...]
    items: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)

    def of(self, owner: str) -> tuple[str, ...]:
        """Return the files of the table `owner`."""
        return {"interactions": self.interactions, "items": self.items, "users": self.users}[owner]

    def shown(self, owner: str) -> tuple[str, ...]:
        """Return the names that messages use for the files of the table `owner`."""
        return tuple(self.origins.get(file, file) for file in self.of(owner))


# Names of the files of each table, where they differ from `interactions`, `items` and `users`.
Files = Mapping[str, str | Sequence[str] | None]


@dataclass(frozen=True)
class ParquetFolder:
    """Source: a folder with `interactions.parquet`, a file or a folder of shards, and optionally items and users.

    Attributes:
        root: path, or address that fsspec reads (s3://, gs://, hf://, memory://).
        files: table -> its file or files in the folder, if they have other names.
    """

    root: str
    files: Files | None = None

    def tables(self, cache: Path) -> Tables:  # noqa: ARG002 - the files are read in place
        """Return the files of the folder."""
        return find_tables(self.root, [".parquet"], self.files)


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


# Endings of files, in the order of preference, by the name of the configuration that reads them.
ENDINGS = {
    "parquet": (".parquet",),
    "csv": (".csv", ".tsv", ".txt", ".dat"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
}
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
# RecBole names its files DATASET.inter, DATASET.item and DATASET.user.
_RECBOLE = {"interactions": ".inter", "items": ".item", "users": ".user"}


def find_tables(root: str, endings: Sequence[str], files: Files | None = None) -> Tables:
    """Return the files of the three tables of a folder. Each is one file, or a folder of shards.

    Args:
        root: folder.
        endings: endings that the files may have after `interactions`, `items` and `users`, such as `.csv`.
        files: table -> its file, folder of shards or list of them, relative to the folder. It replaces the usual name.

    Raises:
        UserError: If the folder or its interactions are missing, a folder of shards is empty, or two files could be
            one table.
    """
    filesystem, path = open_filesystem(root)
    if not filesystem.exists(path):
        raise UserError(f"{root}: no such folder; expected one with interactions{endings[0]}")
    if not filesystem.isdir(path):
        raise UserError(f"{root}: found a file, expected a folder with interactions{endings[0]}")
    if unknown := [owner for owner in files or {} if owner not in OWNERS]:
        raise UserError(f"data.files.{unknown[0]}: no such table{nearest(unknown[0], OWNERS)}")
    names = sorted(entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in filesystem.ls(path, detail=True))
    found: dict[str, tuple[str, ...]] = {}
    for owner in OWNERS:
        given = (files or {}).get(owner)
        chosen = [given] if isinstance(given, str) else list(given or _usual(owner, names, endings, root=root))
        found[owner] = tuple(file for name in chosen for file in _shards(root, name, endings))
    if not found["interactions"]:
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise UserError(
            f"{root}: no interactions{endings[0]}; found {shown or 'nothing'}, expected a file or a folder of shards "
            f"of that name{_advice(names, endings)}"
        )
    return Tables(found["interactions"], found["items"], found["users"])


def _usual(owner: str, names: Sequence[str], endings: Sequence[str], *, root: str) -> list[str]:
    """Return the usual name that exists among `names`, or nothing."""
    usual = [owner + ending + packed for ending in endings for packed in ("", *_packing(endings))]
    found = [name for name in usual if name in names]
    if not found and ".csv" in endings:
        found = [name for name in names if _unpacked(name).endswith(_RECBOLE[owner])]
    if len(found) > 1:
        raise UserError(f"{root}: found {' and '.join(found)}; data.files.{owner}={found[0]} chooses one")
    return found


def _packing(endings: Sequence[str]) -> Iterable[str]:
    return () if ".parquet" in endings else COMPRESSED


def _unpacked(name: str) -> str:
    """Return a name without the ending of its compression."""
    return next((name.removesuffix(ending) for ending in COMPRESSED if name.endswith(ending)), name)


def _advice(names: Sequence[str], endings: Sequence[str]) -> str:
    """Return what to type where a folder has no interactions under their usual name."""
    for format, others in ENDINGS.items():
        if endings[0] not in others and any(_unpacked(name).startswith(f"interactions{others[0]}") for name in names):
            return f"; data={format} reads it"
    # The ending of a folder of shards is easily forgotten.
    files = [name for name in names if name == "interactions"] or [
        name
        for name in names
        if _unpacked(name).endswith((*endings, *_RECBOLE.values())) and name.partition(".")[0] not in ("items", "users")
    ]
    return f"; data.files.interactions={files[0]} reads that one" if files else ""


def _shards(root: str, name: str, endings: Sequence[str]) -> tuple[str, ...]:
    """Return the files of a table. `name` is relative to `root` unless it is an absolute path or an address."""
    filesystem, path = open_filesystem(name if "://" in name else root)
    if "://" not in name:
        path = name if name.startswith("/") and is_local(filesystem) else path.rstrip("/") + "/" + name
    if filesystem.isfile(path):
        return (_address(filesystem, path),)
    if not filesystem.isdir(path):
        raise UserError(f"{_address(filesystem, path)}: no such file or folder")
    # Writers such as Spark leave markers and unfinished parts under names that begin with _ or a dot.
    ends = (*endings, *_RECBOLE.values())
    inner = [file for file in filesystem.find(path) if _unpacked(file).endswith(ends)]
    kept = [f for f in inner if not any(part[:1] in "_." for part in f[len(path) :].strip("/").split("/"))]
    if not kept:
        raise UserError(f"{_address(filesystem, path)}: a folder without shards; expected files named *{endings[0]}")
    return tuple(_address(filesystem, file) for file in sorted(kept))


def open_filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a path or address, and the path within it. A path without `://` is read literally.

    Raises:
        UserError: If no file system reads such addresses.
    """
    try:
        if "://" not in url:
            return fsspec.filesystem("file"), os.path.join(os.getcwd(), os.path.expanduser(url)).rstrip("/") or "/"
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise UserError(f"{url}: {error}") from error
    return filesystem, path


def open_file(file: str) -> Any:
    """Open a file for reading bytes.

    Raises:
        OSError: If it cannot be opened.
    """
    filesystem, path = open_filesystem(file)
    return filesystem.open(path, "rb")


def _address(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    if is_local(filesystem):
        return path
    return str(filesystem.unstrip_protocol(path))


def is_local(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Return whether a file system is the local one."""
    return bool(filesystem.protocol == "file" or "file" in filesystem.protocol)


def digest(file: str) -> str:
    """Return a text that identifies the content of a file.

    For a local file it is a hash; for a remote one, the size, etag or time that the store reports.

    Raises:
        UserError: If the file cannot be read.
    """
    filesystem, path = open_filesystem(file)
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
