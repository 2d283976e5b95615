"""Self-check of a release: stored inputs with the results of tower and index. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.core.errors import UserError
from recsys.release.manifest import SELF_CHECK

# Tolerance for the rounding of other processors.
TOLERANCE = 1e-3


def stored_check(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of `self_check.npz`: the tower's `input:*`, its `embeddings`, and the index's `best_scores`."""
    path = folder / SELF_CHECK
    try:
        with np.load(path, allow_pickle=False) as stored:
            check: dict[str, npt.NDArray[Any]] = dict(stored)
        if missing := {"embeddings", "best_scores"} - check.keys():
            raise KeyError(*sorted(missing))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: damaged ({error})") from error
    return check
