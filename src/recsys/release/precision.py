"""Item embeddings on disk: float32, half floats, or 8-bit integers with a scale for each item. Imports no torch.

Releases are searched in float32: `decode` gives what the index is built from, in training and in every host.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from recsys.core.errors import UserError, nearest
from recsys.core.types import Float32Array

Precision = Literal["float32", "float16", "int8"]
_LARGEST = 127


def int8_type(dim: int) -> np.dtype[Any]:
    """Return the type of an item of 8-bit integers: `scale` float32 and `codes` int8 [dim]."""
    return np.dtype([("scale", "<f4"), ("codes", "i1", (dim,))])


def encode(embeddings: Float32Array, precision: str) -> npt.NDArray[Any]:
    """Return embeddings [N, D] as they are stored.

    Raises:
        UserError: If there is no such precision.
    """
    if precision not in get_args(Precision):
        names = get_args(Precision)
        raise UserError(f"item_embeddings={precision}: expected one of {', '.join(names)}{nearest(precision, names)}")
    if precision != "int8":
        return embeddings.astype(precision, copy=False)
    stored = np.empty(len(embeddings), int8_type(embeddings.shape[1]))
    highest = np.abs(embeddings).max(axis=1, initial=0)
    stored["scale"] = np.where(highest > 0, highest / np.float32(_LARGEST), np.float32(1))
    stored["codes"] = np.rint(embeddings / stored["scale"][:, None]).clip(-_LARGEST, _LARGEST)
    return stored


def decode(stored: npt.NDArray[Any]) -> Float32Array:
    """Return stored embeddings as float32 [N, D]."""
    if stored.dtype.names is None:
        return stored.astype(np.float32, copy=False)
    decoded: Float32Array = stored["codes"].astype(np.float32)
    decoded *= stored["scale"][:, None]
    return decoded


def is_stored(shape: tuple[int, ...], dtype: np.dtype[Any], *, num_items: int, dim: int) -> bool:
    """Return whether an array of this shape and type holds the embeddings of so many items."""
    if dtype == int8_type(dim):
        return shape == (num_items,)
    return dtype in (np.float32, np.float16) and shape == (num_items, dim)
