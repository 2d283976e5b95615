"""Releases that a stranger spoiled, with digests that fit: every reader refuses each by name, in bounds."""

from __future__ import annotations

import os
import re
import socket
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from forging import (
    TINY,
    constant,
    copy_release,
    edit_tower,
    endless,
    index,
    json_file,
    large,
    node,
    nodes,
    pair_again,
    seal,
)
from onnx import TensorProto

import recsys
from recsys.core.errors import UserError
from recsys.index import HNSW, FaissFlat, IVFFlat
from recsys.operations.gates.staging import open_release
from recsys.publishing.recommenders import open_recommender
from recsys.publishing.towers import Towers
from recsys.release.manifest import Manifest
from recsys.release.store import ReleaseStore
from recsys.serving.events.backfill import fill
from recsys.serving.gateway.tower_cache import TowerCache
from recsys.serving.host.host import Host
from recsys.serving.host.releases import ReleaseCache

MEGABYTE = 1 << 20
Change = Callable[[Path], object]


def manifest(**changes: Any) -> Change:
    return json_file("manifest.json", **changes)


def text(name: str, content: str | bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def table(name: str, change: Callable[[pa.Table], pa.Table], **options: Any) -> Change:
    return lambda folder: pq.write_table(change(pq.read_table(folder / name)), folder / name, **options)


def column(name: str, values: Callable[[pa.ChunkedArray], Any]) -> Callable[[pa.Table], pa.Table]:
    def change(found: pa.Table) -> pa.Table:
        made = values(found[name])
        made = made if isinstance(made, pa.ChunkedArray) else pa.array(made)
        return found.set_column(found.column_names.index(name), name, made)

    return change


def three_times(values: pa.ChunkedArray) -> list[Any]:
    return [values[0].as_py()] * 3 + values.to_pylist()[3:]


def same(values: pa.ChunkedArray) -> list[Any]:
    return [values[0].as_py()] * len(values)


def first_is(value: Any) -> Callable[[pa.ChunkedArray], list[Any]]:
    return lambda values: [value, *values.to_pylist()[1:]]


def header(name: str, shape: tuple[int, ...], dtype: str = "<f4") -> Change:
    def change(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": dtype})
            file.write(b"\0" * 1024)

    return change


def embeddings(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda folder: np.save(folder / "item_embeddings.npy", change(np.load(folder / "item_embeddings.npy")))


def self_check(**arrays: Any) -> Change:
    def change(folder: Path) -> None:
        stored = dict(np.load(folder / "self_check.npz"))
        stored |= {name: value(stored) for name, value in arrays.items()}
        np.savez(folder / "self_check.npz", **{n.replace("input_", "input:"): v for n, v in stored.items()})

    return change


def outside(folder: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../secret")

    edit_tower(folder, change)


def stretched(folder: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].dims[:] = [1 << 20, 1 << 20]

    edit_tower(folder, change)


def put(content: bytes, at: int) -> Callable[[bytearray], object]:
    def change(found: bytearray) -> None:
        found[at : at + len(content)] = content

    return change


def halve(found: bytearray) -> None:
    del found[len(found) // 2 :]


def replaced(name: str, make: Callable[[Path], object]) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


def a_socket(path: Path) -> None:
    found = os.getcwd()
    os.chdir(path.parent)
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(found)


def zipped(folder: Path) -> None:
    with zipfile.ZipFile(folder / "self_check.npz", "a") as archive:
        # Claims to become a terabyte.
        archive.infolist()[0].file_size = 1 << 31
        archive.writestr("note", "")


def zeros(rows: int) -> pa.Array:
    offsets = np.arange(rows + 1, dtype=np.int32) * 150_000
    return pa.ListArray.from_arrays(offsets, np.zeros(offsets[-1], np.int64))


def long_texts(rows: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), ["x" * (8 * MEGABYTE)])


LINKS = "link|plain file|special|folder"
NEW_IDS = pa.array(np.arange(10**6, 10**6 + 99))
# Changes that nothing hides.
OPEN: dict[str, tuple[Change, str]] = {
    "a link out of the folder": (replaced("config.yaml", lambda path: path.symlink_to("/etc/hostname")), LINKS),
    "a link as manifest": (replaced("manifest.json", lambda path: path.symlink_to("/dev/zero")), LINKS),
    "a pipe as manifest": (replaced("manifest.json", os.mkfifo), LINKS),
    "a pipe": (replaced("items.parquet", os.mkfifo), LINKS),
    "a socket": (replaced("schema.json", a_socket), LINKS),
    "a folder as file": (replaced("user_tower.onnx", Path.mkdir), LINKS),
    "a folder as manifest": (replaced("manifest.json", Path.mkdir), LINKS),
    "deep folders": (lambda folder: os.makedirs(folder / ("a/" * 300)), "does not list"),
    "a name that is no UTF-8": (lambda folder: Path(os.fsdecode(os.fsencode(folder) + b"/\xff")).touch(), "not list"),
    "an empty manifest": (text("manifest.json", ""), "no valid JSON"),
    "a truncated manifest": (text("manifest.json", '{"format": 1, "files": {'), "no valid JSON"),
    "a deep manifest": (text("manifest.json", "[" * 100_000), "nested too deeply"),
    "a large manifest": (text("manifest.json", b"[" + b"[]," * (3 * MEGABYTE) + b"[]]"), "found more than"),
    "a huge number": (text("manifest.json", '{"format": ' + "9" * 10_000 + "}"), "no valid JSON"),
    "a key twice": (text("manifest.json", '{"format": 1, "format": 1}'), "'format' twice"),
    "a list as manifest": (text("manifest.json", "[1]"), "format None"),
    "a path with ..": (manifest(files={"../x": {"sha256": "0" * 64, "bytes": 1}}), "not a valid file name"),
    "an absolute path": (manifest(files={"/etc/passwd": {"sha256": "0" * 64, "bytes": 1}}), "not a valid file name"),
    "half a character": (manifest(files={"\ud800": {"sha256": "0" * 64, "bytes": 1}}), "files: found"),
    "a zero byte in a name": (manifest(files={"a\0b": {"sha256": "0" * 64, "bytes": 1}}), "files: found"),
    "a size below zero": (manifest(files__config_yaml={}, **{"files__config.yaml__bytes": -1}), "not the manifest"),
}  # fmt: skip
FIELDS: dict[str, tuple[Any, ...]] = {
    "version": (..., 3, None), "model": (..., [], "\n" * 3), "created": (7,), "run": (None,), "git_commit": (1.5,),
    "dataset_fingerprint": ({},), "similarity": ("l2", None), "temperature": (0, float("nan"), "1", 10**400, None),
    "dim": (0, -8, 8.0, True, 2**63, None), "num_items": (-1, "42", 10**30), "num_embeddings": (0, 10**6, 1.0),
    "max_history": (0, None, [50]), "pair": (1,), "inputs": (None, [1], {}), "inputs__0__shape": ([-1], [None], 5),
    "inputs__0__type": (3,), "output__shape": (["B", -8],), "metrics": (None, []), "metrics__x": ("high", None),
    "index": ([],), "files": (None, [], ...), "data": ({"begin": "now"}, [1]), "corpus": ([], {"num_items": 1}),
    "num_trained": (-1, "1"), "temperatures": ([0.0], 1), "index_time": ({"now": None}, {"now": float("inf")}),
    "new_item_biases": (["x"], 3), "refreshed": ({"known": 1}, [1]), "unknown": (1,), "format": ("1", 2, None),
}  # fmt: skip
# Changes with digests that fit.
SEALED: dict[str, tuple[Change, str]] = {
    "no items": (text("items.parquet", ""), "items.parquet"),
    "a truncated table": (
        lambda folder: os.truncate(folder / "items.parquet", (folder / "items.parquet").stat().st_size // 2),
        "items.parquet",
    ),
    "a compressed table": (
        table("items.parquet", lambda found: found.append_column("zeros", zeros(len(found))), compression="zstd"),
        "items.parquet: its",
    ),
    "long texts of a dictionary": (
        table("items.parquet", lambda found: found.append_column("text", long_texts(len(found)))),
        "items.parquet: its texts",
    ),
    "an item three times": (table("items.parquet", column("item_idx", three_times)), "an item more than once"),
    "an unknown item": (
        table("items.parquet", column("item_idx", first_is(10**6))),
        "outside 1 to",
    ),
    "items below zero": (
        table("items.parquet", column("item_idx", first_is(-1))),
        "outside 1 to",
    ),
    "texts as item_idx": (
        table("items.parquet", column("item_idx", lambda v: v.cast(pa.string()))),
        "items|damaged",
    ),
    "no item_idx": (table("items.parquet", lambda found: found.drop_columns("item_idx")), "item_idx"),
    "a null as id": (table("items.parquet", column("item_id", first_is(None))), "item_id"),
    "ids of other items": (table("items.parquet", column("item_id", lambda v: v.to_pylist()[::-1])), "item_id"),
    "one row less": (table("items.parquet", lambda found: found.slice(1)), "expected 42"),
    "a column twice": (
        table(
            "items.parquet", lambda found: pa.table([*found.columns, found[0]], names=[*found.column_names, "item_id"])
        ),
        "twice",
    ),
    "ids known twice": (table("vocabularies/items.parquet", column("item_id", three_times)), "more than once"),
    "fewer known ids": (table("vocabularies/items.parquet", lambda found: found.slice(0, 3)), "item_idx"),
    "ids of another type": (
        table("vocabularies/items.parquet", column("item_id", lambda v: [[x] for x in v.to_pylist()])),
        "item_id",
    ),
    "more codes than the tower has": (
        table(
            "vocabularies/users.country.parquet",
            lambda found: pa.concat_tables([found, pa.table({"value": [f"new {n}" for n in range(50)]})]),
        ),
        "country",
    ),
    "more items than the tower has": (
        table("vocabularies/items.parquet", lambda found: pa.concat_tables([found, pa.table({"item_id": NEW_IDS})])),
        "user_tower.onnx",
    ),
    "a code twice": (
        table("vocabularies/interactions.action.parquet", column("value", same)),
        "action",
    ),
    "a vocabulary without values": (
        table("vocabularies/users.country.parquet", lambda found: found.rename_columns(["other"])),
        "country",
    ),
    "a schema of lists": (text("schema.json", "[]"), "schema.json"),
    "a deep schema": (text("schema.json", '{"features":' * 50_000), "nested too deeply"),
    "a feature of a strange kind": (json_file("schema.json", features__0__kind="pickle"), "schema.json"),
    "a huge feature": (json_file("schema.json", features__0__size=2**40), "schema.json"),
    "a feature that is missing": (json_file("schema.json", features=[]), "schema|event.action|damaged"),
    "rows of nan": (embeddings(lambda found: found * np.nan), "nan or inf"),
    "doubles": (embeddings(lambda found: found.astype(np.float64)), "expected float32"),
    "another shape": (embeddings(lambda found: found.reshape(-1)), "expected float32"),
    "a pickle": (embeddings(lambda _: np.array([{"a": 1}], object)), "item_embeddings.npy"),
    "a header of a terabyte": (header("item_embeddings.npy", (1 << 37, 8)), "asks for"),
    "sizes below zero": (header("item_embeddings.npy", (-1, 8)), "item_embeddings.npy"),
    "a shape that overflows": (header("item_embeddings.npy", (1 << 47, 1 << 47)), "asks for"),
    "an archive that grows": (zipped, "self_check.npz"),
    "a self-check of nothing": (self_check(embeddings=lambda s: s["embeddings"][:0]), "self_check.npz"),
    "a self-check of other users": (self_check(embeddings=lambda s: -s["embeddings"]), "does not return"),
    "a self-check of nan": (self_check(embeddings=lambda s: s["embeddings"] * np.nan), "not all finite"),
    "a self-check of other items": (self_check(best_scores=lambda s: s["best_scores"] + 1), "another tower"),
    "a self-check of impossible codes": (
        self_check(input_item_idx=lambda s: s["input:item_idx"] + 10**9),
        "self_check",
    ),
    "a self-check of texts": (self_check(best_scores=lambda s: s["best_scores"].astype("U8")), "self_check"),
    "no tower": (text("user_tower.onnx", ""), "user_tower.onnx"),
    "a tower of noise": (text("user_tower.onnx", bytes(range(256)) * 64), "user_tower.onnx"),
    "a file outside": (outside, "reads '../../secret'"),
    "an operator of its own": (nodes(node("Run", "lengths", domain="evil")), "evil.Run"),
    "a weight without values": (stretched, "user_tower.onnx"),
    "a tensor of a terabyte": (
        nodes(constant("s", 1 << 19, 1 << 19), node("ConstantOfShape", "s")),
        "out of proportion",
    ),
    "a tensor that grows when it runs": (large((1 << 17, 1 << 17)), "damaged|memory"),
    "a loop without end": (endless(), "operator 'Loop' may repeat"),
    "weights that are missing": (
        lambda folder: edit_tower(folder, lambda model: model.graph.initializer.pop()),
        "user_tower.onnx|damaged",
    ),
    "an index of another class": (json_file("item_index.json", **{"class": "os.system"}), "os.system"),
    "an index with a file outside": (
        json_file("item_index.json", files={"../../x": {"bytes": 1, "sha256": ""}}),
        "outside its folder",
    ),
    "another structure": (index(FaissFlat, put(b"IwFl", 0)), "item_index.faiss"),
    "a structure of another class": (
        lambda folder: (index(FaissFlat)(folder), json_file("item_index.json", **{"class": "HNSW"})(folder)),
        "HNSW",
    ),
    "a huge structure": (index(FaissFlat, put((1 << 40).to_bytes(8, "little"), 8)), "item_index.faiss"),
    "a structure of another dimension": (index(FaissFlat, put((9).to_bytes(4, "little"), 4)), "item_index.faiss"),
    "half a structure": (
        index(IVFFlat, halve),
        "item_index.faiss",
    ),
    "lists with another item": (index(IVFFlat, lambda found: found.__setitem__(slice(-8, None), b"\xff" * 8)), "list"),
    "no structure": (index(HNSW, bytearray.clear), "item_index.faiss"),
    "absurd breadth": (index(HNSW, breadth=1 << 40), "effort.breadth"),
    "breadth below zero": (index(IVFFlat, breadth=-1), "effort.breadth"),
    "absurd refinement": (index(IVFFlat, refine=1 << 40), "effort.refine"),
}


OS_SYSTEM = {"_target_": "os.system", "_args_": ["exit"]}
FOLDER = "recsys.data.sources.ParquetFolder"


def config(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        content = yaml.safe_load((folder / "config.yaml").read_text())
        for path, value in changes.items():
            *keys, last = path.split("__")
            place = content
            for key in keys:
                place = place[key]
            place[last] = value
        (folder / "config.yaml").write_text(yaml.safe_dump(content))

    return change


def tensors(content: bytes) -> Change:
    return text("user_tower.safetensors", len(content).to_bytes(8, "little") + content)


# What servers do not read: a stored configuration and weights, and what the refusal names.
UNSERVED: dict[str, tuple[Change, str]] = {
    "weights with a huge header": (
        text("user_tower.safetensors", (1 << 60).to_bytes(8, "little")),
        "user_tower.safetensors: damaged",
    ),
    "weights of lists": (tensors(b"[1]"), "user_tower.safetensors: damaged"),
    "weights out of bounds": (
        tensors(b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,64]}}'),
        "user_tower.safetensors: damaged",
    ),
    "no part of a configuration": (text("config.yaml", "a: 1"), "config.yaml: data: found None"),
    "data of texts": (config(data="x"), "config.yaml: data: found 'x'"),
    "data of nothing": (config(data=None), "config.yaml: data: found None"),
    "data of lists": (config(data=[1]), r"config.yaml: data: found \[1\]"),
    "a source of texts": (config(data__source="x"), "config.yaml: data.source: found 'x'"),
    "no time": (config(data={"source": {}, "columns": {}, "features": {}}), "config.yaml: damaged .* data.time"),
    "another class as source": (config(data__source=OS_SYSTEM), "^data.source._target_: found os.system"),
    "another class in a source": (
        config(data__source__more=[{"a": OS_SYSTEM}]),
        r"^data.source.more\[0\].a._target_: found os.system",
    ),
    "a list as root": (config(data__source={"_target_": FOLDER, "root": [1]}), "config.yaml: damaged"),
    "half a source": (
        config(data__source={"_target_": FOLDER, "root": "x", "_partial_": True}),
        "config.yaml: damaged",
    ),
    "files by reference": (
        config(data__source={"_target_": FOLDER, "root": "reference://::file:///nothing"}),
        "config.yaml: damaged",
    ),
    "a tag": (
        text("config.yaml", "data: !!python/object/apply:os.system [exit]"),
        "config.yaml: not a configuration .*os.system",
    ),
}


@pytest.mark.parametrize("name", UNSERVED)
def test_what_servers_do_not_read_is_refused_by_others(release: Path, name: str) -> None:
    change, named = UNSERVED[name]
    change(release)
    pair_again(release)
    folder = seal(release)
    store, version = str(folder.parent), folder.name
    reads: dict[str, Callable[[], object]] = {
        "weights": lambda: Towers.of_release(*ReleaseStore(store).open(version)),
        "recommender": lambda: open_recommender(None, version, store=store, root=None),
        "backfill": lambda: fill(
            store, version, events=f"{store}/events.sqlite", max_events=9, root="own", suppressed=f"{store}/suppressed"
        ),
    }
    for what in ("weights",) if name.startswith("weights") else ("recommender", "backfill"):
        with pytest.raises(UserError, match=named) as caught:
            reads[what]()
        assert len(str(caught.value)) < 500


def test_a_tower_that_takes_too_long_is_given_up(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.release.tower_graph.REPEATING", ())
    endless()(release)
    pair_again(release)
    assert_refused(seal(release), "user_tower.onnx|self_check.npz")


@pytest.mark.parametrize("name", ["user_tower.onnx", "items.parquet", "item_embeddings.npy", "config.yaml"])
def test_a_file_of_holes_is_not_read(release: Path, name: str) -> None:
    os.truncate(release / name, 1 << 40)
    entry = {"sha256": "0" * 64, "bytes": 1 << 40}
    json_file("manifest.json", **{"files": Manifest.load(release).to_json()["files"] | {name: entry}})(release)
    assert_refused(release, f"{name}: .*holes")


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return copy_release(TINY, tmp_path / "store")


@pytest.fixture(autouse=True)
def _bounded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuse a test that needs a gigabyte."""
    monkeypatch.setattr("recsys.release.runtime.query_encoder.CHECK_SECONDS", 0.2)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmHWM")
    yield
    assert memory("VmHWM") - before < 1024 * MEGABYTE


def memory(name: str) -> int:
    return next(int(line.split()[1]) << 10 for line in Path("/proc/self/status").open() if line.startswith(name))


def readers(folder: Path) -> list[Callable[[], object]]:
    """Return a call of everything that opens a release."""
    store, version = folder.parent, folder.name
    return [
        lambda: recsys.load_release(version, store=store),
        lambda: Host(ReleaseCache(store), "host").load(version),
        lambda: TowerCache(ReleaseCache(store)).open(version),
    ]


def assert_refused(folder: Path, message: str) -> None:
    """Check that the release is refused, and that of its halves at least one is."""
    caught = []
    for call in readers(folder):
        try:
            call()
        except UserError as error:
            caught.append(str(error))
    assert len(caught) >= 2
    assert re.search(message, caught[0])
    assert len(max(caught, key=len)) < 1000


def test_the_release_that_is_spoiled_is_sound(release: Path) -> None:
    for call in readers(release):
        call()
    pair_again(release)
    folder = seal(release)
    opened = ReleaseStore(folder.parent).open(folder.name)
    Towers.of_release(*opened)


@pytest.mark.parametrize("name", OPEN)
def test_what_is_no_release_is_refused(release: Path, name: str) -> None:
    change, message = OPEN[name]
    change(release)
    assert_refused(release, message)
    version, store = release.name, str(release.parent)
    for call in (lambda: open_recommender(None, version, store=store, root=None), lambda: open_release(store, version)):
        with pytest.raises(UserError, match=message):
            call()


@pytest.mark.parametrize("field", FIELDS)
def test_a_manifest_with_a_wrong_field_is_refused(release: Path, field: str) -> None:
    sound = (release / "manifest.json").read_text()
    for value in FIELDS[field]:
        manifest(**{field: value})(release)
        with pytest.raises(UserError, match="manifest.json|user_tower.onnx"):
            ReleaseStore(release.parent).open(release.name)
        (release / "manifest.json").write_text(sound)


@pytest.mark.parametrize("name", SEALED)
def test_a_spoiled_release_with_fitting_digests_is_refused(release: Path, name: str) -> None:
    change, message = SEALED[name]
    change(release)
    pair_again(release)
    assert_refused(seal(release), message)
