"""Exports each kind of user tower once in a run of the tests, for all its processes: an export takes three seconds.

Towers that differ by nothing but weights and the number of items share an export: that of a copy with random weights,
in which each weight is found again by its values: as it is, transposed, or one of its rows. A tower whose weights are
not all found shares its export with equal ones, and one that cannot be pickled is exported every time. Tests of the
export itself use `export`.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch

# Names the folder of the exported towers in this process and in those that it starts.
FOLDER = "RECSYS_TEST_EXPORTS"
ORIGINAL = torch.onnx.export


def export(*arguments: Any, **settings: Any) -> Any:
    """Export as `torch.onnx.export` does, which parses the sources of its 500 operators again for every model."""
    keep_operators()
    return ORIGINAL(*arguments, **settings)


@functools.cache
def keep_operators() -> None:
    """Make the exporter read its operators once in this process and in its forks."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))


def read_operators() -> None:
    """Import what an export imports, and read its operators, for the forks of this process."""
    import onnxscript.optimizer
    import onnxscript.rewriter  # noqa: F401
    from torch.onnx._internal.exporter import _core, _registration  # noqa: F401

    keep_operators()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    _registration.ONNXRegistry.from_torchlib(opset_version=20)


def export_once() -> None:
    """Replace `torch.onnx.export` in this process, if the environment names a folder."""
    if FOLDER in os.environ:
        torch.onnx.export = functools.partial(_export, Path(os.environ[FOLDER]))


class _Pickler(pickle.Pickler):
    """Writes the shapes of weights, and the values of other tensors, whose usual form holds addresses.

    An exported tower has the table of item embeddings, of any number of rows, instead of the item tower.
    """

    def __init__(self, file: io.BytesIO, model: torch.nn.Module, weights: set[int]) -> None:
        super().__init__(file)
        self._weights = weights
        self._table = id(getattr(model, "table", None))
        names = ("item_bias", "fixed_bias")
        self._biases = {id(one) for name, one in model.named_buffers() if name.rpartition(".")[2] in names}

    def reducer_override(self, value: Any) -> Any:
        from recsys.models.items import ItemTower

        if isinstance(value, ItemTower) or id(value) in self._biases:
            return str, (type(value).__name__,)
        if isinstance(value, torch.Tensor):
            shape = tuple(value.shape)
            if id(value) in self._weights:
                free = shape[1:] if id(value) == self._table else shape
                return bytes, (f"{type(value)} {value.dtype} {free} ".encode(),)
            kind = f"{type(value)} {value.dtype} {shape} ".encode()
            return bytes, (kind + value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes(),)
        return NotImplemented


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: one for name, one in model.state_dict(keep_vars=True).items() if one.dtype == torch.float32}


def _key(model: torch.nn.Module, *settings: Any, weights: dict[str, torch.Tensor]) -> str:
    written = io.BytesIO()
    # What a model knows of new items is in the embeddings of items, not in the export.
    own = [(one, dict(vars(one))) for one in model.modules() if hasattr(one, "new_items_scale")]
    for one, _ in own:
        one.num_trained, one.new_items_scale = 0, 1.0
    try:
        _Pickler(written, model, {id(one) for one in weights.values()}).dump((model, settings))
    finally:
        for one, before in own:
            one.num_trained, one.new_items_scale = before["num_trained"], before["new_items_scale"]
    return hashlib.sha256(written.getvalue()).hexdigest()


def _export(folder: Path, model: torch.nn.Module, *arguments: Any, **settings: Any) -> Any:
    import onnx

    # An encoder that reads times has biases that are gathered from weights.
    reads_time = any(member.model.user_tower.encoder.reads_time for member in getattr(model, "members", ()))
    weights = {} if reads_time else _weights(model)
    try:
        of_shapes, of_values = (_key(model, arguments, settings, weights=some) for some in (weights, {}))
    except (pickle.PicklingError, AttributeError, RuntimeError, TypeError):
        return export(model, *arguments, **settings)

    def with_random_weights() -> tuple[bytes, Any]:
        random, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for one in _weights(random).values():
                one.copy_(torch.randn(one.shape, generator=generator))
        program = export(random, *arguments, **settings).model_proto
        return program.SerializeToString(), _places(program.graph, _weights(random))

    def as_it_is() -> tuple[bytes, Any]:
        return export(model, *arguments, **settings).model_proto.SerializeToString(), {}

    content, places = _once(folder / of_shapes, with_random_weights) if weights else (b"", None)
    if places is None:
        content, places = _once(folder / of_values, as_it_is)
    program = onnx.load_model_from_string(content)
    for initializer in program.graph.initializer:
        if initializer.name in places:
            name, part = places[initializer.name]
            values = _part(weights[name].detach(), part).contiguous()
            initializer.raw_data, initializer.dims[:] = values.numpy().tobytes(), values.shape
    return SimpleNamespace(model_proto=program)


def _once(kept: Path, made: Callable[[], tuple[bytes, Any]]) -> tuple[bytes, Any]:
    if not kept.exists():
        unfinished = kept.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(pickle.dumps(made()))
        unfinished.rename(kept)
    return pickle.loads(kept.read_bytes())  # type: ignore[no-any-return]


# A weight as it is, transposed, or one of its rows.
Part = None | Literal["transposed"] | int


def _part(weight: torch.Tensor, part: Part) -> torch.Tensor:
    return weight if part is None else weight.T if part == "transposed" else weight[part]


def _places(graph: Any, weights: dict[str, torch.Tensor]) -> dict[str, tuple[str, Part]] | None:
    """Return the place of each initializer in the weights, or None if something else was made of weights."""
    from onnx import TensorProto, numpy_helper

    places = {}
    for initializer in graph.initializer:
        if initializer.data_type == TensorProto.FLOAT:
            values = torch.from_numpy(numpy_helper.to_array(initializer).copy())
            place = next(filter(None, (_place(values, *weight) for weight in weights.items())), None)
            if place is not None:
                places[initializer.name] = place
            elif values.numel() > 1 and not torch.equal(values, values.round()):
                # Whole numbers are positions, not made of random weights.
                return None
    return places


def _place(values: torch.Tensor, name: str, weight: torch.Tensor) -> tuple[str, Part] | None:
    if torch.equal(values, weight):
        return name, None
    if weight.ndim == 2 and torch.equal(values, weight.T):
        return name, "transposed"
    if weight.ndim == 2 and values.shape == weight.shape[1:]:
        for row in (weight == values).all(1).nonzero().flatten().tolist():
            return name, row
    return None
