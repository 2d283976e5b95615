"""State of all hosts: their addresses, health and versions. Imports no torch.

The state is refreshed in the background.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from recsys.core.errors import UserError
from recsys.release.runtime.shard import CorpusShard
from recsys.serving.gateway.discovery import Discovery
from recsys.serving.gateway.host_client import HostClient
from recsys.serving.http.messages import Versions
from recsys.serving.http.problems import Problem, unavailable
from recsys.serving.observability.metrics import Metrics

log = logging.getLogger("recsys")

# Seconds between two probes of a host, which return its versions.
PROBE_EVERY = 0.5
# Seconds between two discoveries of hosts.
DISCOVER_EVERY = 5.0
# Seconds after which the answer to a probe is too old to rely on.
MAX_AGE = 2.5
# Longest rest in seconds of a host that answers probes but fails searches repeatedly.
MAX_REST = 1.0


class HostState:
    """A host as the gateway sees it; `shard` is the part of the corpus that it must search."""

    def __init__(self, client: HostClient, shard: CorpusShard) -> None:
        self.client, self.shard = client, shard
        self.versions: Versions = {}
        self.in_flight = 0
        self._failure: str | None = f"{client.name}: not asked yet"
        self._answered = self._searched = self._rests_until = -float("inf")
        self._failures = 0
        self._probe_now = asyncio.Event()
        self._probe_now.set()

    @property
    def name(self) -> str:
        """Name of the host."""
        return self.client.name

    @property
    def failure(self) -> str | None:
        """Reason why the host is not used; None if it answered its last probe recently."""
        if self._failure is None and time.monotonic() - self._answered > MAX_AGE:
            return f"{self.name}: has not been asked for {MAX_AGE:g} s"
        return self._failure

    @property
    def is_resting(self) -> bool:
        """True if the host is used only as a last resort."""
        return time.monotonic() < self._rests_until

    def fail(self, reason: str) -> None:
        """Record a failed search: the host is not used until it answers a probe, which is sent at once."""
        if self._failure is not None:
            # Many requests fail in the same outage, which counts once.
            return
        log.warning("host is not used until it answers: %s", reason)
        self._failure = reason
        self._failures += 1
        if self._failures > 1:
            self._rests_until = time.monotonic() + min(0.1 * 2**self._failures, MAX_REST)
        self._probe_now.set()

    def probe_now(self) -> None:
        """Send the next probe at once."""
        self._probe_now.set()

    def succeed(self) -> None:
        """Record an answered search."""
        self._failures = 0
        self._searched = time.monotonic()

    def is_silent(self, seconds: float) -> bool:
        """Return True if the host has answered no search for that time; a busy host still answers some."""
        return time.monotonic() - self._searched >= seconds

    def suspect(self, seconds: float) -> None:
        """Use the host only as a last resort for that time, and probe it at once."""
        self._rests_until = max(self._rests_until, time.monotonic() + seconds)
        self._probe_now.set()

    async def probe(self) -> None:
        """Request the versions of the host and record the answer."""
        try:
            versions = await self.client.version()
            self._check_shard(versions)
            self.versions = versions
        except Problem as error:
            if self._failure is None:
                log.warning("host is down: %s", error)
            self._failure = str(error)
            self.client.give_up("does not answer for its versions")
            return
        if self._failure is not None:
            log.info("host is up: %s", self.name)
        self._failure, self._answered = None, time.monotonic()

    def _check_shard(self, versions: Versions) -> None:
        expected = str(self.shard) if self.shard.count > 1 else None
        for held in versions.values():
            if held.shard != expected:
                found = f"shard={held.shard}" if held.shard else "the whole corpus"
                wanted = f"shard={expected}" if expected else "the whole corpus"
                raise unavailable(f"{self.name}: searches {found}, and this gateway has it as one of {wanted}")

    async def keep_probing(self, metrics: Metrics) -> None:
        """Probe the host regularly, and at once after a request failed."""
        while True:
            try:
                async with asyncio.timeout(PROBE_EVERY):
                    await self._probe_now.wait()
            except TimeoutError:
                pass
            self._probe_now.clear()
            with metrics.keep_going("probe"):
                await self.probe()


class Fleet:
    """The hosts of all shards, each probed twice a second. A probe is the health check, and refreshes the versions."""

    def __init__(self, shards: Sequence[Discovery], metrics: Metrics | None = None) -> None:
        self._discoveries, self._metrics = shards, metrics or Metrics()
        self.shards: list[list[HostState]] = [[] for _ in shards]
        self._tasks: dict[HostState, asyncio.Task[None]] = {}
        self._discovering: asyncio.Task[None] | None = None

    @property
    def states(self) -> list[HostState]:
        """States of all hosts."""
        return [state for shard in self.shards for state in shard]

    async def start(self) -> None:
        """Discover the hosts, probe each once, and keep doing both in the background."""
        await self.discover()
        await self.refresh()
        self._discovering = asyncio.create_task(self._keep_discovering())

    async def discover(self) -> None:
        """Discover the hosts of all shards; new ones are used as soon as they have answered a probe."""
        for number in range(len(self.shards)):
            await self._discover_shard(number)

    async def _discover_shard(self, number: int) -> None:
        states = {state.client: state for state in self.shards[number]}
        clients = await self._discoveries[number]()
        shard = CorpusShard(number, len(self.shards))
        self.shards[number] = [
            states.pop(client) if client in states else HostState(client, shard) for client in clients
        ]
        for state in self.shards[number]:
            if state not in self._tasks:
                self._tasks[state] = asyncio.create_task(state.keep_probing(self._metrics))
        for state in states.values():
            log.info("host is gone: %s", state.name)
            self._tasks.pop(state).cancel()
            await state.client.close()

    async def refresh(self) -> None:
        """Probe every host now, and wait for the answers."""
        await asyncio.gather(*(state.probe() for state in self.states))

    def probe_all(self) -> None:
        """Probe every host soon, because no request can be answered in the present state."""
        for state in self.states:
            state.probe_now()

    async def close(self) -> None:
        """Stop discovery and probes, and close the clients."""
        tasks = [*self._tasks.values(), *([self._discovering] if self._discovering else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for state in self.states:
            await state.client.close()

    async def _keep_discovering(self) -> None:
        while True:
            await asyncio.sleep(DISCOVER_EVERY)
            for number in range(len(self.shards)):
                with self._metrics.keep_going("discovery"):
                    try:
                        await self._discover_shard(number)
                    except (OSError, UserError) as error:
                        log.warning("hosts of shard %d cannot be discovered, the known ones stay: %s", number, error)
