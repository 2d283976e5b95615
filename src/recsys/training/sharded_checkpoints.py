"""Checkpoints of sharded tables: each process writes the rows that it owns, with torch's distributed checkpoints.

    checkpoints/best.ckpt, last.ckpt        everything but sharded tables, and the name of the folder with these
                tables/<step>-<random>/     rows and optimizer state of all tables, one file of each process, in blocks
                                            of `BLOCK_BYTES`, because a reader holds a whole block

A folder is complete before a `.ckpt` names it, and is removed when none does, so a killed run has whole checkpoints.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharded_tensor.shard import Shard
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from recsys.core import distributed
from recsys.core.errors import UserError
from recsys.core.mapped import mapped_rows
from recsys.models.sharded_table import sharded_tables

KEY = "sharded_tables"
FOLDER = "tables"
BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class StoredTables:
    """Sharded tables of a checkpoint.

    Attributes:
        folder: folder of the distributed checkpoint.
        shapes: rows and width of each table, by its name in the model.
    """

    folder: Path
    shapes: Mapping[str, tuple[int, int]]

    def map(self, name: str) -> Tensor:
        """Return a table [N, D] that the operating system reads from a file as needed.

        The file is temporary and lies beside the checkpoint, or in the folder for temporary files. The blocks of the
        checkpoint are copied one after another.
        """
        rows = mapped_rows(*self.shapes[name], folder=self.folder.parent)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load({f"{name}.weight": rows}, checkpoint_id=self.folder, no_dist=True)
        return rows

    def load_into(self, model: nn.Module, *, with_state: bool = False) -> None:
        """Read the tables of a model: each process its rows, or for a table in one process a mapped file.

        All processes must call it together.
        """
        for name in self.shapes:
            table = model.get_submodule(name)
            if name in sharded_tables(model):
                table.load(self.folder, name, with_state=with_state)  # type: ignore[operator]
            else:
                table.weight = nn.Parameter(self.map(name), requires_grad=False)


def save_tables(model: nn.Module, checkpoints: Path, *, step: int) -> dict[str, Any]:
    """Write the sharded tables of a model, and return what a checkpoint says of them. All processes must call it.

    Args:
        model: model whose tables are built.
        checkpoints: folder of the checkpoints of a run.
        step: training step.
    """
    tables = sharded_tables(model)
    device = next(iter(tables.values())).weight.device
    token = distributed.total(torch.tensor(secrets.randbits(48) if distributed.is_first() else 0, device=device))
    folder = checkpoints / FOLDER / f"{step}-{int(token):012x}"
    shards = {f"{name}.{part}": rows for name, table in tables.items() for part, rows in table.shards().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save({name: _in_blocks(rows) for name, rows in shards.items()}, checkpoint_id=folder)
    shapes = {name: [table.num_embeddings, table.embedding_dim] for name, table in tables.items()}
    return {"folder": folder.name, "shapes": shapes}


def _in_blocks(rows: ShardedTensor) -> ShardedTensor:
    def split(shard: ShardMetadata) -> Iterator[ShardMetadata]:
        (first, *others), (length, *widths) = shard.shard_offsets, shard.shard_sizes
        height = max(BLOCK_BYTES // (rows.dtype.itemsize * math.prod(widths)), 1)
        for low in range(0, length, height):
            size = min(height, length - low)
            yield ShardMetadata([first + low, *others], [size, *widths], shard.placement)

    own = []
    for shard in rows.local_shards():
        parts = list(split(shard.metadata))
        blocks = shard.tensor.split([part.shard_sizes[0] for part in parts])
        own += [Shard(block, part) for block, part in zip(blocks, parts, strict=True)]
    metadata = rows.metadata()
    parts = [part for shard in metadata.shards_metadata for part in split(shard)]
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        own, dataclasses.replace(metadata, shards_metadata=parts), process_group=rows._process_group
    )


def stored_tables(checkpoint: Mapping[str, Any], path: Path) -> StoredTables | None:
    """Return the sharded tables of a checkpoint; None if it has none.

    Args:
        checkpoint: content of the file.
        path: path of the file.

    Raises:
        UserError: If their folder is missing.
    """
    if (found := checkpoint.get(KEY)) is None:
        return None
    # The checkpoints of a refit lie one folder deeper.
    places = [parent / FOLDER / found["folder"] for parent in (path.parent, path.parent.parent)]
    for folder in places:
        if (folder / ".metadata").exists():
            return StoredTables(folder, {name: (rows, width) for name, (rows, width) in found["shapes"].items()})
    raise UserError(f"{path}: its sharded tables are missing, expected {places[0]}")


def remove_unused(checkpoints: Path) -> None:
    """Remove folders of tables that no checkpoint names."""
    folders = list((checkpoints / FOLDER).glob("*-*"))
    if not folders:
        return
    used = set()
    for file in checkpoints.rglob("*.ckpt"):
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        used.add(content.get(KEY, {}).get("folder"))
    for folder in folders:
        if folder.name not in used:
            shutil.rmtree(folder, ignore_errors=True)
