"""An index that is trained once, filled in parts by several processes or in turn, and merged.

    train(index, sample, num_items=N, file=empty)       once; centroids and codes, without items
    add(empty, rows, file=part)                          each part, anywhere; the parts are consecutive rows
    merge(index, empty, parts, embeddings=embeddings)    the index of all parts, in the order of their rows

The merged structure has the bytes of one that was built at once from the same sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np

from recsys.core.errors import UserError
from recsys.core.io import atomic_file
from recsys.core.types import Float32Array
from recsys.index.ann_index import check_embeddings
from recsys.index.inverted_file import IVFFlat, IVFPQFastScan


def train(index: IVFFlat, sample: Float32Array, *, num_items: int, file: Path) -> None:
    """Write a trained structure without items.

    Args:
        index: class and arguments of the index.
        sample: embeddings to learn centroids and codes from.
        num_items: number of items of all parts, which decides the number of lists.
        file: file to write.

    Raises:
        UserError: If the index has packed codes, which faiss does not merge.
    """
    if isinstance(index, IVFPQFastScan):
        raise UserError("index: parts of ivf_pq_fastscan cannot be merged; expected ivf_flat or ivf_sq8")
    check_embeddings(sample)
    with atomic_file(file) as aside:
        faiss.write_index(index._trained(np.ascontiguousarray(sample), num_items), str(aside))


def add(empty: Path, rows: Float32Array, *, file: Path) -> None:
    """Fill a copy of the trained structure with the embeddings of a part, and write it."""
    check_embeddings(rows)
    part = faiss.read_index(str(empty))
    part.add(np.ascontiguousarray(rows))
    with atomic_file(file) as aside:
        faiss.write_index(part, str(aside))


def merge(index: IVFFlat, empty: Path, parts: Sequence[Path], *, embeddings: Float32Array) -> None:
    """Let `index` hold the items of all parts. One part at a time is in memory beside it.

    Args:
        index: class and arguments as in `train`.
        empty: file of the trained structure.
        parts: files of the parts, in the order of their rows.
        embeddings: embeddings of all items, best memory-mapped.

    Raises:
        UserError: If the parts hold another number of items.
    """
    merged = faiss.read_index(str(empty))
    for file in parts:
        merged.merge_from(faiss.read_index(str(file)), merged.ntotal)
    if merged.ntotal != len(embeddings):
        raise UserError(f"index: its parts hold {merged.ntotal} items, expected {len(embeddings)}")
    index.hold(merged, embeddings)
