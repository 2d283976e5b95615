"""Parts of a release on disk: what a host of `shard=I/N` reads instead of the whole. Imports no torch.

    item_index.parts/I-of-N/    item_embeddings.npy, items.parquet, vocabularies/items.parquet, item_index.*,
                                self_check.npz: of the rows with row % N == I, which are numbered anew

The files of a part have the names of a release, so it is opened like one. They are files of the index: the manifest
and `item_index.pair.json` list them. The whole release has everything in its usual place too.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from recsys.release.manifest import Manifest
from recsys.release.runtime.shard import CorpusShard

PARTS = "item_index.parts/"


def name_of(shard: CorpusShard) -> str:
    """Return the folder of a part below that of its release, with a slash at the end."""
    return f"{PARTS}{shard.number}-of-{shard.count}/"


def is_part(folder: Path) -> bool:
    """Return whether a folder is that of a part."""
    return folder.parent.name + "/" == PARTS


def release_of(folder: Path) -> Path:
    """Return the folder of the release of a part."""
    return folder.parent.parent


def count_of(manifest: Manifest) -> int:
    """Return the number of parts of a release; 1 for none."""
    return len({name.split("/")[1] for name in manifest.files if name.startswith(PARTS)}) or 1


def part_of(folder: Path, manifest: Manifest, shard: CorpusShard | None) -> tuple[Path, Manifest] | None:
    """Return folder and manifest of a part; None if the release has none for this shard."""
    if shard is None:
        return None
    name = name_of(shard)
    files = {file.removeprefix(name): entry for file, entry in manifest.files.items() if file.startswith(name)}
    num_items = len(range(shard.number, manifest.num_items, shard.count))
    return (folder / name, dataclasses.replace(manifest, num_items=num_items, files=files)) if files else None
