"""Indexes that are filled in parts and merged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recsys.core.errors import UserError
from recsys.index import IVFSQ8, IVFFlat, IVFPQFastScan
from recsys.index.parts import add, merge, train

ITEMS = np.random.default_rng(0).normal(size=(3000, 16)).astype(np.float32)


@pytest.mark.parametrize("kind", [IVFFlat, IVFSQ8])
def test_merged_parts_have_the_bytes_of_one_build(kind: type[IVFFlat], tmp_path: Path) -> None:
    train(kind(seed=1), ITEMS, num_items=len(ITEMS), file=tmp_path / "empty")
    parts = []
    for number, rows in enumerate((ITEMS[:1000], ITEMS[1000:1700], ITEMS[1700:])):
        parts.append(tmp_path / f"part{number}")
        add(tmp_path / "empty", rows, file=parts[-1])
    merged, whole = kind(seed=1), kind(seed=1)
    merge(merged, tmp_path / "empty", parts, embeddings=ITEMS)
    whole.build(ITEMS)
    for name, index in (("merged", merged), ("whole", whole)):
        (tmp_path / name).mkdir()
        assert index.save(tmp_path / name) == ["item_index.faiss"]
    assert (tmp_path / "merged/item_index.faiss").read_bytes() == (tmp_path / "whole/item_index.faiss").read_bytes()
    assert merged.effort == whole.effort
    found, expected = (index.search(ITEMS[:50], 10) for index in (merged, whole))
    assert np.array_equal(found[1], expected[1])
    with pytest.raises(UserError, match="its parts hold 1700 items, expected 3000"):
        merge(kind(seed=1), tmp_path / "empty", parts[:2], embeddings=ITEMS)


def test_packed_codes_cannot_be_merged(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ivf_pq_fastscan cannot be merged"):
        train(IVFPQFastScan(), ITEMS, num_items=len(ITEMS), file=tmp_path / "empty")
