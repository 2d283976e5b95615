"""Hosts that search a part of a release each answer together as one host answers alone."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import numpy as np
import pytest
from asking import queries_of
from publishing import Published

from recsys.core.columns import Ragged
from recsys.index import IVFSQ8, Effort, IVFFlat, exact_search
from recsys.index.allowed import AllowedRows
from recsys.index.sharded import ShardIndex
from recsys.release.manifest import Manifest
from recsys.release.runtime.item_search import ItemSearch
from recsys.release.runtime.retriever import Retriever
from recsys.release.runtime.shard import CorpusShard
from recsys.serving.gateway.discovery import fixed_hosts
from recsys.serving.gateway.fleet import Fleet
from recsys.serving.gateway.host_client import LocalHost
from recsys.serving.gateway.router import Router
from recsys.serving.host.host import Host
from recsys.serving.host.releases import ReleaseCache
from recsys.serving.http.messages import SearchRequest
from recsys.serving.observability.recall_monitor import SampledSearch, recall_of


def sharded(published: Published, version: str, number: int, count: int) -> LocalHost:
    shard = CorpusShard(number, count)
    open_index = functools.partial(ItemSearch, shard=shard)
    host = Host(ReleaseCache(published.store), f"shard{number}", open_index=open_index, shard=shard)
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


@pytest.mark.parametrize("kind", [IVFFlat, IVFSQ8])
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
