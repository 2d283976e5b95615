"""Files of a release, read once and compared with the digest of the manifest: what is verified is what is used.

A file that changes later has no effect on what was read. Imports no torch.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig

from recsys.core.errors import UserError
from recsys.core.io import open_plain
from recsys.core.schema import Schema
from recsys.core.stored_config import load_training
from recsys.core.strict_json import parse_json
from recsys.core.types import Float32Array
from recsys.release.bounds import array_header, damaged
from recsys.release.manifest import CONFIG, EMBEDDINGS, MANIFEST, SCHEMA, FileEntry, Manifest
from recsys.release.precision import decode, is_stored

_CHUNK = 1 << 22
# A file that is so many times as large as what it takes on the disk, with holes, would be read as zeros for hours.
# The number of blocks of 512 bytes is that of small files.
_HOLES, _SMALL = 16, 1 << 14
# Arrays of this process by digest: host, gateway and page of one process share them.
_arrays: weakref.WeakValueDictionary[str, npt.NDArray[Any]] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def read_file(folder: Path, name: str, manifest: Manifest) -> bytes:
    """Return the content of a file; raise `UserError` if it is not that of the manifest."""
    with _opened(folder, name, manifest) as (file, entry):
        content = file.read(entry.bytes)
        _compare(folder / name, entry, size=len(content), digest=hashlib.sha256(content).hexdigest())
        return content


def read_array(folder: Path, name: str, manifest: Manifest) -> npt.NDArray[Any]:
    """Return an array, read only. A process holds each array once."""
    with _opened(folder, name, manifest) as (file, entry), _lock:
        held = _arrays.get(entry.sha256)
        if held is not None:
            return held
        shape, is_fortran, dtype = array_header(file, entry.bytes, folder / name)
        begin = file.tell()
        array: npt.NDArray[Any] = np.empty(shape, dtype, "F" if is_fortran else "C")
        file.seek(0)
        running = hashlib.sha256(file.read(begin))
        rows = (array.T if is_fortran else array).reshape(-1).view(np.uint8).data
        size = file.readinto(rows) if array.size else 0
        running.update(rows)
        _compare(folder / name, entry, size=begin + size, digest=running.hexdigest())
        array.flags.writeable = False
        _arrays[entry.sha256] = array
        return array


def map_embeddings(folder: Path, manifest: Manifest) -> npt.NDArray[Any]:
    """Let this process, which has written a release, read its item embeddings from their file while the result lives.

    They take no memory then, and whoever could change the file could have changed what was written.
    """
    with _lock:
        array: npt.NDArray[Any] = np.load(folder / EMBEDDINGS, mmap_mode="r", allow_pickle=False)
        _arrays[manifest.files[EMBEDDINGS].sha256] = array
        return array


def read_embeddings(folder: Path, manifest: Manifest) -> Float32Array:
    """Return the item embeddings, float32 [N, D]."""
    found = read_array(folder, EMBEDDINGS, manifest)
    check_shape(found.shape, found.dtype, folder=folder, manifest=manifest)
    if found.dtype == np.float32:
        return found
    decoded = f"{manifest.files[EMBEDDINGS].sha256} decoded"
    with _lock:
        held = _arrays.get(decoded)
        if held is None:
            held = decode(found)
            held.flags.writeable = False
            _arrays[decoded] = held
        return held


def read_shard(folder: Path, manifest: Manifest, *, number: int, count: int) -> Float32Array:
    """Return the item embeddings of the rows with row % count == number. The others are read but not kept."""
    with _opened(folder, EMBEDDINGS, manifest) as (file, entry):
        shape, is_fortran, dtype = array_header(file, entry.bytes, folder / EMBEDDINGS)
        check_shape(shape, dtype, folder=folder, manifest=manifest)
        size = file.tell()
        file.seek(0)
        running = hashlib.sha256(file.read(size))
        step = count * max(_CHUNK // (manifest.dim * 4 * count), 1)
        kept = []
        for first in range(0, 0 if is_fortran else shape[0], step):
            block = np.empty((min(step, shape[0] - first), *shape[1:]), dtype)
            content = block.reshape(-1).view(np.uint8).data
            size += file.readinto(content)
            running.update(content)
            kept.append(block[number::count].copy())
        if is_fortran or not kept:
            return read_embeddings(folder, manifest)[number::count].copy()
        _compare(folder / EMBEDDINGS, entry, size=size, digest=running.hexdigest())
    return decode(np.concatenate(kept))


def check_shape(shape: tuple[int, ...], dtype: np.dtype[Any], *, folder: Path, manifest: Manifest) -> None:
    """Refuse item embeddings of other shape or type than the manifest says."""
    if not is_stored(shape, dtype, num_items=manifest.num_items, dim=manifest.dim):
        expected = [manifest.num_items, manifest.dim]
        raise UserError(f"{folder / EMBEDDINGS}: found {dtype} {list(shape)}, expected float32 {expected}")


def read_table(folder: Path, name: str, manifest: Manifest, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a Parquet file of a verified release; its bounds are part of the verification."""
    content = read_file(folder, name, manifest)
    with damaged(folder / name):
        return pq.read_table(pa.BufferReader(content), columns=columns)


