"""Verification of a release against its manifest before use. Imports no torch."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pyarrow.parquet as pq

from recsys.core.columns import load_array
from recsys.core.errors import UserError
from recsys.release.bounds import check_archive, check_array, check_table, check_tower, damaged, read_json
from recsys.release.manifest import (
    EMBEDDINGS,
    INDEX_PAIR,
    ITEMS,
    MANIFEST,
    MAX_HISTORY_KEY,
    PAIR_KEY,
    REQUIRED,
    SELF_CHECK,
    SIMILARITY_KEY,
    USER_TOWER,
    USER_TOWER_DATA,
    FileEntry,
    Manifest,
    describe_file,
    embedding_shape,
    pair_of,
    version_of,
)

# Limit of a protobuf message; larger weights lie in a file of their own.
MAX_GRAPH = 1 << 31
_TYPES = {onnx.TensorProto.INT64: "int64", onnx.TensorProto.FLOAT: "float32"}


def verify_release(folder: Path) -> Manifest:
    """Check every file of the release in `folder` and that its halves belong together. Return the manifest.

    Raises:
        UserError: If a file is missing, unlisted, changed or not a plain file, if the version does not match the
            content, or if user tower, embeddings and index do not belong together.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise UserError(f"{folder}: not the folder of a release")
    manifest = Manifest.load(folder)
    _check_names(folder, manifest)
    _check_files(folder, manifest)
    version = version_of(manifest.files)
    if version != manifest.version:
        raise UserError(f"{folder / MANIFEST}: has version {manifest.version}, but the files have {version}")
    if folder.name != version:
        raise UserError(f"{folder}: holds release {version}; the folder must be named by the version")
    _check_pair(folder, manifest)
    _check_items(folder, manifest)
    return manifest


def read_verified_array(folder: Path, name: str, manifest: Manifest) -> npt.NDArray[Any]:
    """Return an array of a release in memory of its own; refuse content other than that of the manifest."""
    path = folder / name
    check_array(path)
    content = path.read_bytes()
    if len(content) != manifest.files[name].bytes or hashlib.sha256(content).hexdigest() != manifest.files[name].sha256:
        raise UserError(f"{path}: changed since it was verified")
    array: npt.NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    return array


def _is_same(path: Path, entry: FileEntry) -> bool:
    return describe_file(path) == entry


def _check_names(folder: Path, manifest: Manifest) -> None:
    for name in manifest.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or path.as_posix() != name or name == MANIFEST:
            raise UserError(f"{folder / MANIFEST}: lists '{name}', which is not a valid file name of a release")
    for name in REQUIRED:
        if name not in manifest.files:
            raise UserError(f"{folder / MANIFEST}: does not list {name}, which every release needs")
    found = set()
    for file in _walk(folder):
        name = file.relative_to(folder).as_posix()
        if file.is_symlink() or not (file.is_file() or file.is_dir()):
            raise UserError(f"{file}: a link or special file; a release may contain only plain files")
        if file.is_file():
            found.add(name)
    if missing := sorted(manifest.files.keys() - found):
        raise UserError(f"{folder / missing[0]}: missing; {MANIFEST} lists it")
    if unlisted := sorted(found - manifest.files.keys() - {MANIFEST}):
        raise UserError(f"{folder / unlisted[0]}: {MANIFEST} does not list it")


def _walk(folder: Path) -> Iterator[Path]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        yield Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))


def _check_files(folder: Path, manifest: Manifest) -> None:
    """Check the files in threads, because hashing releases the GIL; the largest first."""
    files = sorted(manifest.files.items(), key=lambda item: -item[1].bytes)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for checked in [pool.submit(_check_file, folder / name, entry) for name, entry in files]:
            checked.result()


def _check_file(path: Path, entry: FileEntry) -> None:
    size = path.stat().st_size
    if size != entry.bytes:
        raise UserError(f"{path}: damaged, found {size} bytes, {MANIFEST} says {entry.bytes}")
    if (found := describe_file(path).sha256) != entry.sha256:
        raise UserError(f"{path}: changed, its sha256 is {found[:12]}..., {MANIFEST} says {entry.sha256[:12]}...")


