"""Requests reach hosts of one version, whatever the hosts do meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import pytest
from fake_hosts import FakeHost, items, request, running

from recsys.serving.gateway import fleet as fleet_module
from recsys.serving.gateway.discovery import fixed_hosts
from recsys.serving.gateway.fleet import Fleet, HostState
from recsys.serving.gateway.router import RoutedResponse, Router
from recsys.serving.http.admin_messages import Canary
from recsys.serving.http.problems import Problem, VersionNotHeld

Scenario = Callable[[Router], Awaitable[None]]


# Bounds how long a test that fails takes; a test that passes does not depend on it.
PATIENCE = 60.0


class Clock:
    """Time of the states of hosts, which passes when a test says so. The event loop keeps its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.num_checks: Counter[str] = Counter()
        monkeypatch.setattr(fleet_module, "time", SimpleNamespace(monotonic=lambda: self.now))
        is_silent = HostState.is_silent

        def check_silence(state: HostState, seconds: float) -> bool:
            self.num_checks[state.name] += 1
            return is_silent(state, seconds)

        monkeypatch.setattr(HostState, "is_silent", check_silence)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def route(*shards: list[FakeHost], run: Scenario, probe_seconds: float = 0.3) -> None:
    """Run a scenario with a router over these shards. Searches have no time limit."""

    async def with_hosts() -> None:
        async with running(*(host for shard in shards for host in shard)):
            options = {"search_seconds": 3600.0, "probe_seconds": probe_seconds}
            fleet = Fleet([fixed_hosts(*(host.client(**options) for host in shard)) for shard in shards])
            await fleet.start()
            try:
                async with asyncio.timeout(PATIENCE):
                    await run(Router(fleet))
            finally:
                await fleet.close()

    asyncio.run(with_hosts())


async def ask(router: Router, user: int = 1) -> RoutedResponse:
    """One request as a gateway makes it: until it is answered."""
    for _ in range(1200):
        try:
            assignment = router.assign(user)
            return await router.search(assignment, request(assignment.version, user))
        except VersionNotHeld:
            continue
        except Problem as error:
            if error.status != 503:
                raise
            await asyncio.sleep(0.05)
    raise AssertionError("not answered")


def check(routed: RoutedResponse, user: int, k: int = 2) -> None:
    assert [r.item_ids for r in routed.response.results] == [items(routed.response.version, user, k)]


def test_the_version_is_that_of_the_host_that_will_be_searched() -> None:
    hosts = [FakeHost("v1", ["v1"]), FakeHost("v2", ["v2"]), FakeHost("v2", ["v1", "v2"])]

    async def run(router: Router) -> None:
        seen = Counter()
        for user in range(30):
            assignment = router.assign(user)
            (state,) = assignment.hosts
            (host,) = (host for host in hosts if host.name == state.name)
            assert assignment.version == host.serving
            routed = await router.search(assignment, request(assignment.version, user))
            check(routed, user)
            assert routed.hosts == (host.name,)
            seen[host.name] += 1
        # In turns, where none is busier than the others.
        assert set(seen.values()) == {10}

    route(hosts, run=run)


def test_a_busy_host_gets_less() -> None:
    hosts = [FakeHost(), FakeHost()]

    async def run(router: Router) -> None:
        slow = router.fleet.states[0]
        slow.in_flight = 5
        assert {router.assign().hosts[0].name for _ in range(6)} == {hosts[1].name}

    route(hosts, run=run)


def test_a_version_that_is_gone_is_resolved_again() -> None:
    host = FakeHost("v1", ["v1"])

    async def run(router: Router) -> None:
        assignment = router.assign()
        host.serving, host.loaded = "v2", ["v2"]
        with pytest.raises(VersionNotHeld):
            await router.search(assignment, request("v1", 1))
        # At once, without another question to the host.
        assert router.assign().version == "v2"
        check(await ask(router), 1)

    route([host], run=run)


def test_a_request_can_name_a_version() -> None:
    hosts = [FakeHost("v1", ["v1"]), FakeHost("v1", ["v1", "v2"])]

    async def run(router: Router) -> None:
        router.canary = Canary("v1", 1.0)
        for user in range(4):
            assignment = router.assign(user, "v2")
            assert (assignment.version, [state.name for state in assignment.hosts]) == ("v2", [hosts[1].name])
        with pytest.raises(VersionNotHeld, match="found v3, held are v1, v2"):
            router.assign(1, "v3")

    route(hosts, run=run)


