"""Odd answers of one host never leave it, and another host answers instead."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fake_hosts import FakeHost, items, request, running

from recsys.serving.gateway.answer_check import checked
from recsys.serving.gateway.discovery import fixed_hosts
from recsys.serving.gateway.fleet import Fleet
from recsys.serving.gateway.router import Router
from recsys.serving.http.messages import SearchResponse, SearchResult
from recsys.serving.http.problems import Problem

Ids = Sequence[int | str]
REASON = {"error": {"code": "bad_request", "message": "journal: line 2 is damaged"}}


def answer(*results: tuple[list[Any], list[Any]]) -> dict[str, Any]:
    return {"version": "v1", "results": [{"item_ids": ids, "scores": scores} for ids, scores in results]}


def screen(version: str, item_ids: Ids) -> tuple[Ids, Ids]:
    return [item for item in item_ids if not str(item).startswith(version)], []


ODD = {
    "one result too few": (200, answer()),
    "one result too many": (200, answer((["v1-a"], [1.0]), (["v1-a"], [1.0]))),
    "more items than asked for": (200, answer((["v1-a", "v1-b", "v1-c"], [3.0, 2.0, 1.0]))),
    "fewer scores than items": (200, answer((["v1-a", "v1-b"], [1.0]))),
    "scores of two dimensions": (200, answer((["v1-a", "v1-b"], [[1.0], [1.0]]))),
    "an infinite score": (200, answer((["v1-a", "v1-b"], [1e39, 1.0]))),
    "an unknown item": (200, answer((["v1-a", "other"], [2.0, 1.0]))),
    "an item twice": (200, answer((["v1-a", "v1-a"], [2.0, 1.0]))),
    "scores that rise": (200, answer((["v1-a", "v1-b"], [1.0, 2.0]))),
    "no JSON": (200, b"<html>"),
    "another message": (200, {"hello": 1}),
    "a huge answer": (200, b" " * 300_000),
    "a null id": (200, answer(([None], [1.0]))),
    "a refusal of a good request": (400, REASON),
    "a limit of its own": (413, REASON),
    "a token that it does not accept": (401, REASON),
    "an address that it does not have": (404, REASON),
    "an error": (500, REASON),
    "a refusal of a version that it says it holds": (409, REASON | {"serving": "v1", "loaded": ["v1"]}),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
def test_another_host_answers_instead_of_an_odd_one(odd: tuple[int, Any]) -> None:
    good, bad = FakeHost(), FakeHost()

    async def run() -> None:
        async with running(good, bad):
            fleet = Fleet([fixed_hosts(good.client(), bad.client())])
            await fleet.start()
            router = Router(fleet, screen=screen)
            bad.instead = odd
            try:
                for user in range(4):
                    assignment = router.assign(user)
                    routed = await router.search(assignment, request("v1", user))
                    assert [found.item_ids for found in routed.response.results] == [items("v1", user)]
                    assert routed.hosts == (good.name,)
            finally:
                await fleet.close()

    asyncio.run(run())


def test_a_request_that_two_hosts_refuse_is_wrong() -> None:
    hosts = [FakeHost(), FakeHost()]

    async def run() -> None:
        async with running(*hosts):
            fleet = Fleet([fixed_hosts(*(host.client() for host in hosts))])
            await fleet.start()
            router = Router(fleet)
            for host in hosts:
                host.instead = (400, {"error": {"code": "<b>" * 9, "message": "k: found 0"}})
            try:
                with pytest.raises(Problem) as refused:
                    await router.search(router.assign(1), request("v1", 1))
                assert (refused.value.status, refused.value.code) == (400, "bad_request")
                assert all(state.failure is None for state in fleet.states)
            finally:
                await fleet.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "versions",
    [
        {"m": {"serving": "v1", "loaded": ["v1"]}, "other": {"serving": "w1", "loaded": ["w1"]}},
        {"m": {"serving": "v2", "loaded": ["v1"]}},
        {f"m{number}": {"serving": None, "loaded": []} for number in range(2000)},
    ],
)
def test_a_host_with_odd_versions_is_not_used_and_others_are(versions: Any) -> None:
    good, bad = FakeHost(), FakeHost()
    real = bad._answer
    bad._answer = lambda path, body: (200, versions) if path == "/v1/version" else real(path, body)  # type: ignore[method-assign]

    async def run() -> None:
        async with running(good, bad):
            fleet = Fleet([fixed_hosts(good.client(), bad.client())])
            await fleet.start()
            router = Router(fleet)
            try:
                for user in range(4):
                    routed = await router.search(router.assign(user), request("v1", user))
                    assert routed.hosts == (good.name,)
            finally:
                await fleet.close()

    asyncio.run(run())


def test_versions_whose_tower_cannot_be_loaded_are_not_assigned() -> None:
    good, bad = FakeHost(), FakeHost("v9", ["v9"])

    async def run() -> None:
        async with running(good, bad):
            fleet = Fleet([fixed_hosts(good.client(), bad.client())])
            await fleet.start()
            router = Router(fleet, is_usable=lambda version: version != "v9")
            try:
                assert {router.assign(user).version for user in range(6)} == {"v1"}
            finally:
                await fleet.close()

    asyncio.run(run())


def test_items_that_were_taken_down_are_left_out() -> None:
    response = SearchResponse("v1", [SearchResult(["a", "b", "c"], np.array([3, 2, 1], np.float32))])
    found = checked(request("v1", 1, k=3), response, lambda _, __: ([], ["b"]))
    assert isinstance(found, SearchResponse)
    assert found.results[0].item_ids == ["a", "c"]
    assert found.results[0].scores.tolist() == [3, 1]
