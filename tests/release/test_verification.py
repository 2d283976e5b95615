"""Every way in which a release can be wrong is refused by name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from forging import copy_release, edit_manifest, pair_again, seal
from publishing import Published

from recsys.core.errors import UserError
from recsys.release.manifest import Manifest
from recsys.release.runtime.retriever import Retriever
from recsys.release.store import ReleaseStore
from recsys.release.verification import verify_release

FILES = [
    "config.yaml",
    "item_embeddings.npy",
    "item_index.json",
    "item_index.pair.json",
    "item_tower.safetensors",
    "items.parquet",
    "schema.json",
    "self_check.npz",
    "user_tower.onnx",
    "user_tower.safetensors",
    "vocabularies/items.parquet",
    "vocabularies/users.parquet",
    "vocabularies/items.category.parquet",
]


@pytest.fixture
def release(published: Published, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return _copy(published, 0, tmp_path / "store")


def _copy(published: Published, number: int, store: Path) -> Path:
    return copy_release(published.store / published.versions[number], store)


def test_a_sound_release_is_accepted(release: Path) -> None:
    manifest = verify_release(release)
    assert manifest.version == release.name
    assert manifest.index["recall"] == 1.0
    assert set(FILES) <= set(manifest.files)
    assert {spec.name for spec in manifest.inputs} >= {"item_idx", "lengths", "event.action", "user.age"}
    assert (manifest.similarity, manifest.dim, manifest.max_history) == ("cosine", 16, 8)
    Retriever(release, manifest)


@pytest.mark.parametrize("name", FILES)
def test_changed_files_are_refused(release: Path, name: str) -> None:
    content = bytearray((release / name).read_bytes())
    content[len(content) // 2] ^= 1
    (release / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: changed"):
        verify_release(release)


@pytest.mark.parametrize("name", FILES)
def test_truncated_files_are_refused(release: Path, name: str) -> None:
    os.truncate(release / name, (release / name).stat().st_size - 1)
    with pytest.raises(UserError, match=f"{name}: damaged"):
        verify_release(release)


@pytest.mark.parametrize("name", FILES)
def test_missing_files_are_refused(release: Path, name: str) -> None:
    (release / name).unlink()
    with pytest.raises(UserError, match=f"{name}: missing"):
        verify_release(release)


@pytest.mark.parametrize("name", ["extra.py", ".hidden", "vocabularies/extra.parquet", "more/file"])
def test_unlisted_files_are_refused(release: Path, name: str) -> None:
    (release / name).parent.mkdir(exist_ok=True)
    (release / name).write_text("")
    with pytest.raises(UserError, match=f"{name.partition('/')[0] if name == 'more/file' else name}.*does not list"):
        verify_release(release)


def test_links_are_refused(release: Path, tmp_path: Path) -> None:
    shutil.move(release / "config.yaml", tmp_path / "elsewhere")
    (release / "config.yaml").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="config.yaml: a link"):
        verify_release(release)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../config.yaml", "./config.yaml", "a\\b"])
def test_names_that_leave_the_folder_are_refused(release: Path, name: str) -> None:
    files = json.loads((release / "manifest.json").read_text())["files"]
    edit_manifest(release, files=files | {name: {"sha256": "0" * 64, "bytes": 1}})
    with pytest.raises(UserError, match="not a valid file name"):
        verify_release(release)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "no valid JSON"), ("[]", "format None"), ('{"format": 1}', "not the manifest"),
     ('{"format": 2}', "format 2, expected 1"), ('{"format": 1, "files": 3, "inputs": 1, "output": 1}', "not the man")],
)  # fmt: skip
def test_manifests_that_are_none_are_refused(release: Path, content: str, message: str) -> None:
    (release / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=message):
        verify_release(release)


def test_manifest_must_list_what_every_release_holds(release: Path) -> None:
    files = json.loads((release / "manifest.json").read_text())["files"]
    del files["user_tower.onnx"]
    edit_manifest(release, files=files)
    with pytest.raises(UserError, match="does not list user_tower.onnx"):
        verify_release(release)


def test_another_version_is_refused(release: Path) -> None:
    renamed = release.rename(release.with_name("0" * 16))
    with pytest.raises(UserError, match="must be named by the version"):
        verify_release(renamed)
    edit_manifest(renamed, version="0" * 16)
    with pytest.raises(UserError, match="has version 0000"):
        verify_release(renamed)


@pytest.mark.parametrize(
    "changes",
    [{"similarity": "dot"}, {"max_history": 9}, {"dim": 8}, {"num_embeddings": 3}, {"inputs": []}, {"pair": "0" * 32}],
)
def test_manifests_that_contradict_the_files_are_refused(release: Path, changes: dict[str, object]) -> None:
    edit_manifest(release, **changes)
    with pytest.raises(UserError):
        verify_release(release)


INDEX = ("item_index.json", "item_index.faiss", "item_index.pair.json")
MIXES = {
    "index": INDEX,
    "index without its pair": INDEX[:2],
    "index and embeddings": (*INDEX, "item_embeddings.npy"),
    "index, embeddings and item tower": (*INDEX, "item_embeddings.npy", "item_tower.safetensors"),
    "exported tower": ("user_tower.onnx",),
    "whole user tower": ("user_tower.onnx", "user_tower.safetensors"),
    "embeddings": ("item_embeddings.npy",),
    "items": ("items.parquet", "schema.json", "config.yaml"),
}


@pytest.mark.parametrize("names", MIXES.values(), ids=MIXES.keys())
def test_halves_of_two_releases_of_equal_shapes_are_refused(
    published: Published, release: Path, names: tuple[str, ...]
) -> None:
    other = published.store / published.versions[1]
    for name in names:
        if name == "items.parquet":
            # Both runs have the same items: reversed, ids would be those of other rows.
            import pyarrow.parquet as pq

            table = pq.read_table(release / name)
            pq.write_table(table.take(np.arange(len(table))[::-1].copy()), release / name)
        else:
            shutil.copyfile(other / name, release / name)
    with pytest.raises(UserError):
        verify_release(release)
    with pytest.raises(UserError, match="mixed releases"):
        verify_release(seal(release))


def test_a_forged_pair_fails_the_self_check(published: Published, release: Path) -> None:
    """Even with the names of the pair rewritten everywhere, the tower answers otherwise than it did."""
    other = published.store / published.versions[1]
    shutil.copyfile(other / "user_tower.onnx", release / "user_tower.onnx")
    model = onnx.load(str(release / "user_tower.onnx"))
    for entry in model.metadata_props:
        if entry.key == "recsys.pair":
            entry.value = Manifest.load(release).pair
    onnx.save(model, str(release / "user_tower.onnx"))
    renamed = seal(release)
    manifest = verify_release(renamed)
    with pytest.raises(UserError, match="does not return the embeddings"):
        Retriever(renamed, manifest)


def test_a_forged_index_fails_the_self_check(published: Published, release: Path) -> None:
    other = published.store / published.versions[1]
    for name in ("item_index.json", "item_index.faiss", "item_embeddings.npy"):
        shutil.copyfile(other / name, release / name)
    pair_again(release)
    renamed = seal(release)
    manifest = verify_release(renamed)
    with pytest.raises(UserError, match="belongs to another tower"):
        Retriever(renamed, manifest)


def test_towers_with_code_or_files_of_their_own_are_refused(release: Path) -> None:
    path = str(release / "user_tower.onnx")
    sound = onnx.load(path)
    custom = onnx.ModelProto.FromString(sound.SerializeToString())
    custom.graph.node.append(onnx.helper.make_node("Run", ["lengths"], ["x"], domain="evil"))
    functions = onnx.ModelProto.FromString(sound.SerializeToString())
    functions.functions.add(name="f", domain="local")
    outside = onnx.ModelProto.FromString(sound.SerializeToString())
    tensor = outside.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    for model, message in ((custom, "evil.Run"), (functions, "functions"), (outside, "secret")):
        (release / "user_tower.onnx").write_bytes(model.SerializeToString())
        renamed = seal(release)
        with pytest.raises(UserError, match=message):
            verify_release(renamed)
        renamed.rename(release)


def test_a_pickle_in_a_release_is_not_loaded(release: Path) -> None:
    np.save(release / "item_embeddings.npy", np.array([{"code": 1}], object), allow_pickle=True)
    with pytest.raises(UserError):
        verify_release(seal(release))


def test_opening_by_name_verifies(published: Published, tmp_path: Path) -> None:
    release = _copy(published, 0, tmp_path)
    assert ReleaseStore(tmp_path).open(release.name)[1].version == release.name
    (release / "extra").write_text("")
    with pytest.raises(UserError, match="extra"):
        ReleaseStore(tmp_path).open(release.name)
