"""Files of the cache of vectors, in a folder or at an address."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recsys.core.types import Float32Array
from recsys.data.content_cache import add_vectors, cached_vectors
from recsys.data.sources.files import open_filesystem


def vectors_of(names: list[str]) -> dict[str, Float32Array]:
    """Vectors that begin with the length of the name."""
    return {name: np.array([len(name), 1, 2], np.float32) for name in names}


@pytest.mark.parametrize("is_remote", [False, True])
def test_vectors_that_were_added_are_read(tmp_path: Path, is_remote: bool) -> None:
    address = f"memory://{tmp_path.name}" if is_remote else str(tmp_path / "new/cache")
    add_vectors(address, vectors_of(["a", "image b"]))
    add_vectors(address, vectors_of(["ccc"]), prefix="cc-")
    filesystem, path = open_filesystem(address)
    files = sorted(filesystem.ls(path, detail=False))
    assert sum(file.rpartition("/")[2].startswith("cc-") for file in files) == 1
    assert len(files) == 2
    found = cached_vectors(filesystem.unstrip_protocol(file) for file in files)
    assert {name: vector.tolist() for name, vector in found.items()} == {
        "a": [1, 1, 2], "image b": [7, 1, 2], "ccc": [3, 1, 2],
    }  # fmt: skip
