"""Shards of a prepared data set: events of ranges of users, each in the flat layout, local or at an address.

    <address>/<shard>/item_idx.npy, time.npy, weight.npy, feature.<name>.npy ...

Concatenated in order they are the columns of the data set. Offsets of ragged columns count from 0 in each shard.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from recsys.core.columns import load_array
from recsys.core.errors import UserError
from recsys.core.io import atomic_write, sync

FILE = "shards.json"
_OFFSETS, _VALUES = ".offsets", ".values"
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
            UserError: If it is not one of shards, or lists none.
        """
        try:
            content = json.loads(path.read_text())
            shards = tuple(Shard(**shard) for shard in content["shards"])
            found = cls(content["address"], tuple(content["columns"]), shards)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: not a list of shards ({error})") from error
        if not shards:
            # A preparation without rows leaves one shard with the columns.
            raise UserError(
                f"{path}: found no shards, expected at least one in {found.address}; prepare the data again"
            )
        return found

    def file(self, shard: Shard, column: str) -> str:
        """Return the path or address of a column of a shard."""
        return f"{self.address}/{shard.name}/{column}.npy"

    def bounds(self) -> npt.NDArray[np.int64]:
        """Return the positions of the first event of each shard, and behind the last; int64 [S + 1]."""
        return np.cumsum([0, *(shard.num_rows for shard in self.shards)])

    def column(self, folder: Path, name: str, *, begin: int, end: int) -> npt.NDArray[Any]:
        """Memory-map a column of all rows, of which the shards `begin..end-1` are filled.

        Its file is sparse: each shard is copied to its place when a process needs it, once on each machine. Processes
        that need the same shard wait for the one that copies it.

        Args:
            folder: folder of the local columns; made if it does not exist.
            name: name of the column.
            begin: first shard that is needed.
            end: shard behind the last one.

        Raises:
            UserError: If a shard is missing.
        """
        target = folder / f"{name}.npy"
        for number in range(begin, end):
            shard = self.shards[number]
            copied = folder / f"{shard.name}.copied"
            if name in _lines(copied):
                continue
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / f".{shard.name}.lock"):
                if name not in (names := _lines(copied)):
                    self._copy(number, name, target)
                    sync(target)
                    atomic_write(copied, "\n".join([*names, name]))
        return load_array(target)

    def join(self, folder: Path, *, move: bool = False) -> None:
        """Write the concatenated columns to a local folder. Memory does not grow with their size.

        Args:
            folder: folder of the columns.
            move: whether the files of a single shard may be moved there.
        """
        for column in self.columns:
            target = folder / f"{column}.npy"
            if move and len(self.shards) == 1:
                shutil.move(self.file(self.shards[0], column), target)
                continue
            for number in range(len(self.shards)):
                self._copy(number, column, target)
        for file in folder.glob("*.lengths"):
            file.unlink()

    def _copy(self, number: int, column: str, target: Path) -> None:
        """Copy a shard to its place among the rows of all shards. Offsets count from the first shard there."""
        bounds, before = self.bounds(), 0
        is_offsets = column.endswith(_OFFSETS)
        if is_offsets or column.endswith(_VALUES):
            lengths = self._lengths(target.with_name(f"{column.removesuffix(_OFFSETS).removesuffix(_VALUES)}.lengths"))
            before = sum(lengths[:number])
            bounds = bounds if is_offsets else np.cumsum([0, *lengths])
        with self._open(self.shards[number], column) as file:
            shape, dtype = read_header(file)
            shape, size = (int(bounds[-1]) + is_offsets, *shape[1:]), math.prod(shape[1:]) * dtype.itemsize
            # Whoever comes first makes the file, and others write the same header again.
            with os.fdopen(os.open(target, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as out:
                write_header(out, shape, dtype)
                if os.fstat(out.fileno()).st_size < (whole := out.tell() + shape[0] * size):
                    out.truncate(whole)
                if is_offsets:
                    # The first one is the end of the shard before.
                    file.seek(size, os.SEEK_CUR)
                out.seek((int(bounds[number]) + is_offsets) * size, os.SEEK_CUR)
                while block := file.read(_COPIED):
                    out.write((np.frombuffer(block, np.int64) + before).data if is_offsets else block)

    def _open(self, shard: Shard, column: str) -> Any:
        try:
            return open_address(self.file(shard, column))
        except FileNotFoundError as error:
            raise UserError(
                f"{self.file(shard, column)}: this shard of the prepared data is missing; expected the output of the "
                "engine (data.engine.output) as the preparation left it"
            ) from error

    def _lengths(self, file: Path) -> list[int]:
        """Return the number of values of a ragged column in each shard, from their headers or a local file."""
        if not file.exists():
            lengths = []
            for shard in self.shards:
                with self._open(shard, f"{file.stem}{_VALUES}") as opened:
                    lengths.append(read_header(opened)[0][0])
            atomic_write(file, json.dumps(lengths))
        found: list[int] = json.loads(file.read_text())
        return found

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


def _lines(file: Path) -> list[str]:
    return file.read_text().split("\n") if file.exists() else []
