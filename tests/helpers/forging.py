"""Releases that were changed with care: digests, pair, version and folder name fit the changed files again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from recsys.index import save_index
from recsys.release.manifest import describe_files, pair_of, save_index_pair, version_of

Change = Callable[[Path], object]
# A small release, which needs no training.
TINY = Path(__file__).parents[1] / "fixtures/earlier_layout/releases/0ad95a3d936142dc"


def copy_release(source: Path, store: Path) -> Path:
    """Copy a release into a store, writable."""
    shutil.copytree(source, store / source.name)
    for path in (store / source.name).rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return store / source.name


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tower(folder: Path, change: Callable[[onnx.ModelProto], Any]) -> None:
    path = folder / "user_tower.onnx"
    model = onnx.load_model_from_string(path.read_bytes())
    change(model)
    path.write_bytes(model.SerializeToString())


def pair_again(folder: Path) -> None:
    """Name the pair of the files in tower, index and manifest."""
    pair = pair_of(describe_files(folder))
    files = {n: e for n, e in describe_files(folder).items() if n.startswith("item_index.") and "pair" not in n}
    save_index_pair(folder, pair, files=files)

    def name(model: onnx.ModelProto) -> None:
        for entry in model.metadata_props:
            if entry.key == "recsys.pair":
                entry.value = pair

    try:
        edit_tower(folder, name)
    except Exception:  # not a model any more
        return
    finally:
        edit_manifest(folder, pair=pair)


def seal(folder: Path) -> Path:
    """Fit digests, sizes and version, and rename the folder."""
    files = describe_files(folder)
    described = {name: {"sha256": entry.sha256, "bytes": entry.bytes} for name, entry in files.items()}
    edit_manifest(folder, files=described, version=version_of(files))
    return folder.rename(folder.with_name(version_of(files)))


def node(kind: str, *inputs: str, to: str = "extra", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, [*inputs], [to], **attributes)


def constant(name: str, *values: int) -> onnx.NodeProto:
    return node("Constant", to=name, value=helper.make_tensor(name, TensorProto.INT64, [len(values)], values))


def nodes(*added: onnx.NodeProto, into_output: str | None = None) -> Change:
    """Put nodes before the others; `into_output` is added to the result, so that no optimiser removes it."""

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        kept = [*graph.node]
        del graph.node[:]
        graph.node.extend([*added, *kept])
        if into_output is not None:
            last, name = next((n, n.output[0]) for n in reversed(kept) if n.output[0] == graph.output[0].name)
            for one in graph.node:
                if one.output[0] == name:
                    one.output[0] = "before"
            graph.node.append(helper.make_node("Add", ["before", into_output], [name]))

    return lambda folder: edit_tower(folder, change)


def endless() -> Change:
    """Add a loop of 2^62 rounds."""
    body = helper.make_graph(
        [node("Identity", "go", to="still"), node("Add", "sum", "sum", to="more")],
        "body",
        [
            helper.make_tensor_value_info(n, t, [])
            for n, t in (("round", TensorProto.INT64), ("go", TensorProto.BOOL), ("sum", TensorProto.FLOAT))
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.FLOAT, []),
        ],
    )
    start = [
        node("Constant", to="rounds", value=helper.make_tensor("r", TensorProto.INT64, [], [2**62])),
        node("Constant", to="begin", value=helper.make_tensor("b", TensorProto.BOOL, [], [True])),
        node("Constant", to="zero", value=helper.make_tensor("z", TensorProto.FLOAT, [], [0.0])),
    ]
    return nodes(*start, node("Loop", "rounds", "begin", "zero", to="sum_", body=body), into_output="sum_")


def large(shape: tuple[int, ...]) -> Change:
    """Add the mean of a tensor whose shape is known only when the tower runs."""
    made = [
        constant("sizes", *shape),
        constant("axis", 0),
        node("ReduceMax", "lengths", "axis", to="longest", keepdims=1),
        node("Min", "longest", "one", to="unit"),
        node("Mul", "sizes", "unit", to="wanted"),
        node("ConstantOfShape", "wanted", to="much"),
        node("ReduceMean", "much", to="mean", keepdims=0),
    ]
    return nodes(constant("one", 1), *made, into_output="mean")


def json_file(name: str, **changes: Any) -> Change:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        for path, value in changes.items():
            *keys, last = path.split("__")
            place = content
            for key in keys:
                place = place[int(key) if isinstance(place, list) else key]
            if value is ...:
                del place[last]
            else:
                place[last] = value
        (folder / name).write_text(json.dumps(content))

    return change


def index(kind: Any, damage: Callable[[bytearray], object] = lambda _: None, **effort: int) -> Change:
    def change(folder: Path) -> None:
        made = kind()
        made.build(np.load(folder / "item_embeddings.npy"))
        save_index(made, folder)
        content = bytearray((folder / "item_index.faiss").read_bytes())
        damage(content)
        (folder / "item_index.faiss").write_bytes(content)
        size = {"bytes": len(content), "sha256": "0" * 64}
        changes = {"files": {"item_index.faiss": size}, "effort": {**made.effort._asdict(), **effort}}
        json_file("item_index.json", **changes)(folder)

    return change