def _check_pair(folder: Path, manifest: Manifest) -> None:
    """Check that tower, index and the parts that they were made from have the same pair name."""
    expected = pair_of(manifest.files)
    if manifest.pair != expected:
        raise UserError(f"{folder / MANIFEST}: has pair {manifest.pair}, but the files have {expected}: mixed releases")
    model = read_tower(folder)
    check_tower(model, folder / USER_TOWER, sum(e.bytes for n, e in manifest.files.items() if n.startswith(USER_TOWER)))
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    _check_same(folder / USER_TOWER, "pair", found=metadata.get(PAIR_KEY), expected=expected)
    with damaged(folder / INDEX_PAIR):
        content = read_json(folder / INDEX_PAIR)
        pair, files = content["pair"], dict(content["files"])
    _check_same(folder / INDEX_PAIR, "pair", found=pair, expected=expected)
    index = {n: e.sha256 for n, e in manifest.files.items() if n.startswith("item_index.") and n != INDEX_PAIR}
    if files != index:
        name = sorted(set(files.items()) ^ set(index.items()))[0][0]
        raise UserError(f"{folder / name}: not the file of the index that {INDEX_PAIR} names: mixed releases")
    for what, key, value in (
        ("similarity", SIMILARITY_KEY, manifest.similarity),
        ("max_history", MAX_HISTORY_KEY, str(manifest.max_history)),
    ):
        _check_same(folder / USER_TOWER, what, found=metadata.get(key), expected=value)
    for listed, found in ((manifest.inputs, model.graph.input), ((manifest.output,), model.graph.output)):
        _check_same(
            folder / USER_TOWER,
            "inputs and outputs",
            found=[(_TYPES.get(value.type.tensor_type.elem_type), value.name, _shape(value)) for value in found],
            expected=[(spec.type, spec.name, spec.shape) for spec in listed],
        )


def _shape(value: onnx.ValueInfoProto) -> tuple[str | int, ...]:
    return tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim)


def _check_same(path: Path, what: str, *, found: object, expected: object) -> None:
    if found != expected:
        hint = ": mixed releases" if what == "pair" else ""
        raise UserError(f"{path}: its {what} is {found}, expected {expected}{hint}")


def _check_items(folder: Path, manifest: Manifest) -> None:
    check_array(folder / EMBEDDINGS)
    check_archive(folder / SELF_CHECK)
    for name in manifest.files:
        if name.endswith(".parquet") and name != ITEMS:
            check_table(folder / name)
    with damaged(folder):
        embeddings = load_array(folder / EMBEDDINGS)
        num_items = pq.read_metadata(folder / ITEMS).num_rows
    shape = (manifest.num_items, manifest.dim)
    if embeddings.shape != shape or embeddings.dtype != np.float32:
        found = f"{embeddings.dtype} {list(embeddings.shape)}"
        raise UserError(f"{folder / EMBEDDINGS}: found {found}, expected float32 {list(shape)}")
    if num_items != manifest.num_items:
        raise UserError(f"{folder / ITEMS}: found {num_items} rows, expected {manifest.num_items}")
    check_table(folder / ITEMS, rows=manifest.num_items)
    output = embedding_shape(manifest.num_embeddings, manifest.dim)
    if manifest.output.shape != output:
        raise UserError(f"{folder / USER_TOWER}: gives {list(manifest.output.shape)}, expected {list(output)}")


def read_tower(folder: Path) -> onnx.ModelProto:
    """Return the graph of the user tower without its external data. Refuse one that could run or read anything else."""
    path = folder / USER_TOWER
    try:
        if (size := path.stat().st_size) > MAX_GRAPH:
            raise ValueError(f"found {size} bytes, expected at most {MAX_GRAPH}")
        model = onnx.load(str(path), load_external_data=False)
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
