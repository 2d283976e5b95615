"""Exports each distinct user tower once in a run of the tests, for all its processes: an export takes four seconds.

The key is the pickled tower with its weights and the settings of the export, so another tower is another key. A tower
that cannot be pickled is exported every time. Tests of the export itself use `torch.onnx.export` as it is.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

# Names the folder of the exported towers in this process and in those that it starts.
FOLDER = "RECSYS_TEST_EXPORTS"
EXPORT = torch.onnx.export


def export_once() -> None:
    """Replace `torch.onnx.export` in this process, if the environment names a folder."""
    if FOLDER in os.environ:
        torch.onnx.export = functools.partial(_export, Path(os.environ[FOLDER]))


class _Pickler(pickle.Pickler):
    """Writes the values of tensors, whose usual form holds addresses."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            rows = value.detach().contiguous().view(-1).view(torch.uint8).numpy()
            return bytes, (f"{type(value)} {value.dtype} {tuple(value.shape)} ".encode() + rows.tobytes(),)
        return NotImplemented


def _key(value: Any) -> str:
    written = io.BytesIO()
    _Pickler(written).dump(value)
    return hashlib.sha256(written.getvalue()).hexdigest()


def _export(folder: Path, *arguments: Any, **settings: Any) -> Any:
    import onnx

    try:
        key = _key((arguments, settings))
    except (pickle.PicklingError, AttributeError, RuntimeError, TypeError):
        return EXPORT(*arguments, **settings)
    kept = folder / f"{key}.onnx"
    if not kept.exists():
        program = EXPORT(*arguments, **settings)
        assert program is not None
        unfinished = folder / f"{key}.{os.getpid()}"
        unfinished.write_bytes(program.model_proto.SerializeToString())
        unfinished.rename(kept)
    return SimpleNamespace(model_proto=onnx.load_model_from_string(kept.read_bytes()))
