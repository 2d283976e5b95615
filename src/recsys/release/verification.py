"""Verification of a release against its manifest before use. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import onnx
import pyarrow as pa
import pyarrow.compute as pc

from recsys.core.cores import available_cores
from recsys.core.errors import UserError
from recsys.core.io import open_plain
from recsys.core.schema import FIRST_CODE
from recsys.core.strict_json import parse_json, read_bounded
from recsys.release.bounds import array_header, check_archive, check_table, damaged
from recsys.release.files import check_file, check_shape, read_file, read_schema, read_vocabulary
from recsys.release.manifest import (
    EMBEDDINGS,
    INDEX_PAIR,
    ITEMS,
    MANIFEST,
    MAX_HISTORY_KEY,
    PAIR_KEY,
    REQUIRED,
    SCHEMA,
    SELF_CHECK,
    SIMILARITY_KEY,
    USER_TOWER,
    Manifest,
    embedding_shape,
    pair_of,
    version_of,
)
from recsys.release.parts import PARTS, is_part, part_of, release_of
from recsys.release.runtime.shard import CorpusShard
from recsys.release.signing import SIGNATURE, check_signature
from recsys.release.tower_graph import check_tower, read_tower

_TYPES = {onnx.TensorProto.INT64: "int64", onnx.TensorProto.FLOAT: "float32"}


def verify_release(folder: Path, *, keys: Path | None = None) -> Manifest:
    """Check every file of the release in `folder` and that its halves belong together. Return the manifest.

    Args:
        folder: folder of the release.
        keys: public key, or folder of them, of which one must have signed the release; None for no signature.

    Raises:
        UserError: If the signature is missing or wrong, a file is missing, unlisted, changed or not a plain file, the
            version does not match the content, or user tower, embeddings and index do not belong together.
    """
    manifest = _read_manifest(folder, keys)
    check_files(folder, manifest)
    _check_version(folder, manifest)
    _check_pair(folder, manifest)
    _check_items(folder, manifest)
    _check_features(folder, manifest)
    return manifest


def verify_part(folder: Path, shard: CorpusShard, *, keys: Path | None = None) -> tuple[Path, Manifest] | None:
    """Check what a host of a shard reads of a release: of all other files only that they are there.

    Args:
        folder: folder of the release.
        shard: shard of the host.
        keys: see `verify_release`.

    Returns:
        Folder and manifest of the part; None if the release has no part for this shard.

    Raises:
        UserError: As `verify_release`.
    """
    manifest = _read_manifest(folder, keys)
    if (part := part_of(folder, manifest, shard)) is None:
        return None
    check_files(*part)
    _check_version(folder, manifest)
    _check_index_pair(folder, manifest)
    _check_items(*part)
    return part


def verify_again(folder: Path, manifest: Manifest) -> None:
    """Compare all files of a verified release or part with its manifest again, with little work at once.

    Raises:
        UserError: If one has changed.
    """
    whole = release_of(folder) if is_part(folder) else folder
    listed = Manifest.load(whole)
    _check_names(whole, listed)
    files = {f"{folder.relative_to(whole) / name}": entry for name, entry in manifest.files.items()}
    if (listed != manifest) if whole == folder else not files.items() <= listed.files.items():
        raise UserError(f"{whole / MANIFEST}: changed since it was verified")
    check_files(folder, manifest, threads=1)


def _read_manifest(folder: Path, keys: Path | None) -> Manifest:
    if folder.is_symlink() or not folder.is_dir():
        raise UserError(f"{folder}: not the folder of a release")
    content = read_bounded(folder / MANIFEST)
    if keys is not None:
        check_signature(folder, content, keys=keys)
    manifest = Manifest.parse(content, folder / MANIFEST)
    _check_names(folder, manifest)
    return manifest


def _check_version(folder: Path, manifest: Manifest) -> None:
    version = version_of(manifest.files)
    if version != manifest.version:
        raise UserError(f"{folder / MANIFEST}: has version {manifest.version}, but the files have {version}")
    if folder.name != version:
        raise UserError(f"{folder}: holds release {version}; the folder must be named by the version")


def _check_names(folder: Path, manifest: Manifest) -> None:
    for name in manifest.files:
        path = PurePosixPath(name)
        is_plain = not path.is_absolute() and ".." not in path.parts and "\\" not in name and path.as_posix() == name
        if not is_plain or name in (MANIFEST, SIGNATURE):
            raise UserError(f"{folder / MANIFEST}: lists '{name}', which is not a valid file name of a release")
    for name in REQUIRED:
        if name not in manifest.files:
            raise UserError(f"{folder / MANIFEST}: does not list {name}, which every release needs")
    folders = {parent.as_posix() for name in manifest.files for parent in PurePosixPath(name).parents}
    found = set()
    with damaged(folder):
        for file in _walk(folder):
            name = file.relative_to(folder).as_posix()
            shown = os.fsencode(file).decode(errors="backslashreplace")
            if file.is_symlink() or not (file.is_file() or file.is_dir()):
                raise UserError(f"{shown}: a link or special file; a release may contain only plain files")
            if name in manifest.files and not file.is_file():
                raise UserError(f"{shown}: a folder, expected a file")
            if name not in (manifest.files.keys() | {MANIFEST, SIGNATURE} if file.is_file() else folders):
                raise UserError(f"{shown}: {MANIFEST} does not list it")
            found.add(name)
    if missing := sorted(manifest.files.keys() - found):
        raise UserError(f"{folder / missing[0]}: missing; {MANIFEST} lists it")


def _walk(folder: Path) -> Iterator[Path]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        yield Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))


def check_files(folder: Path, manifest: Manifest, *, threads: int | None = None) -> None:
    """Compare every file with the manifest, the largest first; in threads, because hashing releases the GIL.

    Raises:
        UserError: If a file differs.
    """
    names = sorted(manifest.files, key=lambda name: -manifest.files[name].bytes)
    with ThreadPoolExecutor(threads or available_cores()) as pool:
        for checked in [pool.submit(check_file, folder, name, manifest) for name in names]:
            checked.result()


def _check_pair(folder: Path, manifest: Manifest) -> None:
    """Check that tower, index and the parts that they were made from have the same pair name."""
    expected = _check_index_pair(folder, manifest)
    model = read_tower(read_file(folder, USER_TOWER, manifest), folder / USER_TOWER)
    check_tower(model, folder / USER_TOWER, sum(e.bytes for n, e in manifest.files.items() if n.startswith(USER_TOWER)))
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    _check_same(folder / USER_TOWER, "pair", found=metadata.get(PAIR_KEY), expected=expected)
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


def _check_index_pair(folder: Path, manifest: Manifest) -> str:
    """Return the pair name of the release; refuse an index of another one."""
    expected = pair_of(manifest.files)
    if manifest.pair != expected:
        raise UserError(f"{folder / MANIFEST}: has pair {manifest.pair}, but the files have {expected}: mixed releases")
    content = parse_json(read_file(folder, INDEX_PAIR, manifest), folder / INDEX_PAIR)
    with damaged(folder / INDEX_PAIR):
        pair, files = content["pair"], dict(content["files"])
    _check_same(folder / INDEX_PAIR, "pair", found=pair, expected=expected)
    index = {n: e.sha256 for n, e in manifest.files.items() if n.startswith("item_index.") and n != INDEX_PAIR}
    if files != index:
        name = sorted(set(files.items()) ^ set(index.items()))[0][0]
        raise UserError(f"{folder / name}: not the file of the index that {INDEX_PAIR} names: mixed releases")
    return expected


def _shape(value: onnx.ValueInfoProto) -> tuple[str | int, ...]:
    return tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim)


def _check_same(path: Path, what: str, *, found: object, expected: object) -> None:
    if found != expected:
        hint = ": mixed releases" if what == "pair" else ""
        raise UserError(f"{path}: its {what} is {found}, expected {expected}{hint}")


def _check_items(folder: Path, manifest: Manifest) -> None:
    with damaged(folder / EMBEDDINGS), open_plain(folder / EMBEDDINGS) as file:
        shape, _, dtype = array_header(file, manifest.files[EMBEDDINGS].bytes, folder / EMBEDDINGS)
    check_shape(shape, dtype, folder=folder, manifest=manifest)
    check_archive(read_file(folder, SELF_CHECK, manifest), folder / SELF_CHECK)
    for name in manifest.files:
        if name.endswith(".parquet") and not name.startswith(PARTS):
            content = pa.py_buffer(read_file(folder, name, manifest))
            check_table(content, folder / name, rows=manifest.num_items if name == ITEMS else None)
    output = embedding_shape(manifest.num_embeddings, manifest.dim)
    if manifest.output.shape != output:
        raise UserError(f"{folder / USER_TOWER}: gives {list(manifest.output.shape)}, expected {list(output)}")


def _check_features(folder: Path, manifest: Manifest) -> None:
    """Check that the tower reads features of the schema, and has a code for each value of their vocabularies."""
    schema = read_schema(folder, manifest)
    known = {f"{'user' if one.owner == 'users' else one.role}.{one.name}" for one in schema.features}
    known |= {f"event.{one.name}" for one in schema.owned_by("interactions")}
    for spec in manifest.inputs:
        if "." in spec.name and spec.name not in known:
            raise UserError(f"{folder / SCHEMA}: has no feature {spec.name}, which the user tower reads")
    for feature in schema.features:
        if not feature.has_vocabulary:
            continue
        values, place = (
            read_vocabulary(folder, feature.key, manifest),
            f"{folder / 'vocabularies' / feature.key}.parquet",
        )
        if values.null_count or pc.count_distinct(values).as_py() < len(values):
            raise UserError(f"{place}: found a null, or a value more than once")
        if len(values) > feature.size - FIRST_CODE:
            raise UserError(f"{place}: found {len(values)} values, expected at most {feature.size - FIRST_CODE}")
