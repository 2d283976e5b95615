"""Files of the cache of vectors: `keys`, the names of contents, and `vectors`, in a folder or at an address.

Shapes: R contents, W width.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recsys.core.errors import UserError
from recsys.core.io import atomic_file
from recsys.core.types import Float32Array
from recsys.data.sources.files import fingerprint, is_local, open_file, open_filesystem


def add_vectors(address: str, vectors: Mapping[str, Float32Array], *, prefix: str = "") -> None:
    """Add a file to the cache. A reader finds it complete or not at all.

    Args:
        address: folder or address of the cache; a folder is made if it does not exist.
        vectors: float32 [W] of each content by its name; at least one.
        prefix: beginning of the name of the file.
    """
    filesystem, path = open_filesystem(address)
    name = f"{prefix}{fingerprint(vectors)}.npz"
    if is_local(filesystem):
        Path(path).mkdir(parents=True, exist_ok=True)
        with atomic_file(Path(path) / name) as aside, aside.open("wb") as file:
            _write(file, vectors)
    else:
        content = io.BytesIO()
        _write(content, vectors)
        filesystem.pipe_file(f"{path}/{name}", content.getvalue())


def _write(file: Any, vectors: Mapping[str, Float32Array]) -> None:
    np.savez(file, keys=np.array([*vectors]), vectors=np.stack([*vectors.values()]))


def cached_vectors(files: Iterable[str]) -> dict[str, Float32Array]:
    """Return the vectors in files of the cache by the names of their contents.

    Files that begin with a dot are being written, or were left by a process that was killed. They do not count.

    Raises:
        UserError: If a file is damaged.
    """
    known: dict[str, Float32Array] = {}
    for name in files:
        if name.rpartition("/")[2].startswith("."):
            continue
        try:
            with open_file(name) as file, np.load(file, allow_pickle=False) as part:
                known |= dict(zip(part["keys"].tolist(), part["vectors"], strict=True))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{name}: damaged ({error}); delete it, and its vectors are computed again") from error
    return known