def read_config(folder: Path, manifest: Manifest) -> DictConfig:
    """Return the configuration of the run, marked as stored."""
    return load_training(folder / CONFIG, read_file(folder, CONFIG, manifest))


def read_schema(folder: Path, manifest: Manifest) -> Schema:
    """Return the schema of the features."""
    content = parse_json(read_file(folder, SCHEMA, manifest), folder / SCHEMA)
    with damaged(folder / SCHEMA):
        return Schema.from_json(content)


def read_vocabulary(folder: Path, key: str, manifest: Manifest) -> pa.Array:
    """Return the values of a categorical feature, such as `items.genres`, in the order of their codes."""
    name = f"vocabularies/{key}.parquet"
    with damaged(folder / name):
        return read_table(folder, name, manifest)["value"].combine_chunks()


@contextmanager
def private_copy(folder: Path, names: Sequence[str], manifest: Manifest) -> Iterator[Path]:
    """Yield a folder of this process with verified copies of some files, to be mapped by libraries that need a path.

    It lies where temporary files do (`TMPDIR`), and is removed afterwards; what was mapped stays valid.
    """
    with tempfile.TemporaryDirectory(prefix="recsys-", ignore_cleanup_errors=True) as own:
        for name in names:
            with _opened(folder, name, manifest) as (file, entry), (Path(own) / name).open("xb") as copy:
                running, size = hashlib.sha256(), 0
                while chunk := file.read(_CHUNK):
                    running.update(chunk)
                    size += copy.write(chunk)
                _compare(folder / name, entry, size=size, digest=running.hexdigest())
        yield Path(own)


def check_file(folder: Path, name: str, manifest: Manifest) -> None:
    """Compare size and digest of a file with the manifest, in little memory."""
    path, entry = folder / name, manifest.files[name]
    with damaged(path), open_plain(path) as file:
        found = os.fstat(file.fileno())
        if found.st_size != entry.bytes:
            raise UserError(f"{path}: damaged, found {found.st_size} bytes, {MANIFEST} says {entry.bytes}")
        if found.st_size > _HOLES * 512 * max(found.st_blocks, _SMALL) and _has_hole(file.fileno(), found.st_size):
            raise UserError(f"{path}: most of its {found.st_size} bytes are holes, which take no place on the disk")
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != entry.sha256:
        raise UserError(f"{path}: changed, its sha256 is {digest[:12]}..., {MANIFEST} says {entry.sha256[:12]}...")


def _has_hole(descriptor: int, size: int) -> bool:
    """Return True if a part of a file is not on the disk; False where the system cannot tell."""
    try:
        return os.lseek(descriptor, 0, os.SEEK_HOLE) < size
    except (OSError, AttributeError):
        return False
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)


@contextmanager
def _opened(folder: Path, name: str, manifest: Manifest) -> Iterator[tuple[BufferedReader, FileEntry]]:
    path, entry = folder / name, manifest.files.get(name)
    if entry is None:
        raise UserError(f"{path}: missing; {MANIFEST} does not list it")
    with damaged(path), open_plain(path) as file:
        _compare(path, entry, size=os.fstat(file.fileno()).st_size, digest=entry.sha256)
        yield file, entry


def _compare(path: Path, entry: FileEntry, *, size: int, digest: str) -> None:
    if size != entry.bytes or digest != entry.sha256:
        found, expected = f"{size} bytes, sha256 {digest[:12]}...", f"{entry.bytes} bytes, {entry.sha256[:12]}..."
        raise UserError(f"{path}: changed since it was verified, found {found}, expected {expected}")