def test_another_host_of_the_version_answers_where_the_first_has_moved_on() -> None:
    hosts = [FakeHost("v1", ["v1"]), FakeHost("v2", ["v2", "v1"])]

    async def run(router: Router) -> None:
        assignment = next(a for a in iter(router.assign, None) if a.version == "v1")
        hosts[0].serving, hosts[0].loaded = "v2", ["v2"]
        routed = await router.search(assignment, request("v1", 3))
        assert (routed.response.version, routed.hosts) == ("v1", (hosts[1].name,))
        check(routed, 3)
        assert router.metrics.value("recsys_routing_total", what="retry") == 1

    route(hosts, run=run)


def test_a_host_that_answers_from_another_version_is_not_believed() -> None:
    hosts = [FakeHost(), FakeHost()]
    hosts[0].claims = "v9"

    async def run(router: Router) -> None:
        for user in range(4):
            routed = await ask(router, user)
            assert routed.hosts == (hosts[1].name,)
        assert router.metrics.value("recsys_routing_total", what="mismatch_refused") > 0

    route(hosts, run=run)


def test_a_host_that_is_killed_and_comes_back() -> None:
    hosts = [FakeHost(), FakeHost()]

    async def run(router: Router) -> None:
        waiting = [asyncio.create_task(ask(router, user)) for user in range(20)]
        await hosts[0].stop()
        for user, task in enumerate(waiting):
            check(await task, user)
        for user in range(10):
            assert (await ask(router, user)).hosts == (hosts[1].name,)
        assert router.hosts()[hosts[0].name] is None
        await hosts[0].start()
        while (await ask(router)).hosts != (hosts[0].name,):
            await asyncio.sleep(0.01)

    route(hosts, run=run)


def test_requests_leave_a_host_that_hangs() -> None:
    hosts = [FakeHost(), FakeHost()]

    async def run(router: Router) -> None:
        hosts[0].running.clear()
        answers = await asyncio.gather(*(ask(router, user) for user in range(20)))
        for user, routed in enumerate(answers):
            check(routed, user)
            assert routed.hosts == (hosts[1].name,)
        hosts[0].running.set()
        while (await ask(router)).hosts != (hosts[0].name,):
            await asyncio.sleep(0.01)

    route(hosts, run=run)


@pytest.mark.usefixtures("clock")
def test_silent_hosts_are_hedged_and_then_avoided_before_any_probe_has_failed() -> None:
    hosts = [FakeHost(), FakeHost(), FakeHost()]

    async def run(router: Router) -> None:
        hosts[0].running.clear()
        hosts[1].running.clear()
        answers = await asyncio.gather(*(ask(router, user) for user in range(20)))
        for user, routed in enumerate(answers):
            check(routed, user)
            assert routed.hosts == (hosts[2].name,)
        assert router.metrics.value("recsys_routing_total", what="hedge") >= 2
        searches = [host.requests.count("/v1/search") for host in hosts[:2]]
        assert min(searches) > 0
        for user in range(20):
            assert (await ask(router, user)).hosts == (hosts[2].name,)
        assert [host.requests.count("/v1/search") for host in hosts[:2]] == searches
        for host in hosts[:2]:
            host.running.set()
        while any(state.in_flight for state in router.fleet.states):
            await asyncio.sleep(0.01)
        assert not router._under_way

    route(hosts, run=run, probe_seconds=30)


def test_a_host_that_answers_others_is_waited_for(clock: Clock) -> None:
    hosts = [FakeHost(), FakeHost()]

    async def run(router: Router) -> None:
        hosts[0].holds = 2
        first = next(a for a in iter(router.assign, None) if a.hosts[0].name == hosts[0].name)
        check(await router.search(first, request("v1", 2)), 2)
        slow = asyncio.create_task(router.search(first, request("v1", 7)))
        while hosts[0].requests.count("/v1/search") < 2:
            await asyncio.sleep(0.001)
        checks = clock.num_checks[hosts[0].name]
        while clock.num_checks[hosts[0].name] < checks + 4:
            assert (await router.search(first, request("v1", 1))).hosts == (hosts[0].name,)
            await asyncio.sleep(0.02)
        assert not slow.done()
        assert router.metrics.value("recsys_routing_total", what="hedge") == 0
        hosts[0].released.set()
        routed = await slow
        check(routed, 7)
        assert routed.hosts == (hosts[0].name,)

    route(hosts, run=run)


