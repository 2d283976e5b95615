"""Hosts that search a part of a release each answer together as one host answers alone."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import numpy as np
import pytest
from asking import queries_of
from publishing import Published

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
