"""Hosts that search a part of a release each answer together as one host answers alone."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from asking import queries_of
from forging import copy_release, seal
from publishing import Published

from recsys.core.columns import Ragged
from recsys.core.errors import UserError
from recsys.index import (
    HNSW,
    IVFSQ8,
    Auto,
    Effort,
    FaissFlat,
    Index,
    IVFFlat,
    IVFPQFastScan,
    exact_search,
    load_index,
    save_index,
)  # fmt: skip
from recsys.index.allowed import AllowedRows
from recsys.index.sharded import ShardIndex, divide
from recsys.release.manifest import EMBEDDINGS, ITEM_WEIGHTS, ITEMS, Manifest
from recsys.release.runtime.item_search import ItemSearch
from recsys.release.runtime.query_encoder import load_known_items
from recsys.release.runtime.retriever import Retriever
from recsys.release.runtime.shard import CorpusShard
from recsys.release.verification import verify_release
from recsys.serving.gateway.discovery import fixed_hosts
from recsys.serving.gateway.fleet import Fleet
from recsys.serving.gateway.host_client import LocalHost
from recsys.serving.gateway.router import Router
from recsys.serving.host.additions import Additions
from recsys.serving.host.host import Host
from recsys.serving.host.item_updates import ItemUpdates
from recsys.serving.host.releases import ReleaseCache, try_once
from recsys.serving.host.updated_index import UpdatedIndex
from recsys.serving.http.messages import SearchRequest
from recsys.serving.observability.recall_monitor import SampledSearch, recall_of


def sharded(published: Published, version: str, number: int, count: int) -> LocalHost:
    shard = CorpusShard(number, count)
    open_index = functools.partial(ItemSearch, shard=shard)
    host = Host(ReleaseCache(published.store, shard=shard), f"shard{number}", open_index=open_index, shard=shard)
    host.serve(host.load(version))
    assert host.version()["test"].shard == f"{number}/{count}"
    return LocalHost(host)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("wanted", [None, {"category": ["x", "y"]}])
def test_shards_answer_as_the_whole(published: Published, number: int, wanted: dict[str, Any] | None) -> None:
    version = published.versions[number]
    retriever = Retriever.load(published.store, version)
    queries = list(queries_of(published).values())
    seen = [[event["item_id"] for event in query.history] for query in queries]
    request = SearchRequest(version, retriever.embed(queries), 7, wanted, seen)

    async def search() -> Any:
        fleet = Fleet([fixed_hosts(sharded(published, version, part, 3)) for part in range(3)])
        await fleet.start()
        try:
            router = Router(fleet)
            return await router.search(router.assign(), request)
        finally:
            await fleet.close()

    response, hosts = asyncio.run(search())
    assert hosts == ("shard0", "shard1", "shard2")
    expected = retriever.item_search.search(request.embeddings, 7, filter=wanted, exclude=seen)
    assert [found.item_ids for found in response.results] == [hit.item_ids for hit in expected]
    for found, hit in zip(response.results, expected, strict=True):
        np.testing.assert_allclose(found.scores, hit.scores, atol=1e-6)


@pytest.mark.parametrize("number", [0, 1])
def test_a_shard_holds_its_own_rows_alone(published: Published, number: int) -> None:
    folder = published.store / published.versions[number]
    manifest = Manifest.load(folder)
    whole = ItemSearch(folder, manifest)
    for part in range(3):
        search = ItemSearch(folder, manifest, shard=CorpusShard(part, 3))
        assert np.array_equal(search.embeddings, whole.embeddings[part::3])
        search.check()
        queries = whole.embeddings[:5]
        allow = search.item_filter({})
        assert isinstance(allow, AllowedRows)
        assert isinstance(search.index, ShardIndex)
        scores, rows = search.index.search(queries, 4, allow=allow)
        expected, _ = exact_search(whole.embeddings, queries, k=4, rows=np.arange(part, len(whole.embeddings), 3))
        # The second release has an approximate index.
        least = 0.7 if number else 1.0
        assert (scores >= expected - 1e-6).mean() >= least
        assert (rows % 3 == part).all()
        sample = SampledSearch("v", search.index, search.embeddings, queries[0], 4, allow, np.zeros(0, np.int32))
        assert recall_of(sample) >= least


@pytest.mark.parametrize("kind", [IVFFlat, IVFSQ8, IVFPQFastScan])
def test_shards_of_lists_find_what_the_whole_finds(kind: type[IVFFlat]) -> None:
    items = np.random.default_rng(0).normal(size=(2001, 8)).astype(np.float32)
    whole = kind(num_lists=20)
    whole.build(items)
    whole.effort = Effort(5, whole.refine_factors[-1], 10)
    queries, seen = items[:40], Ragged(np.arange(40, dtype=np.int32), np.arange(41))
    allow = np.random.default_rng(1).random(2001) < 0.9
    found = []
    for number in range(4):
        shard = ShardIndex.of(whole, items[number::4], number=number, count=4)
        found.append(shard.search(queries, 10, allow=allow, exclude=seen))
    scores, rows = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    assert allow[rows].all()
    assert not (rows == np.arange(40)[:, None]).any()
    np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", queries, items[rows]), atol=1e-5)
    best = np.sort(scores, axis=1)[:, ::-1][:, :10]
    alone, _ = whole.search(queries, 10, allow=allow, exclude=seen)
    assert (best >= alone - 1e-5).mean() > 0.98


@pytest.fixture
def with_parts(published: Published, tmp_path: Path) -> Path:
    return copy_release(published.store / published.versions[1], tmp_path)


def opened_part(release: Path, number: int, count: int = 3) -> tuple[Path, Manifest]:
    return ReleaseCache(release.parent, shard=CorpusShard(number, count)).open(release.name)


def test_a_host_of_a_part_reads_nothing_else(with_parts: Path) -> None:
    shard = CorpusShard(1, 3)
    # Only a whole release needs these files, so their digests are not compared.
    for name in (EMBEDDINGS, ITEM_WEIGHTS, "vocabularies/items.parquet"):
        path = with_parts / name
        path.write_bytes(bytes(path.stat().st_size))
    releases = ReleaseCache(with_parts.parent, functools.partial(try_once, seconds=300, most=None), shard=shard)
    folder, manifest = releases.open(with_parts.name)
    assert folder == with_parts / "item_index.parts/1-of-3"
    assert len(releases.known_items(with_parts.name)) == manifest.num_items < 40
    host = Host(releases, "host", open_index=functools.partial(ItemSearch, shard=shard), shard=shard)
    host.load(with_parts.name)
    releases.verify_again(with_parts.name)
    with pytest.raises(UserError, match="changed"):
        verify_release(with_parts)
    # A shard of another division reads the whole.
    with pytest.raises(UserError, match="changed"):
        opened_part(with_parts, 1, 2)


@pytest.mark.parametrize("name", ["item_embeddings.npy", "items.parquet", "item_index.faiss", "self_check.npz"])
def test_a_changed_part_is_refused(with_parts: Path, name: str) -> None:
    releases = ReleaseCache(with_parts.parent, shard=CorpusShard(2, 3))
    releases.open(with_parts.name)
    path = with_parts / "item_index.parts/2-of-3" / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=f"{name}: changed"):
        releases.verify_again(with_parts.name)
    with pytest.raises(UserError, match=f"{name}: changed"):
        opened_part(with_parts, 2)
    path.unlink()
    with pytest.raises(UserError, match="missing"):
        opened_part(with_parts, 0)


def test_parts_belong_to_their_index(with_parts: Path) -> None:
    parts = with_parts / "item_index.parts"
    for name in ("item_embeddings.npy", "items.parquet"):
        (parts / "0-of-3" / name).write_bytes((parts / "1-of-3" / name).read_bytes())
    with pytest.raises(UserError, match="changed|damaged"):
        opened_part(with_parts, 0)
    # A manifest that fits the files makes another release, which the pair of the index does not name.
    with pytest.raises(UserError, match="mixed releases"):
        opened_part(seal(with_parts), 0)


def test_an_item_of_another_part_is_no_new_item(with_parts: Path, tmp_path: Path) -> None:
    folder, manifest = opened_part(with_parts, 0)
    known, updates = load_known_items(folder, manifest), ItemUpdates(tmp_path / "journal", CorpusShard(0, 3))
    items = UpdatedIndex(folder, manifest, known_items=known, updates=updates)
    own = items.items["item_id"].to_pylist()
    other = next(one for one in pq.read_table(with_parts / ITEMS)["item_id"].to_pylist() if one not in own)
    vectors = np.ones((1, manifest.dim), np.float32)
    assert items.check_additions(Additions(manifest.version, [{"item_id": "new"}], vectors)) == ["new"]
    for indexed in (own[0], other):
        with pytest.raises(UserError, match="is in the index"):
            items.check_additions(Additions(manifest.version, [{"item_id": indexed}], vectors))


@pytest.mark.parametrize("index", [HNSW(m=4), FaissFlat(), Auto(IVFPQFastScan()), Auto(IVFPQFastScan(), 0)])
def test_every_index_has_parts(index: Index, tmp_path: Path) -> None:
    items = np.random.default_rng(0).normal(size=(1100, 8)).astype(np.float32)
    index.build(items)
    index.effort = Effort(min(index.max_breadth, 40), max(index.refine_factors, default=1), 10)
    part = divide(index, items[1::2], number=1, count=2)
    save_index(part, tmp_path)
    opened = load_index(tmp_path, items[1::2])
    scores, rows = opened.search(items[:20], 5)
    expected, _ = exact_search(items[1::2], items[:20], k=5)
    assert (scores >= expected - 1e-5).mean() > 0.9
    np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", items[:20], items[1::2][rows]), atol=1e-5)