def test_if_all_are_silent_the_first_answer_counts(clock: Clock) -> None:
    hosts = [FakeHost(), FakeHost()]

    async def run(router: Router) -> None:
        for host in hosts:
            host.running.clear()
        task = asyncio.create_task(router.search(router.assign(), request("v1", 3)))
        while sum(clock.num_checks.values()) < 4:
            await asyncio.sleep(0.01)
        assert not task.done()
        assert sum(host.requests.count("/v1/search") for host in hosts) == 2
        hosts[1].running.set()
        routed = await task
        check(routed, 3)
        assert routed.hosts == (hosts[1].name,)

    route(hosts, run=run, probe_seconds=30)


def test_a_request_that_waited_does_not_go_to_a_host_that_went_down_meanwhile() -> None:
    hosts = [FakeHost(), FakeHost()]

    async def run(router: Router) -> None:
        assignment = next(a for a in iter(router.assign, None) if a.hosts[0].name == hosts[0].name)
        hosts[0].running.clear()
        await router.fleet.refresh()
        asked = len(hosts[0].requests)
        routed = await router.search(assignment, request("v1", 1))
        assert routed.hosts == (hosts[1].name,)
        assert hosts[0].requests[asked:].count("/v1/search") == 0

    route(hosts, run=run)


def test_one_cut_connection_is_no_outage() -> None:
    host = FakeHost()

    async def run(router: Router) -> None:
        for user in range(5):
            host.cut = 1
            check(await ask(router, user), user)

    route([host], run=run)


def test_errors_of_the_host_go_elsewhere_and_errors_of_the_request_do_not() -> None:
    hosts = [FakeHost(), FakeHost()]

    async def run(router: Router) -> None:
        hosts[0].instead = (500, {"error": {"code": "internal", "message": "broken"}})
        for user in range(4):
            assert (await ask(router, user)).hosts == (hosts[1].name,)
        hosts[0].instead = hosts[1].instead = (
            400,
            {"error": {"code": "bad_request", "message": "k: found 0", "field": "k"}},
        )
        before = len(hosts[0].requests) + len(hosts[1].requests)
        with pytest.raises(Problem, match="k: found 0") as caught:
            await router.search(router.assign(), request("v1", 1))
        assert (caught.value.status, caught.value.field) == (400, "k")
        searches = [path for host in hosts for path in host.requests if path == "/v1/search"]
        assert len(searches) <= before + 1

    route(hosts, run=run)


def test_a_host_whose_searches_fail_rests_although_it_answers_probes(clock: Clock) -> None:
    hosts = [FakeHost(), FakeHost()]
    hosts[0].instead = (500, b"not json")

    async def run(router: Router) -> None:
        async def failures_after(seconds: float) -> int:
            clock.now += seconds
            await router.fleet.refresh()
            for _ in range(10):
                await ask(router)
                while router.fleet.states[0].failure is not None:
                    await asyncio.sleep(0.001)
            return hosts[0].requests.count("/v1/search")

        # A rest follows the second failure and doubles with each, up to a second.
        assert await failures_after(0) == 2
        assert await failures_after(0.41) == 3
        assert await failures_after(0.41) == 3
        assert await failures_after(0.41) == 4
        assert await failures_after(0.99) == 4
        assert await failures_after(0.02) == 5

    route(hosts, run=run)


def test_an_error_lists_why_no_host_is_up() -> None:
    hosts = [FakeHost(), FakeHost(None, [])]

    async def run(router: Router) -> None:
        await hosts[0].stop()
        router.fleet.states[0].fail("host a: cut")
        with pytest.raises(Problem, match="no host holds a version") as caught:
            router.assign()
        assert caught.value.status == 503
        await hosts[1].stop()
        await router.fleet.refresh()
        with pytest.raises(Problem, match=f"no host is up: {hosts[0].name}: took no connection"):
            router.assign()

    route(hosts, run=run)


def test_a_host_that_was_not_heard_of_for_long_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(router: Router) -> None:
        router.assign()
        monkeypatch.setattr("recsys.serving.gateway.fleet.MAX_AGE", 0.0)
        with pytest.raises(Problem, match="has not been asked"):
            router.assign()

    route([FakeHost()], run=run)


