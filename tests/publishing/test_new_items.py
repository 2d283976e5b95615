"""New items get the embeddings that the release would have given them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from publishing import Published
from worlds import FEW, write_blend, write_run

from recsys.cli.main import main
from recsys.experiments.trained_run import load_run
from recsys.index import Exact
from recsys.publishing import new_items
from recsys.publishing.new_items import embed_items
from recsys.publishing.promote import promote
from recsys.release.store import ReleaseStore
from recsys.serving.host.additions import load_additions


def untrained(store: Path, version: str, num_trained: int, root: Path) -> tuple[pa.Table, np.ndarray]:
    """Rows of the source, and embeddings in the release, of items that it knows by their features alone."""
    items = pq.read_table(store / version / "items.parquet")
    rows = np.flatnonzero(np.asarray(items["item_idx"]) > num_trained)
    assert len(rows)
    source = pq.read_table(root / "items.parquet")
    at = pc.index_in(items["item_id"].take(pa.array(rows)), value_set=source["item_id"].combine_chunks())
    return source.take(at), np.load(store / version / "item_embeddings.npy")[rows]


def test_embeddings_are_those_of_the_release(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(published.runs[0])
    table, expected = untrained(published.store, published.versions[0], run.dataset.num_trained, published.root)
    pq.write_table(table, tmp_path / "new.parquet")
    new, out = tmp_path / "new.parquet", tmp_path / "out"
    assert embed_items(published.store, "candidate", items=new, out=out) == published.versions[0]
    found = load_additions(tmp_path / "out")
    assert found.version == published.versions[0]
    np.testing.assert_allclose(found.embeddings, expected, atol=1e-6)
    assert [item["item_id"] for item in found.items] == table["item_id"].to_pylist()
    assert [item["category"] for item in found.items] == table["category"].to_pylist()
    lines = [json.dumps(row) for row in table.rename_columns({"item_id": "id"}).to_pylist()]
    (tmp_path / "new.jsonl").write_text("\n".join(lines))
    config = OmegaConf.create({"data": {"columns": {"items": {"item_id": "id"}}}})
    with monkeypatch.context() as patch:
        stored = new_items.stored_config
        patch.setattr(new_items, "stored_config", lambda folder, _: OmegaConf.merge(stored(folder), config))
        embed_items(published.store, "candidate", items=tmp_path / "new.jsonl", out=out)
    np.testing.assert_allclose(load_additions(out).embeddings, expected, atol=1e-6)


def test_content_and_evidence_of_ids(published: Published, tmp_path: Path) -> None:
    content = (
        "model.similarity=dot",
        "user_tower=mean",
        "item_tower=content",
        "item_tower.content.columns=[tags, category, visual]",
        "item_tower.content.width=6",
    )
    run = load_run(write_run(tmp_path / "run", published.root, *FEW, *content))
    store = ReleaseStore(tmp_path / "store")
    version = promote(run, Exact(), store=store, model="test", recall_target=1.0).version
    table, expected = untrained(store.root, version, run.dataset.num_trained, published.root)
    assert expected[:, :6].any()
    assert not expected[:, 6:].any()
    pq.write_table(table, tmp_path / "new.parquet")
    embed_items(store.root, version, items=tmp_path / "new.parquet", out=tmp_path / "out")
    np.testing.assert_allclose(load_additions(tmp_path / "out").embeddings, expected, rtol=1e-5, atol=1e-6)


def test_blends_and_biases(published: Published, tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", published.root, *FEW, "user_tower=mean", "user_tower.use_user_id=true")
    other = write_run(tmp_path / "other", published.root, *FEW, "model.similarity=dot", "user_tower=mean")
    path = write_blend(tmp_path / "blend", {"a": (one, 1.0), "b": (other, 0.5)}, shift_weight=0.5)
    run = load_run(path)
    store = ReleaseStore(tmp_path / "store")
    version = promote(run, Exact(), store=store, model="test", recall_target=1.0).version
    table, expected = untrained(store.root, version, run.dataset.num_trained, published.root)
    pq.write_table(table, tmp_path / "new.parquet")
    embed_items(store.root, version, items=tmp_path / "new.parquet", out=tmp_path / "out")
    np.testing.assert_allclose(load_additions(tmp_path / "out").embeddings, expected, rtol=1e-5, atol=1e-6)


def test_biases_of_members_and_members_without_features(published: Published, tmp_path: Path) -> None:
    more = [*FEW, "user_tower=mean", "model.similarity=dot"]
    plain = write_run(tmp_path / "plain", published.root, *FEW, "user_tower=mean")
    ids = write_run(tmp_path / "ids", published.root, *more, "item_tower=ids")
    level = ["model.new_items_offset=-1.5", "model.new_items_scale=1.3"]
    codes = ["item_tower=semantic_ids", "item_tower.semantic_ids.num_bits=3"]
    offset = write_run(tmp_path / "offset", published.root, *more, *level, *codes)
    members = {"ids": (ids, 0.5), "offset": (offset, 0.25), "plain": (plain, 0.25)}
    blend = write_blend(tmp_path / "blend", members, level=(1.4, 0.75))
    # Without a level of its own a blend leaves those of its members.
    bare = write_blend(tmp_path / "bare", members)
    store = ReleaseStore(tmp_path / "store")
    for path in (offset, blend, bare):
        run = load_run(path)
        version = promote(run, Exact(), store=store, model="test", recall_target=1.0).version
        table, expected = untrained(store.root, version, run.dataset.num_trained, published.root)
        pq.write_table(table, tmp_path / "new.parquet")
        embed_items(store.root, version, items=tmp_path / "new.parquet", out=tmp_path / "out")
        np.testing.assert_allclose(load_additions(tmp_path / "out").embeddings, expected, rtol=1e-5, atol=1e-6)


def test_items_that_cannot_be_embedded_are_reported(
    published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "nameless.parquet")
    pq.write_table(pa.table({"item_id": [None, "b"]}), tmp_path / "null.parquet")
    command = ["embed-items", "release=candidate", f"out={tmp_path / 'out'}", f"store={published.store}"]
    for file, message in (
        ("none.parquet", "none.parquet: no such file"),
        ("nameless.parquet", "column 'item_id' is missing"),
        ("null.parquet", "column 'item_id' is null in row 0"),
    ):
        with pytest.raises(SystemExit):
            main([*command, f"items={tmp_path / file}"])
        assert message in capsys.readouterr().err
