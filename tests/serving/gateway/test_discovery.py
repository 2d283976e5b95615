"""Hosts by list and by name, as they come and go."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

import pytest
from fake_hosts import FakeHost, running

from recsys.core.errors import UserError
from recsys.serving.gateway.discovery import HostDiscovery
from recsys.serving.gateway.fleet import Fleet
from recsys.serving.gateway.host_client import HostClient
from recsys.serving.gateway.remote_host import parse_address
from recsys.serving.observability.metrics import Metrics


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://10.0.0.1:8001", ("10.0.0.1", 8001)),
        ("http://host/:1", None),
        ("ann-0:80/", ("ann-0", 80)),
        ("http://[::1]:9", ("::1", 9)),
        ("https://host:443", None),
        ("host", None),
        ("host:0", None),
        ("host:99999", None),
        ("", None),
    ],
)
def test_addresses(text: str, address: tuple[str, int] | None) -> None:
    if address is not None:
        assert parse_address(text) == address
        return
    with pytest.raises(UserError, match="expected http://HOST:PORT or dns:NAME:PORT"):
        parse_address(text)


def test_no_hosts_are_refused() -> None:
    with pytest.raises(UserError, match="hosts: found none"):
        HostDiscovery([])


class Names:
    """A name service with addresses that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses: list[str] | None = []
        real = asyncio.BaseEventLoop.getaddrinfo

        async def look_up(loop: Any, host: Any, port: Any, **options: Any) -> Any:
            if host != "ann.internal":
                return await real(loop, host, port, **options)
            if self.addresses is None:
                raise socket.gaierror("name service is down")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.addresses]

        monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", look_up)


def test_a_name_is_resolved_again_and_hosts_that_stay_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)
    listed = HostDiscovery(["dns:ann.internal:8001", "http://10.0.0.9:8001"])

    async def scenario() -> None:
        names.addresses = ["10.0.0.2", "10.0.0.1", "10.0.0.1"]
        first = await listed()
        assert [host.name for host in first] == ["10.0.0.9:8001", "10.0.0.1:8001", "10.0.0.2:8001"]
        names.addresses = ["10.0.0.2", "10.0.0.3"]
        second = await listed()
        assert [host.name for host in second] == ["10.0.0.9:8001", "10.0.0.2:8001", "10.0.0.3:8001"]
        assert second[:2] == [first[0], first[2]]
        # A name service that does not answer changes nothing.
        names.addresses = None
        assert await listed() == second

    asyncio.run(scenario())


def test_a_fleet_follows_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)
    monkeypatch.setattr("recsys.serving.gateway.fleet.DISCOVER_EVERY", 0.05)

    async def scenario() -> None:
        host = FakeHost()
        async with running(host):
            fleet = Fleet([HostDiscovery([f"dns:ann.internal:{host.port}"])])
            await fleet.start()
            assert fleet.states == []
            names.addresses = ["127.0.0.1"]
            async with asyncio.timeout(60):
                while [state.failure for state in fleet.states] != [None]:
                    await asyncio.sleep(0.01)
            assert fleet.states[0].versions["m"].serving == "v1"
            names.addresses = []
            async with asyncio.timeout(60):
                while fleet.states:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            asked = len(host.requests)
            await asyncio.sleep(0.7)
            assert len(host.requests) == asked
            await fleet.close()

    asyncio.run(scenario())


class Failing:
    """A discovery that fails each time with the next error, and finds the host at last."""

    def __init__(self, host: FakeHost) -> None:
        self.clients: list[HostClient] = [host.client()]
        self.errors: list[Exception] = []

    async def __call__(self) -> Sequence[HostClient]:
        if self.errors:
            raise self.errors.pop(0)
        return self.clients


def test_discovery_goes_on_after_any_failure(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("recsys.serving.gateway.fleet.DISCOVER_EVERY", 0.01)
    metrics = Metrics()

    async def scenario() -> None:
        host = FakeHost()
        async with running(host):
            discovery = Failing(host)
            fleet = Fleet([discovery], metrics)
            await fleet.start()
            known = fleet.states
            discovery.errors = [OSError("no route"), UserError("no such name"), RuntimeError("a fault")]
            async with asyncio.timeout(60):
                while discovery.errors:
                    await asyncio.sleep(0.01)
            assert fleet.states == known
            discovery.clients = []
            async with asyncio.timeout(60):
                while fleet.states:
                    await asyncio.sleep(0.01)
            await fleet.close()

    asyncio.run(scenario())
    # Failures that can be expected are warnings; a programming error has a traceback and is counted.
    assert metrics.value("recsys_task_errors_total", task="discovery") == 1
    assert caplog.text.count("hosts of shard 0 cannot be discovered") == 2
    assert caplog.text.count("Traceback") == 1
