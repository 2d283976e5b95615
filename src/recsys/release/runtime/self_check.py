"""The questions that a release stores with their answers, so that a server can check itself. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.core.errors import UserError
from recsys.release.manifest import SELF_CHECK

# Tower and index answer their stored questions as they did when the release was made, up to other processors' rounding.
TOLERANCE = 1e-3


def stored_check(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """Arrays of `self_check.npz`: `input:*` of the tower, the `embeddings` it gave, the `best_scores` of the index.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / SELF_CHECK
    try:
        with np.load(path, allow_pickle=False) as stored:
            check: dict[str, npt.NDArray[Any]] = dict(stored)
        if missing := {"embeddings", "best_scores"} - check.keys():
            raise KeyError(*sorted(missing))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: damaged ({error})") from error
    return check
