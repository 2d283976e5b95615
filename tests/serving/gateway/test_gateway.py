"""Answers equal those of the release alone, and embeddings meet no index of another version whatever hosts do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import MAX_EVENTS
from publishing import Published

from recsys.core.errors import UserError
from recsys.release.runtime.retriever import Query, Retriever
from recsys.serving.events import Event, EventStore, Restored, SQLiteEvents, StoreError
from recsys.serving.gateway.discovery import fixed_hosts
from recsys.serving.gateway.fleet import Fleet
from recsys.serving.gateway.gateway import Gateway
from recsys.serving.gateway.host_client import HostClient, LocalHost
from recsys.serving.gateway.limits import Limits
from recsys.serving.gateway.router import Router
from recsys.serving.gateway.tower_cache import TowerCache
from recsys.serving.host.host import Host
from recsys.serving.host.releases import ReleaseCache
from recsys.serving.http.codec import encode
from recsys.serving.http.messages import ModelVersions, RetrieveRequest, RetrieveResponse, SearchRequest, SearchResponse
from recsys.serving.http.problems import Problem, VersionNotHeld, from_user_error
from recsys.serving.observability.metrics import Metrics


@pytest.fixture
def events(stored: Path) -> Any:
    store = SQLiteEvents(stored, MAX_EVENTS)
    yield store
    store.close()


def host_of(published: Published, *versions: str) -> Host:
    """Serves the last one."""
    host = Host(ReleaseCache(published.store), "one")
    for version in versions:
        host.serve(host.load(version))
    return host


def with_gateway(
    published: Published,
    events: EventStore,
    client: HostClient,
    use: Callable[[Gateway], Coroutine[Any, Any, Any]],
    limits: Limits = Limits(seconds=60.0),  # noqa: B008
) -> Any:
    async def run() -> Any:
        fleet = Fleet([fixed_hosts(client)])
        await fleet.start()
        try:
            towers = TowerCache(ReleaseCache(published.store))
            return await use(Gateway(Router(fleet), towers, events=events, limits=limits, metrics=Metrics()))
        finally:
            await fleet.close()

    return asyncio.run(run())


def retrieve(
    published: Published, events: EventStore, client: HostClient, *requests: RetrieveRequest
) -> list[RetrieveResponse]:
    async def use(gateway: Gateway) -> list[RetrieveResponse]:
        return await asyncio.gather(*map(gateway.retrieve, requests))

    answers: list[RetrieveResponse] = with_gateway(published, events, client, use)
    return answers


def check(answer: RetrieveResponse, retriever: Retriever, query: Query, k: int = 100, **options: Any) -> None:
    (expected,) = retriever.retrieve([query], k, **options)
    assert [item.item_id for item in answer.items] == expected.item_ids
    np.testing.assert_allclose([item.score for item in answer.items], expected.scores, atol=1e-5)
    assert (answer.history_length, answer.unknown_items) == (expected.history_length, expected.unknown_items)
    assert answer.version == answer.user_tower_version == answer.index_version == retriever.version
    assert answer.host == "one"


def test_stored_histories_and_profiles(published: Published, events: EventStore, queries: dict[str, Query]) -> None:
    version = published.versions[0]
    retriever, client = Retriever.load(published.store, version), LocalHost(host_of(published, version))
    answers = retrieve(published, events, client, *(RetrieveRequest(user_id=user, k=7) for user in queries))
    for answer, query in zip(answers, queries.values(), strict=True):
        check(answer, retriever, query, 7)


def test_requests_with_all_fields(published: Published, events: EventStore, queries: dict[str, Query]) -> None:
    version = published.versions[1]
    retriever, client = Retriever.load(published.store, version), LocalHost(host_of(published, version))
    user = max(queries, key=lambda name: len(queries[name].history))
    query = queries[user]
    history = [{"item_id": "i001", "action": "save"}, {"item_id": "new", "timestamp": 5}, {"item_id": 7}]
    request = {"surface": "home", "query": "old house"}
    cases: list[tuple[RetrieveRequest, Query, int, dict[str, Any]]] = [
        (RetrieveRequest(), Query(), 100, {}),
        (RetrieveRequest(user_id="nobody", k=3), Query(user_id="nobody"), 3, {}),
        (RetrieveRequest(user_id=user, exclude_seen=False), query, 100, {"exclude_seen": False}),
        (RetrieveRequest(history=history), Query(history), 100, {}),
        # A history that is given replaces the stored one; the profile stays.
        (RetrieveRequest(user_id=user, history=history), Query(history, user, query.user), 100, {}),
        (RetrieveRequest(user_id=user, history=[]), Query([], user, query.user), 100, {}),
        # Features in the request replace stored ones.
        (
            RetrieveRequest(user_id=user, user={"country": "fr"}),
            Query(query.history, user, {**query.user, "country": "fr"}),
            100,
            {},
        ),
        (RetrieveRequest(user_id=user, request=request), Query(query.history, user, query.user, request), 100, {}),
        (RetrieveRequest(exclude=["i003", "none"]), Query(exclude=["i003", "none"]), 100, {}),
        (RetrieveRequest(filter={"category": ["x", "y"]}), Query(), 100, {"filter": {"category": ["x", "y"]}}),
        (RetrieveRequest(filter={"category": "x"}, k=2), Query(), 2, {"filter": {"category": "x"}}),
        (RetrieveRequest(k=1000), Query(), 1000, {}),
    ]
    answers = retrieve(published, events, client, *(case[0] for case in cases))
    for answer, (_, asked, k, options) in zip(answers, cases, strict=True):
        check(answer, retriever, asked, k, **options)
    assert answers[3].unknown_items == ["new", 7]


def test_a_short_request_gets_only_the_first_unknown_items_of_a_long_stored_history(
    published: Published, events: EventStore
) -> None:
    names = [f"unknown {number:04d}" for number in range(50)]
    events.append([("strange", Event(name * 200, number)) for number, name in enumerate(names)])
    client = LocalHost(host_of(published, published.versions[0]))
    posted: list[dict[str, Any]] = [{"item_id": name * 200} for name in names]
    stored, given = retrieve(
        published, events, client, RetrieveRequest(user_id="strange"), RetrieveRequest(history=posted)
    )
    # 20 bytes and 12 x 200 letters each.
    assert given.unknown_items == [name * 200 for name in names]
    assert given.unknown_items[:6] == stored.unknown_items


def test_an_invalid_request_does_not_affect_the_others(published: Published, events: EventStore) -> None:
    version = published.versions[0]
    retriever, client = Retriever.load(published.store, version), LocalHost(host_of(published, version))
    wrong = [
        (RetrieveRequest(user={"contry": "de"}), "user.contry", 400),
        (RetrieveRequest(user={"taste": [1.0]}), "user.taste", 400),
        (RetrieveRequest(request={"surfaces": "x"}), "request.surfaces", 400),
        (RetrieveRequest(history=[{"item_id": "i001", "actoin": 1}]), "history.actoin", 400),
        (RetrieveRequest(history=[{"timestamp": 1}]), "history[0].item_id", 400),
        (RetrieveRequest(history=[{"item_id": "a"}, {"item_id": True}]), "history[1].item_id", 400),
        (RetrieveRequest(history=[{"item_id": 2**63}]), "history[0].item_id", 400),
        (RetrieveRequest(history=[{"item_id": 1}, {"item_id": -(2**63) - 1}]), "history[1].item_id", 400),
        (RetrieveRequest(history=[{"item_id": "a"}, {"item_id": None}]), "history[1].item_id", 400),
        (RetrieveRequest(history=[{"item_id": "a", "timestamp": "soon"}]), "history[0].timestamp", 400),
        (RetrieveRequest(k=1001), "k", 400),
        (RetrieveRequest(filter={"categry": "x"}), "filter.categry", 400),
        (RetrieveRequest(filter={"category": 3}), "filter.category", 400),
        (RetrieveRequest(history=[{"item_id": "a"}] * 10_001), "history", 413),
        (RetrieveRequest(exclude=["a"] * 10_001), "exclude", 413),
        (RetrieveRequest(version="nope"), "version", 409),
    ]

    async def use(gateway: Gateway) -> list[Any]:
        asked = [request for request, _, _ in wrong for request in (request, RetrieveRequest())]
        return await asyncio.gather(*map(gateway.retrieve, asked), return_exceptions=True)

    answers = with_gateway(published, events, client, use)
    for (_, field, status), refused, answer in zip(wrong, answers[::2], answers[1::2], strict=True):
        problem = from_user_error(refused)
        assert (problem.field, problem.status) == (field, status)
        check(answer, retriever, Query())


def test_requests_of_one_moment_share_one_run(
    published: Published, events: EventStore, queries: dict[str, Query], monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = []
    host = host_of(published, published.versions[0])
    real = host.search
    monkeypatch.setattr(host, "search", lambda request: searched.append(len(request.embeddings)) or real(request))
    retrieve(published, events, LocalHost(host), *(RetrieveRequest(user_id=user) for user in queries))
    assert searched == [len(queries)]


class Stale(LocalHost):
    """Says that it serves and holds what it held before."""

    def __init__(self, host: Host, said: str) -> None:
        super().__init__(host)
        self.said, self.asked, self._real = said, 0, host

    async def version(self) -> Mapping[str, ModelVersions]:  # type: ignore[override]
        self.asked += 1
        return {"test": ModelVersions(self.said, [self.said])} if self.asked < 2 else self._real.version()


def test_a_version_that_is_gone_is_resolved_again(
    published: Published, events: EventStore, queries: dict[str, Query]
) -> None:
    old, new = published.versions
    client = Stale(host_of(published, new), old)
    user = next(iter(queries))
    (answer,) = retrieve(published, events, client, RetrieveRequest(user_id=user))
    # With the tower of the version that the host does hold.
    check(answer, Retriever.load(published.store, new), queries[user])


class Liar(LocalHost):
    """Answers from another version than the one that is asked for, and says so or not."""

    def __init__(self, host: Host, says: str) -> None:
        super().__init__(host)
        self._says = says

    async def search(self, request: SearchRequest) -> SearchResponse:
        response = await super().search(request)
        return SearchResponse(self._says, response.results)


def test_an_answer_of_another_version_is_none(published: Published, events: EventStore) -> None:
    old, new = published.versions

    async def use(gateway: Gateway) -> Any:
        return await gateway.retrieve(RetrieveRequest())

    with pytest.raises(Problem) as refused:
        with_gateway(published, events, Liar(host_of(published, old), new), use, Limits(seconds=0.2))
    assert refused.value.status == 503


def test_the_gateway_trusts_no_router(
    published: Published, events: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = published.versions

    async def use(gateway: Gateway) -> Any:
        real = gateway.router.search

        async def search(assignment: Any, request: SearchRequest) -> Any:
            routed = await real(assignment, request)
            return routed._replace(response=SearchResponse(new, routed.response.results))

        monkeypatch.setattr(gateway.router, "search", search)
        try:
            await gateway.retrieve(RetrieveRequest())
        finally:
            assert gateway.metrics.value("recsys_version_mismatches_total") > 0
            assert gateway.metrics.value("recsys_versions_met_total", user_tower=old, index=new) == 0

    with pytest.raises(Problem, match=f"found {old}, held are {new}") as refused:
        with_gateway(published, events, LocalHost(host_of(published, old)), use, Limits(seconds=0.2))
    assert refused.value.status == 503


def test_requests_while_the_served_version_moves(
    published: Published, events: EventStore, queries: dict[str, Query]
) -> None:
    old, new = published.versions
    host = host_of(published, old)
    host.load(new)
    asked = list(queries.values())
    expected = {}
    for version in (old, new):
        answers = Retriever.load(published.store, version).retrieve(asked, 9)
        expected[version] = {user: answer.item_ids for user, answer in zip(queries, answers, strict=True)}
    stop = threading.Event()

    def move() -> None:
        at = 0
        while not stop.is_set():
            # Sometimes the other one is not even loaded.
            version, other = (old, new) if at % 2 else (new, old)
            host.load(version)
            host.serve(version)
            if at % 3 == 0:
                host.unload(other)
            at += 1
            stop.wait(0.002)

    async def use(gateway: Gateway) -> list[tuple[str, RetrieveResponse]]:
        answers: list[tuple[str, RetrieveResponse]] = []

        async def ask(users: Sequence[str]) -> None:
            for user in users:
                answers.append((user, await gateway.retrieve(RetrieveRequest(user_id=user, k=9))))

        names = list(queries)
        await asyncio.gather(*(ask(names[begin:] + names[:begin]) for begin in range(0, 60, 10)))
        return answers

    mover = threading.Thread(target=move)
    mover.start()
    try:
        given = with_gateway(published, events, LocalHost(host), use, Limits(seconds=10.0))
    finally:
        stop.set()
        mover.join()
    assert len(given) == 6 * len(queries)
    for user, answer in given:
        assert answer.user_tower_version == answer.index_version == answer.version
        assert [item.item_id for item in answer.items] == expected[answer.version][user]
    assert {answer.version for _, answer in given} == {old, new}


class Broken(SQLiteEvents):
    def histories(self, user_ids: Sequence[int | str]) -> list[list[Event]]:
        raise StoreError(f"events: away ({len(user_ids)})")


class Hanging(Broken):
    """A server that does not answer until it is released."""

    is_embedded = False

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.go_on, self.asked = threading.Event(), 0

    def histories(self, user_ids: Sequence[int | str]) -> list[list[Event]]:
        self.asked += 1
        assert self.go_on.wait(60)
        return [[] for _ in user_ids]


@pytest.mark.parametrize("kind", [Broken, Hanging])
def test_without_events_requests_are_answered_without_history_and_say_so(
    published: Published, tmp_path: Path, kind: type[Broken]
) -> None:
    version = published.versions[0]
    store = kind(tmp_path / "events.sqlite")

    async def use(gateway: Gateway) -> None:
        known, posted, unknown = await asyncio.gather(
            gateway.retrieve(RetrieveRequest(user_id="u001")),
            gateway.retrieve(RetrieveRequest(history=[{"item_id": "i001"}])),
            gateway.retrieve(RetrieveRequest()),
        )
        assert (known.history_missing, posted.history_missing, unknown.history_missing) == (True, False, False)
        assert (known.history_length, len(known.items) > 0) == (0, True)
        assert b"history_missing" in encode(known)
        assert b"history_missing" not in encode(posted)
        # The store rests, so nobody waits for it again.
        assert (await gateway.retrieve(RetrieveRequest(user_id="u002"))).history_missing

    with_gateway(published, store, LocalHost(host_of(published, version)), use, Limits(store_seconds=0.01))
    if isinstance(store, Hanging):
        assert store.asked == 1
        store.go_on.set()
    store.close()


def test_a_list_that_is_too_much_work_is_refused(published: Published, events: EventStore) -> None:
    version = published.versions[0]

    async def use(gateway: Gateway) -> None:
        await gateway.ready()
        items = gateway.towers.values[0].manifest.num_items
        gateway.limits = Limits(cost=1000 + 100 * items // 100)
        gateway.check_cost([RetrieveRequest(k=10)] * 100)
        with pytest.raises(Problem, match="cost: found 100000 .* expected at most") as refused:
            gateway.check_cost([RetrieveRequest(k=1000)] * 100)
        assert refused.value.status == 413
        filtered = [RetrieveRequest(k=1, filter={"category": str(number)}) for number in range(200)]
        with pytest.raises(Problem, match=f"200 filters x {items} items"):
            gateway.check_cost([*filtered, *[RetrieveRequest(k=10)] * 100])
        limited = RetrieveRequest(k=1, quotas={"category": 1})
        gateway.check_cost([limited] * 50)
        with pytest.raises(Problem, match="and 9000 for quotas"):
            gateway.check_cost([limited] * 800)

    with_gateway(published, events, LocalHost(host_of(published, version)), use)


def test_towers_are_loaded_once_and_the_last_stay(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = published.versions
    cache = TowerCache(ReleaseCache(published.store), size=1)
    opened = []
    real = cache.open
    monkeypatch.setattr(cache, "open", lambda version: opened.append(version) or real(version))

    async def run() -> None:
        towers = await asyncio.gather(*(cache.get(old) for _ in range(5)))
        assert len(set(map(id, towers))) == 1
        assert towers[0].version == old
        assert (await cache.get(new)).version == new
        assert cache.keys == [new]
        with pytest.raises(Problem, match="user tower of version 0123456789abcdef cannot be loaded") as refused:
            await cache.get("0123456789abcdef")
        assert refused.value.status == 503

    asyncio.run(run())
    assert opened == [old, new, "0123456789abcdef"]


def test_a_store_that_keeps_less_than_the_tower_reads_is_logged(
    published: Published, caplog: pytest.LogCaptureFixture
) -> None:
    releases, version = ReleaseCache(published.store), published.versions[0]
    reads = releases.open(version)[1].max_history
    TowerCache(releases, max_events=reads).open(version)
    assert caplog.text == ""
    TowerCache(releases, max_events=reads - 1).open(version)
    assert (
        f"max_events: {reads - 1} events of a user are stored, but the tower of {version} reads {reads}" in caplog.text
    )


def test_features_that_a_release_does_not_know_are_left_out(published: Published, tmp_path: Path) -> None:
    version = published.versions[0]
    store = SQLiteEvents(tmp_path / "events.sqlite")
    store.append([("new", Event("i001", 5, {"of_another_release": 1, "action": "save"}))])
    (answer,) = retrieve(published, store, LocalHost(host_of(published, version)), RetrieveRequest(user_id="new"))
    expected = Query([{"item_id": "i001", "timestamp": 5, "action": "save"}], "new")
    check(answer, Retriever.load(published.store, version), expected)
    with pytest.raises(VersionNotHeld):
        retrieve(
            published, store, LocalHost(host_of(published, version)), RetrieveRequest(version=published.versions[1])
        )
    store.close()


def test_stored_values_of_other_types_count_as_missing(published: Published, tmp_path: Path) -> None:
    version = published.versions[0]
    store = SQLiteEvents(tmp_path / "events.sqlite")
    wrong = {"action": 3, "dwell": "long", "labels": ["a", 3], "seen_vector": [1.0], "surface": ["x"], "query": [[1]]}
    good = {"action": "save", "dwell": 1.5, "labels": ["a"], "seen_vector": [1.0, 2.0, 3.0], "query": "old house"}
    events = [Event("i001", 5, good), Event("i002", 6, wrong), Event("i003", 7, {"item_id": 5, "timestamp": "never"})]
    profile = {"country": 5, "taste": [1.0], "topics": [[1]], "age": "x", "about": {"a": 1}}
    store.restore([Restored("new", events, profile), Restored("other", events[:1], {"country": "de"})], "s", done=1)

    async def use(gateway: Gateway) -> tuple[list[RetrieveResponse], float]:
        users = [RetrieveRequest(user_id="new"), RetrieveRequest(user_id="other")]
        posted = RetrieveRequest(user_id="new", history=[{"item_id": "i001", "seen_vector": [1.0]}])
        with pytest.raises(UserError, match="expected 3"):
            await gateway.retrieve(posted)
        return await asyncio.gather(*map(gateway.retrieve, users)), gateway.metrics.value("recsys_unreadable_total")

    (found, other), unreadable = with_gateway(published, store, LocalHost(host_of(published, version)), use)
    retriever = Retriever.load(published.store, version)
    history = [
        {"item_id": "i001", "timestamp": 5, **good},
        {"item_id": "i002", "timestamp": 6},
        {"item_id": "i003", "timestamp": 7},
    ]
    check(found, retriever, Query(history, "new"))
    check(other, retriever, Query(history[:1], "other", {"country": "de"}))
    known = {feature.name for feature in retriever.schema.owned_by("users")}
    assert unreadable >= len(wrong) + len(known & profile.keys())
    store.close()
