"""The faiss structure of an index on disk, and checks of stored files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import faiss

from recsys.core.errors import UserError
from recsys.core.io import atomic_file
from recsys.core.types import Float32Array

STRUCTURE = "item_index.faiss"
_FAISS_BYTES = faiss.get_deserialization_vector_byte_limit()


class StoredFile(NamedTuple):
    """Size and digest of a file."""

    bytes: int
    sha256: str

    @classmethod
    def describe(cls, path: Path) -> StoredFile:
        """Measure the file at `path`."""
        return cls(path.stat().st_size, _digest(path))

    def check(self, path: Path, *, digest: bool) -> None:
        """Raise a `UserError` if the file at `path` is missing or differs; comparing the digest reads the whole file.

        faiss notices some truncated files but not all, and no changed bytes.
        """
        if not path.is_file():
            raise UserError(f"{path}: missing; the description of the index expects it")
        if path.stat().st_size != self.bytes:
            raise UserError(f"{path}: damaged, found {path.stat().st_size} bytes, expected {self.bytes}")
        if digest and _digest(path) != self.sha256:
            raise UserError(f"{path}: damaged, its sha256 is not the one in the description of the index")


def write_structure(structure: Any, folder: Path) -> list[str]:
    """Write a faiss structure to `item_index.faiss`, and return the names of the files written."""
    with atomic_file(folder / STRUCTURE) as aside:
        faiss.write_index(structure, str(aside))
    return [STRUCTURE]


def read_structure(folder: Path, kind: str, *, embeddings: Float32Array) -> Any:
    """Memory-map `item_index.faiss`; `UserError` unless it has class `kind` and as many items as `embeddings`."""
    path = folder / STRUCTURE
    # A damaged header would ask for more memory than the file could fill.
    faiss.set_deserialization_vector_byte_limit(max(path.stat().st_size, 1 << 20))
    try:
        structure = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except (RuntimeError, MemoryError) as error:
        raise UserError(
            f"{path}: faiss cannot read it ({(str(error) or type(error).__name__).splitlines()[0]})"
        ) from error
    finally:
        faiss.set_deserialization_vector_byte_limit(_FAISS_BYTES)
    found = (type(structure).__name__, structure.ntotal, structure.d, structure.metric_type)
    expected = (kind, *embeddings.shape, faiss.METRIC_INNER_PRODUCT)
    if found != expected:
        raise UserError(f"{path}: found {found} (class, items, dim, metric), expected {expected}")
    return structure


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
