"""Checks of the graph of a user tower before ONNX Runtime reads it: no code, no other files, no absurd sizes.

Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx

from recsys.core.errors import UserError
from recsys.release.bounds import damaged
from recsys.release.manifest import USER_TOWER_DATA

# Limit of a protobuf message; larger weights lie in a file of their own.
MAX_GRAPH = 1 << 31
# Operators whose number of rounds may depend on a request. A server runs towers without a deadline.
REPEATING: tuple[str, ...] = ("Loop", "Scan", "SequenceMap")
# Size of a tensor that is always accepted.
_TENSOR = 1 << 26


def read_tower(content: bytes, path: Path) -> onnx.ModelProto:
    """Return the graph of a user tower without its external data. Refuse one that could run or read anything else."""
    try:
        if len(content) > MAX_GRAPH:
            raise ValueError(f"found {len(content)} bytes, expected at most {MAX_GRAPH}")
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own errors share no base class
        raise UserError(f"{path}: not an ONNX model ({error})") from error
    with damaged(path):
        _check_graph(path, model)
    return model


def _check_graph(path: Path, model: onnx.ModelProto) -> None:
    if model.functions:
        raise UserError(f"{path}: has custom functions ({model.functions[0].name}); expected standard operators only")
    for node in _nodes(model.graph):
        if node.domain not in ("", "ai.onnx"):
            raise UserError(f"{path}: operator '{node.domain}.{node.op_type}' is not a standard one")
        if node.op_type in REPEATING:
            raise UserError(f"{path}: operator '{node.op_type}' may repeat without end; expected none of these")
    for tensor in _tensors(model.graph):
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), None)
        if tensor.data_location == onnx.TensorProto.EXTERNAL and location != USER_TOWER_DATA:
            raise UserError(f"{path}: reads '{location}'; expected no other file than {USER_TOWER_DATA}")


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def check_tower(model: onnx.ModelProto, path: Path, size: int) -> None:
    """Refuse a tower with a tensor of fixed size that is out of proportion to its `size` in bytes, weights included."""
    with damaged(path):
        if model.graph.sparse_initializer:
            raise UserError(f"{path}: has sparse weights; expected dense ones")
        for tensor in model.graph.initializer:
            if math.prod(tensor.dims) > size:
                raise UserError(f"{path}: '{tensor.name}' has shape {list(tensor.dims)}, but the tower {size} bytes")
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        for value in inferred.graph.value_info:
            shape = [axis.dim_value for axis in value.type.tensor_type.shape.dim if axis.dim_value > 0]
            if math.prod(shape) > max(_TENSOR, size):
                raise UserError(f"{path}: '{value.name}' has shape {shape}, which is out of proportion")
