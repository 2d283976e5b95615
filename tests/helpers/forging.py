"""Releases that were changed with care: digests, pair, version and folder name fit the changed files again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from recsys.release.manifest import describe_files, pair_of, save_index_pair, version_of

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