def test_a_canary_gets_its_share_and_the_same_users_every_time() -> None:
    hosts = [FakeHost("v1", ["v1", "v2"]), FakeHost("v1", ["v1"])]

    async def run(router: Router) -> None:
        router.canary = Canary("v2", 0.2)
        first = [router.assign(user).version for user in range(1000)]
        assert first == [router.assign(user).version for user in range(1000)]
        assert 150 < first.count("v2") < 250
        assert router.assign(7).version == router.assign(7).version
        assert len({router.assign(user).hosts[0].name for user in range(1000) if first[user] == "v2"}) == 1
        # More of them keeps those who were there; others for another version; 5 and "5" are two users.
        router.canary = Canary("v2", 0.5)
        wider = [router.assign(user).version for user in range(1000)]
        assert all(b == "v2" for a, b in zip(first, wider, strict=True) if a == "v2")
        assert [user in Canary("v2", 0.2) for user in range(99)] != [user in Canary("v3", 0.2) for user in range(99)]
        assert [str(user) in Canary("v2", 0.2) for user in range(99)] != [u in Canary("v2", 0.2) for u in range(99)]
        anonymous = [router.assign(None).version for _ in range(200)]
        assert 50 < anonymous.count("v2") < 150
        check(await ask(router, 7), 7)

    route(hosts, run=run)


def test_a_canary_that_no_host_holds_is_no_outage() -> None:
    async def run(router: Router) -> None:
        router.canary = Canary("v2", 1.0)
        assert router.assign(1).version == "v1"
        assert router.metrics.value("recsys_routing_total", what="canary_not_held") == 1

    route([FakeHost("v1", ["v1"])], run=run)


def test_shards_answer_together_in_one_version() -> None:
    # Only v2 is held by a host of each shard, although most serve v1.
    left = [FakeHost("v1", ["v1"], "0/2"), FakeHost("v1", ["v1", "v2"], "0/2")]
    right = [FakeHost("v2", ["v2"], "1/2")]

    async def run(router: Router) -> None:
        for user in range(4):
            assignment = router.assign(user)
            assert [state.name for state in assignment.hosts] == [left[1].name, right[0].name]
            routed = await router.search(assignment, request(assignment.version, user, k=3))
            assert routed.response.version == "v2"
            # Two answers of the same three items, so these are the three best.
            check(routed, user, k=3)
            assert routed.hosts == (left[1].name, right[0].name)
        left[1].loaded = ["v1"]
        with pytest.raises(VersionNotHeld):
            await router.search(assignment, request("v2", 1))
        message = "no version is held by every shard: shard 0 holds v1; shard 1 holds v2"
        with pytest.raises(Problem, match=message) as caught:
            router.assign()
        assert caught.value.status == 503
        await right[0].stop()
        await router.fleet.refresh()
        with pytest.raises(Problem, match="shard 1: no host is up"):
            router.assign()

    route(left, right, run=run)


def test_a_host_of_another_shard_is_not_used() -> None:
    hosts = [FakeHost(shard="0/2"), FakeHost(shard="0/2"), FakeHost(shard=None)]

    async def run(router: Router) -> None:
        message = f"{hosts[1].name}: searches shard=0/2, and this gateway has it as one of shard=1/2; "
        with pytest.raises(Problem, match=f"{message}{hosts[2].name}: searches the whole corpus"):
            router.assign()

    route(hosts[:1], hosts[1:], run=run)

    async def alone(router: Router) -> None:
        with pytest.raises(Problem, match="searches shard=0/2, and this gateway has it as one of the whole corpus"):
            router.assign()

    route(hosts[:1], run=alone)


def test_rolling_upgrades_of_shards_under_requests_never_mix() -> None:
    shards = [[FakeHost("v1", ["v1"], f"{number}/2") for _ in range(2)] for number in range(2)]
    hosts = [host for shard in shards for host in shard]

    async def run(router: Router) -> None:
        is_over = False
        versions: Counter[str] = Counter()

        async def users(first: int) -> None:
            user = first
            while not is_over:
                routed = await ask(router, user)
                check(routed, user)
                versions[routed.response.version] += 1
                user += 10

        asking = [asyncio.create_task(users(number)) for number in range(10)]
        for old, new in (("v1", "v2"), ("v2", "v3"), ("v3", "v2")):
            for host in hosts:
                host.loaded = [old, new]
                await asyncio.sleep(0.05)
            for host in hosts:
                host.serving = new
                await asyncio.sleep(0.05)
            for host in hosts:
                # Earlier than a careful rollout would: gateways still believe that it is there.
                host.loaded = [new]
                await asyncio.sleep(0.05)
        is_over = True
        await asyncio.gather(*asking)
        assert set(versions) == {"v1", "v2", "v3"}

    route(*shards, run=run)
