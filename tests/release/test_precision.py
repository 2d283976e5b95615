"""Item embeddings that a release stores in fewer bytes: what is searched is what is stored, and recall stays."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from publishing import Published

from recsys.core.errors import UserError
from recsys.experiments.trained_run import load_run
from recsys.index import Exact, exact_search
from recsys.publishing import promote as module
from recsys.publishing.promote import promote
from recsys.release.files import read_embeddings
from recsys.release.precision import decode, encode
from recsys.release.runtime.item_search import ItemSearch
from recsys.release.store import ReleaseStore
from recsys.release.verification import verify_release


def normed(rows: int, dim: int, seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize(("precision", "share", "error"), [("float16", 0.5, 3e-4), ("int8", 0.32, 4e-3)])
def test_rounded_embeddings_are_small_and_near(precision: str, share: float, error: float) -> None:
    items = normed(2000, 64, 0)
    items[7] = 0
    stored = encode(items, precision)
    assert stored.nbytes <= share * items.nbytes
    found = decode(stored)
    assert found.dtype == np.float32
    assert np.abs(found - items).max() < error
    assert not found[7].any()
    # An item that is near its query, as in retrieval, is found among the first 100 as before.
    queries = items[:500] + normed(500, 64, 1) * 0.8
    hits = [(exact_search(kept, queries, k=100)[1] == np.arange(500)[:, None]).any(1).mean() for kept in (items, found)]
    assert abs(hits[0] - hits[1]) <= 0.002


def test_unknown_precisions_are_refused() -> None:
    with pytest.raises(UserError, match=r"item_embeddings=float61: expected one of float32, float16, int8"):
        encode(normed(3, 2, 0), "float61")


def test_data_without_a_test_part_is_not_said_to_lose_nothing(caplog: pytest.LogCaptureFixture) -> None:
    run: Any = SimpleNamespace(dataset=SimpleNamespace(requests=lambda _: SimpleNamespace(user_idx=[])), corpus=[])
    found = module._rounding(run, {"float32": normed(3, 2, 0), "int8": normed(3, 2, 0)})
    assert found == {"type": "int8", "recall@100": None}
    assert "the data has no test part" in caplog.text


@pytest.mark.slow
def test_a_release_with_rounded_embeddings_verifies_and_answers(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precision = "int8"
    run, store = load_run(published.runs[0]), ReleaseStore(tmp_path)
    monkeypatch.setattr(module, "MOST_LOST", 0.05)
    version = promote(run, Exact(), store=store, model="test", recall_target=1.0, item_embeddings=precision).version
    folder, whole = tmp_path / version, published.store / published.versions[0]
    sizes = [(place / "item_embeddings.npy").stat().st_size for place in (folder, whole)]
    assert sizes[0] < sizes[1]
    manifest = verify_release(folder)
    assert manifest.index["item_embeddings"]["type"] == precision
    embeddings = read_embeddings(folder, manifest)
    assert np.array_equal(embeddings, decode(np.load(folder / "item_embeddings.npy")))
    assert read_embeddings(folder, manifest) is embeddings
    found = ItemSearch(folder, manifest).search(embeddings[:3], 1)
    assert [hits.scores[0] for hits in found] == pytest.approx((embeddings[:3] ** 2).sum(axis=1), rel=0.2)
    damaged = bytearray((folder / "item_embeddings.npy").read_bytes())
    damaged[-1] ^= 1
    (folder / "item_embeddings.npy").write_bytes(damaged)
    with pytest.raises(UserError, match="item_embeddings"):
        verify_release(folder)
    monkeypatch.setattr(module, "MOST_LOST", -1.0)
    with pytest.raises(UserError, match=rf"item_embeddings={precision}: test recall@100 is"):
        promote(run, Exact(), store=store, model="test", recall_target=1.0, item_embeddings=precision)
