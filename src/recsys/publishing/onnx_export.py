"""Export of the user tower to ONNX: padded histories in, normalised user embeddings out."""

from __future__ import annotations

import logging
import math
import warnings
from pathlib import Path

import onnx
import onnx.external_data_helper
import torch
from torch import Tensor, nn
from torch.export import Dim

from recsys.core.columns import Column, Dense, Ragged
from recsys.core.mapped import mapped_rows
from recsys.core.schema import Feature, Schema
from recsys.data.batches.batch import Batch, FeatureTensor, FeatureTensors
from recsys.models.blend import Blend, Model, members_of
from recsys.release.manifest import TIMESTAMP, USER_TOWER, USER_TOWER_DATA, TensorSpec, embedding_shape

# Larger weights go to a second file, which the runtime memory-maps.
INLINE_BYTES = 64 << 20
OPSET = 20
OUTPUT = "user_embedding"


def input_specs(model: Model, schema: Schema) -> tuple[TensorSpec, ...]:
    """Return the inputs of the exported tower: B histories of L events, bags of up to W codes.

    `item_idx` 0 stands for padding and for unknown items. `timestamp`, in seconds, is an input only if the history
    encoder reads time.
    """
    towers = [member.model.user_tower for member in members_of(model)]
    specs = [TensorSpec("item_idx", "int64", ("B", "L")), TensorSpec("lengths", "int64", ("B",))]
    if any(tower.encoder.reads_time for tower in towers):
        specs.append(TensorSpec(TIMESTAMP, "int64", ("B", "L")))
    if any(tower.events is not None for tower in towers):
        specs += [_spec("event", feature, ("B", "L")) for feature in schema.with_role("event", "request")]
    if any(tower.profile is not None for tower in towers):
        specs += [_spec("user", feature, ("B",)) for feature in schema.with_role("profile")]
    if any(tower.requests is not None for tower in towers):
        specs += [_spec("request", feature, ("B",)) for feature in schema.with_role("request")]
    if model.reads_users:
        specs.append(TensorSpec("user_idx", "int64", ("B",)))
    return tuple(specs)


def _spec(prefix: str, feature: Feature, axes: tuple[str, ...]) -> TensorSpec:
    name = f"{prefix}.{feature.name}"
    if feature.is_ragged:
        return TensorSpec(name, "int64", (*axes, f"W.{name}"))
    if feature.kind == "vector":
        return TensorSpec(name, "float32", (*axes, feature.size))
    return TensorSpec(name, "float32" if feature.kind == "numeric" else "int64", axes)


