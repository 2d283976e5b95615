"""Self-check of a release: stored inputs with the results of tower and index. Imports no torch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.core.errors import UserError
from recsys.release.bounds import damaged
from recsys.release.files import read_file
from recsys.release.manifest import SELF_CHECK, Manifest

# Tolerance for the rounding of other processors.
TOLERANCE = 1e-3


def stored_check(folder: Path, manifest: Manifest) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of `self_check.npz`: the tower's `input:*`, its `embeddings`, and the index's `best_scores`.

    Later releases also have `best_items`, the item_idx of each best item.
    """
    path = folder / SELF_CHECK
    content = io.BytesIO(read_file(folder, SELF_CHECK, manifest))
    with damaged(path):
        with np.load(content, allow_pickle=False) as stored:
            check: dict[str, npt.NDArray[Any]] = dict(stored)
        if missing := {"embeddings", "best_scores", "input:lengths"} - check.keys():
            raise KeyError(*sorted(missing))
        if not len(check["embeddings"]) or len(check["embeddings"]) != len(check["best_scores"]):
            raise UserError(f"{path}: holds no requests with their best scores")
        for name, values in check.items():
            # A missing number of an input is nan.
            if values.dtype.kind not in "iuf" or not (name.startswith("input:") or np.isfinite(values).all()):
                raise UserError(f"{path}: {name}: found {values.dtype} values that are not all finite numbers")
    return check
