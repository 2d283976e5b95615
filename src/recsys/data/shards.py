"""Shards of a prepared data set: events of ranges of users, each in the flat layout, local or at an address.

    <address>/<shard>/item_idx.npy, time.npy, weight.npy, feature.<name>.npy ...

Concatenated in order they are the columns of the data set. Offsets of ragged columns count from 0 in each shard.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from recsys.core.errors import UserError
from recsys.core.io import atomic_write, build_folder

FILE = "shards.json"
_OFFSETS = ".offsets"
_COPIED = 1 << 22


@dataclass(frozen=True)
class Shard:
    """Events of a range of users.

    Attributes:
        name: name of its folder.
        first_user: first user_idx with events.
        num_rows: number of events.
    """

    name: str
    first_user: int
    num_rows: int


@dataclass(frozen=True)
class Shards:
    """Shards in the order of their users.

    Attributes:
        address: folder of the shards, a path or an address that fsspec reads.
        columns: names of the arrays of a shard, without `.npy`.
        shards: the shards.
    """

    address: str
    columns: tuple[str, ...]
    shards: tuple[Shard, ...]

    def save(self, path: Path) -> None:
        """Write a JSON file."""
        atomic_write(path, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Shards:
        """Read a JSON file.

        Raises:
            UserError: If it is not one of shards.
        """
        try:
            content = json.loads(path.read_text())
            shards = tuple(Shard(**shard) for shard in content["shards"])
            return cls(content["address"], tuple(content["columns"]), shards)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: not a list of shards ({error})") from error

    def file(self, shard: Shard, column: str) -> str:
        """Return the path or address of a column of a shard."""
        return f"{self.address}/{shard.name}/{column}.npy"

    def bounds(self) -> npt.NDArray[np.int64]:
        """Return the positions of the first event of each shard, and behind the last; int64 [S + 1]."""
        return np.cumsum([0, *(shard.num_rows for shard in self.shards)])

    def part(self, begin: int, end: int) -> Shards:
        """Return the shards `begin..end-1`."""
        return replace(self, shards=self.shards[begin:end])

    def joined(self, folder: Path) -> Path:
        """Return the local folder of the concatenated columns. It is made first if it does not exist.

        Raises:
            UserError: If a shard is missing.
        """
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if not folder.is_dir():
                with build_folder(folder) as aside:
                    self.join(aside)
        return folder

    def join(self, folder: Path, *, move: bool = False) -> None:
        """Write the concatenated columns to a local folder. Memory does not grow with their size.

        Args:
            folder: folder of the columns.
            move: whether the files of a single shard may be moved there.
        """
        for column in self.columns:
            files, target = [self.file(shard, column) for shard in self.shards], folder / f"{column}.npy"
            if move and len(files) == 1:
                shutil.move(files[0], target)
            elif column.endswith(_OFFSETS):
                _join_offsets(files, target)
            else:
                _join(files, target)

    def remove_others(self) -> None:
        """Remove shards that are not listed: those of tasks that were repeated."""
        filesystem, path = _filesystem(self.address)
        names = {shard.name for shard in self.shards}
        for found in filesystem.ls(path, detail=False) if filesystem.exists(path) else ():
            if found.rstrip("/").rsplit("/", 1)[-1] not in names:
                filesystem.rm(found, recursive=True)


class GrowingArray:
    """Array that is written to a file as its rows come. The header keeps its size when the rows are known."""

    def __init__(self, file: Any, dtype: npt.DTypeLike, width: tuple[int, ...]) -> None:
        self.file, self._dtype, self._width, self.num_rows = file, np.dtype(dtype), width, 0
        write_header(file, (0, *width), dtype)

    def add(self, values: npt.NDArray[Any]) -> None:
        """Write the next rows."""
        self.file.write(np.ascontiguousarray(values, self._dtype).data)
        self.num_rows += len(values)

    def finish(self) -> None:
        """Write the number of rows."""
        self.file.seek(0)
        write_header(self.file, (self.num_rows, *self._width), self._dtype)


class ArrayFolder:
    """Folder of growing arrays, at a path or address. As a context manager it completes them."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._arrays: dict[str, GrowingArray] = {}

    def open(self, name: str, dtype: npt.DTypeLike, width: tuple[int, ...] = ()) -> GrowingArray:
        """Return a new array `name`, of rows with the shape `width`."""
        place = f"{self._address}/{name}.npy"
        # A file at an address cannot be written at its beginning again, so it is written here first.
        opened: Any = tempfile.TemporaryFile if "://" in place else partial(open_address, place, "wb")
        self._arrays[name] = GrowingArray(opened(), dtype, width)
        return self._arrays[name]

    @property
    def names(self) -> list[str]:
        """Names of the arrays."""
        return list(self._arrays)

    def __enter__(self) -> ArrayFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for name, array in self._arrays.items():
            with array.file:
                if kind is not None:
                    continue
                array.finish()
                if "://" in self._address:
                    array.file.seek(0)
                    with open_address(f"{self._address}/{name}.npy", "wb") as out:
                        shutil.copyfileobj(array.file, out, _COPIED)


def rooted(address: str) -> str:
    """Return a path that does not depend on the working folder, or the address."""
    filesystem, path = _filesystem(address)
    return path if "file" in filesystem.protocol else address


def remove(address: str) -> None:
    """Remove a file or folder, if there is one."""
    filesystem, path = _filesystem(address)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


def open_address(address: str, mode: str = "rb") -> Any:
    """Open a file of a path or address. Folders of a local one are made for writing."""
    filesystem, path = _filesystem(address)
    if "w" in mode and "file" in filesystem.protocol:
        filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
    return filesystem.open(path, mode)


def _filesystem(address: str) -> tuple[Any, str]:
    # Servers import this module to open data sets of one machine, without the packages that read addresses.
    from recsys.data.sources.files import open_filesystem  # noqa: PLC0415

    return open_filesystem(address)


def read_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read the header of an array. The file is then at its first value."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def write_header(file: Any, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
    """Write the header that `np.save` writes."""
    described = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)


def read_rows(address: str, begin: int, end: int) -> npt.NDArray[Any]:
    """Read the rows `begin..end-1` of an array of one dimension."""
    with open_address(address) as file:
        _, dtype = read_header(file)
        file.seek(begin * dtype.itemsize, 1)
        return np.frombuffer(file.read((end - begin) * dtype.itemsize), dtype)


def _join(files: list[str], target: Path) -> None:
    headers = []
    for name in files:
        with open_address(name) as file:
            headers.append(read_header(file))
    (shape, dtype), num_rows = headers[0], sum(shape[0] for shape, _ in headers)
    with target.open("wb") as out:
        write_header(out, (num_rows, *shape[1:]), dtype)
        for name in files:
            with open_address(name) as file:
                read_header(file)
                shutil.copyfileobj(file, out, _COPIED)


def _join_offsets(files: list[str], target: Path) -> None:
    """Join offsets, of which each file has one more than rows."""
    sizes = []
    for name in files:
        with open_address(name) as file:
            sizes.append(read_header(file)[0][0] - 1)
    with target.open("wb") as out:
        write_header(out, (sum(sizes) + 1,), np.int64)
        out.write(np.zeros(1, np.int64).tobytes())
        last = np.int64(0)
        for name, size in zip(files, sizes, strict=True):
            for begin in range(0, size, _COPIED // 8):
                part = read_rows(name, begin + 1, min(begin + _COPIED // 8, size) + 1) + last
                out.write(part.tobytes())
            last = part[-1] if size else last