class ServedUserTower(nn.Module):
    """User tower of each member, with the item embeddings of the histories in a table.

    Args:
        model: both towers, in evaluation mode.
        table: table of `history_table`, or its first rows.
        specs: specifications of the inputs, in order.
    """

    table: Tensor

    def __init__(self, model: Model, table: Tensor, *, specs: tuple[TensorSpec, ...]) -> None:
        super().__init__()
        self.model, self.names = model, [spec.name for spec in specs]
        self.members = members_of(model)
        self.widths = [member.model.history_tower.dim for member in self.members]
        self.register_buffer("table", table)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return user embeddings [B, D] or [B, M, D]; the inputs come in the order of the specs."""
        inputs_by_name = dict(zip(self.names, inputs, strict=True))
        item_idx, lengths = inputs_by_name["item_idx"], inputs_by_name["lengths"]
        user_idx = inputs_by_name.get("user_idx", torch.full_like(lengths, -1))
        events = _with_prefix(inputs_by_name, "event.")
        users, requests = _with_prefix(inputs_by_name, "user."), _with_prefix(inputs_by_name, "request.")
        embeddings = []
        for (model, _, max_history), items in zip(
            self.members, self.table[item_idx].split(self.widths, dim=2), strict=True
        ):
            read = {"items": items, "time": inputs_by_name.get(TIMESTAMP), **events}
            kept = lengths
            if max_history is not None:
                read = {name: _latest(value, lengths, max_history) for name, value in read.items()}
                kept = lengths.clamp(max=max_history)
            states = model.user_tower.forward_padded(
                read.pop("items"),
                kept,
                events={name: value.flatten(0, 1) for name, value in read.items() if name != "time"},
                users=users,
                requests=requests,
                user_idx=user_idx,
                time=read["time"] if model.user_tower.encoder.reads_time else None,
            )
            embeddings.append(model.finish_users(states))
        return self.model.join(embeddings) if isinstance(self.model, Blend) else embeddings[0]


def _latest(rows: Tensor | None, lengths: Tensor, max_history: int) -> Tensor | None:
    """Return the last `max_history` of `lengths` rows [B, L, ...], padded on the right; [B, max_history, ...]."""
    if rows is None:
        return None
    first = (lengths - max_history).clamp(min=0)
    at = first.unsqueeze(1) + torch.arange(max_history, device=rows.device)
    at = at.clamp(max=rows.shape[1] - 1).view(*at.shape, *[1] * (rows.ndim - 2))
    return rows.gather(1, at.expand(-1, -1, *rows.shape[2:]))


def _with_prefix(inputs_by_name: dict[str, Tensor], prefix: str) -> FeatureTensors:
    return {name.removeprefix(prefix): value for name, value in inputs_by_name.items() if name.startswith(prefix)}


def history_table(model: Model, num_items: int, *, folder: Path) -> Tensor:
    """Return the item embeddings of histories [num_items + 1, width]; large ones lie in a file without a name."""
    towers = [member.model.history_tower for member in members_of(model)]
    shape = num_items + 1, sum(tower.dim for tower in towers)
    table = torch.empty(shape) if 4 * math.prod(shape) <= INLINE_BYTES else mapped_rows(*shape, folder=folder)
    with torch.inference_mode():
        for rows in torch.arange(num_items + 1).split(65536):
            table[rows[0] : rows[-1] + 1] = torch.cat([tower(rows) for tower in towers], dim=1)
    return table


def export_user_tower(
    model: Model, num_items: int, *, specs: tuple[TensorSpec, ...], folder: Path, metadata: dict[str, str]
) -> TensorSpec:
    """Write `user_tower.onnx`, for large weights also `user_tower.onnx.data`, and return the output's specification.

    Args:
        model: both towers, in evaluation mode.
        num_items: largest item_idx that the tower knows; other items are passed as 0.
        specs: inputs, from `input_specs`.
        folder: folder that exists.
        metadata: keys and values to store in the file.
    """
    table = history_table(model, num_items, folder=folder)
    is_large = table.nbytes > INLINE_BYTES
    # Exporters copy what they export, so a large table takes its place afterwards.
    served = ServedUserTower(model, table[:2] if is_large else table, specs=specs).eval()
    # The exporter takes axes of equal size, or of size one, for constants, so every axis gets a size of its own.
    names = sorted({axis for spec in specs for axis in spec.shape if isinstance(axis, str)})
    sizes = {axis: 3 + number for number, axis in enumerate(names)}
    example, dynamic = [], []
    for spec in specs:
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape]
        example.append(torch.zeros(shape, dtype=torch.int64 if spec.type == "int64" else torch.float32))
        dynamic.append({at: Dim.DYNAMIC for at, axis in enumerate(spec.shape) if isinstance(axis, str)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The exporter's notices are about packages that no tower uses.
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            served,
            tuple(example),
            dynamo=True,
            input_names=[spec.name for spec in specs],
            output_names=[OUTPUT],
            dynamic_shapes=(tuple(dynamic),),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    if is_large:
        _put_table(graph, table, folder / USER_TOWER_DATA)
    output = TensorSpec(OUTPUT, "float32", embedding_shape(model.num_embeddings, model.dim))
    _write(graph, folder / USER_TOWER, specs=(*specs, output), metadata=metadata)
    return output


def _put_table(model: onnx.ModelProto, table: Tensor, path: Path) -> None:
    """Write a table to the file of external data, and let the graph read it instead of its first rows."""
    first = table[:2].numpy().tobytes()
    (stored,) = (one for one in model.graph.initializer if one.raw_data == first)
    onnx.external_data_helper.set_external_data(stored, USER_TOWER_DATA, offset=0, length=table.nbytes)
    stored.ClearField("raw_data")
    stored.dims[:] = table.shape
    table.numpy().tofile(path)


def _write(model: onnx.ModelProto, path: Path, *, specs: tuple[TensorSpec, ...], metadata: dict[str, str]) -> None:
    _tidy(model.graph)
    del model.opset_import[:], model.metadata_props[:], model.graph.value_info[:]
    model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    model.producer_version = ""
    shapes = {spec.name: spec.shape for spec in specs}
    for value in (*model.graph.input, *model.graph.output):
        axes = value.type.tensor_type.shape
        axes.CopyFrom(onnx.TensorShapeProto())
        for axis in shapes[value.name]:
            axes.dim.add(**{"dim_param": axis} if isinstance(axis, str) else {"dim_value": axis})
    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=metadata[key])
    sizes = (len(t.raw_data) for t in model.graph.initializer)
    is_large = path.with_name(USER_TOWER_DATA).exists() or sum(sizes) > INLINE_BYTES
    onnx.save_model(
        model, str(path), save_as_external_data=is_large, all_tensors_to_one_file=True, location=USER_TOWER_DATA
    )


def _tidy(graph: onnx.GraphProto) -> None:
    """Drop metadata about the export, which names local files, because equal models must give equal bytes."""
    del graph.metadata_props[:]
    graph.doc_string = ""
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _tidy(attribute.g)


def batch_columns(batch: Batch) -> tuple[dict[str, Column], dict[str, Column], dict[str, Column]]:
    """Return the features of events, users and requests of a batch, for the inputs of the exported tower."""
    return _columns(batch.events), _columns(batch.users), _columns(batch.requests)


def _columns(tensors: FeatureTensors) -> dict[str, Column]:
    return {name: _column(tensor) for name, tensor in tensors.items()}


def _column(tensor: FeatureTensor) -> Column:
    if isinstance(tensor, Tensor):
        return Dense(tensor.numpy())
    return Ragged(tensor.values.numpy(), tensor.offsets.numpy())
