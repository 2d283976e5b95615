"""Large tensors in temporary files, which the operating system reads and writes as needed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor


def mapped_rows(num_rows: int, width: int, *, folder: Path) -> Tensor:
    """Return zeros float32 [N, D] in a file without a name, in a folder or, if that is not writable, in `TMPDIR`."""
    place = folder if os.access(folder, os.W_OK) else None
    with tempfile.NamedTemporaryFile(dir=place, prefix=".rows-") as file:
        if hasattr(os, "posix_fallocate") and num_rows:
            # On a full disk a file with holes would kill the process at a later write.
            os.posix_fallocate(file.fileno(), 0, num_rows * width * 4)
        file.truncate(num_rows * width * 4)
        return torch.from_file(file.name, shared=True, size=num_rows * width, dtype=torch.float32).view(num_rows, width)
