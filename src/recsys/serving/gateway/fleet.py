"""Which hosts there are, which of them answer, and what each holds, kept fresh in the background. Imports no torch."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from recsys.release.runtime.shard import Shard
from recsys.serving.gateway.discovery import Discovery
from recsys.serving.gateway.host_client import HostClient
from recsys.serving.http.messages import Versions
from recsys.serving.http.problems import Problem, unavailable

log = logging.getLogger(__name__)

# Seconds between two questions to a host for its versions.
PROBE_EVERY = 0.5
# Seconds between two questions for the hosts.
DISCOVER_EVERY = 5.0
# What a host said longer ago than this, in seconds, is not relied on.
MAX_AGE = 2.5
# A host that answers for its versions and fails searches again and again rests, at most this many seconds at a time.
MAX_REST = 1.0


class HostState:
    """A host as the gateway sees it.

    Args:
        client: asks it.
        shard: that it must search.
    """

    def __init__(self, client: HostClient, shard: Shard) -> None:
        self.client, self.shard = client, shard
        self.versions: Versions = {}
        self.in_flight = 0
        self._failure: str | None = f"{client.name}: not asked yet"
        self._answered = self._searched = self._rests_until = -float("inf")
        self._failures = 0
        self._ask_now = asyncio.Event()
        self._ask_now.set()

    @property
    def name(self) -> str:
        """Of the host."""
        return self.client.name

    @property
    def failure(self) -> str | None:
        """Why it is not used; None: it answered when it was last asked, and that was not long ago."""
        if self._failure is None and time.monotonic() - self._answered > MAX_AGE:
            return f"{self.name}: has not been asked for {MAX_AGE:g} s"
        return self._failure

    @property
    def is_resting(self) -> bool:
        """It is used only where there is no other."""
        return time.monotonic() < self._rests_until

    def fail(self, reason: str) -> None:
        """A search failed: do not use it until it has answered for its versions, which it is asked at once."""
        if self._failure is not None:
            # One outage, although many requests meet it.
            return
        log.warning("host is not used until it answers: %s", reason)
        self._failure = reason
        self._failures += 1
        if self._failures > 1:
            self._rests_until = time.monotonic() + min(0.1 * 2**self._failures, MAX_REST)
        self._ask_now.set()

    def ask_now(self) -> None:
        """Do not wait for the next time to ask for its versions."""
        self._ask_now.set()

    def succeed(self) -> None:
        """A search was answered."""
        self._failures = 0
        self._searched = time.monotonic()

    def is_silent(self, seconds: float) -> bool:
        """Whether it has answered no search for so long; one that is busy answers some."""
        return time.monotonic() - self._searched >= seconds

    def suspect(self, seconds: float) -> None:
        """Use it only where there is no other for so long, and ask for its versions at once."""
        self._rests_until = max(self._rests_until, time.monotonic() + seconds)
        self._ask_now.set()

    async def probe(self) -> None:
        """Ask for its versions."""
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

    async def keep_probing(self) -> None:
        """Ask again and again, at once where a request failed."""
        while True:
            try:
                async with asyncio.timeout(PROBE_EVERY):
                    await self._ask_now.wait()
            except TimeoutError:
                pass
            self._ask_now.clear()
            try:
                await self.probe()
            except Exception:
                # The next question may go better; without one the host would be lost.
                log.exception("%s: asking for its versions", self.name)


class Fleet:
    """The hosts of all shards.

    Each is asked for its versions twice a second: that is its health check, and revalidates the gateway's copy.

    Args:
        shards: the hosts of each shard; a list of one for a corpus that is not split.
    """

    def __init__(self, shards: Sequence[Discovery]) -> None:
        self._discoveries = shards
        self.shards: list[list[HostState]] = [[] for _ in shards]
        self._tasks: dict[HostState, asyncio.Task[None]] = {}
        self._discovering: asyncio.Task[None] | None = None

    @property
    def states(self) -> list[HostState]:
        """Of every host."""
        return [state for shard in self.shards for state in shard]

    async def start(self) -> None:
        """Find the hosts, ask each once, and keep finding and asking."""
        await self.discover()
        await self.refresh()
        self._discovering = asyncio.create_task(self._keep_discovering())

    async def discover(self) -> None:
        """Ask which hosts there are; new ones are used as soon as they have answered."""
        for number, discovery in enumerate(self._discoveries):
            states = {state.client: state for state in self.shards[number]}
            clients = await discovery.hosts()
            shard = Shard(number, len(self.shards))
            self.shards[number] = [
                states.pop(client) if client in states else HostState(client, shard) for client in clients
            ]
            for state in self.shards[number]:
                if state not in self._tasks:
                    self._tasks[state] = asyncio.create_task(state.keep_probing())
            for state in states.values():
                log.info("host is gone: %s", state.name)
                self._tasks.pop(state).cancel()
                await state.client.close()

    async def refresh(self) -> None:
        """Ask every host now, and wait for what they say."""
        await asyncio.gather(*(state.probe() for state in self.states))

    def look_again(self) -> None:
        """Ask every host soon: what is known of them helps no request."""
        for state in self.states:
            state.ask_now()

    async def close(self) -> None:
        """Stop asking."""
        tasks = [*self._tasks.values(), *([self._discovering] if self._discovering else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for state in self.states:
            await state.client.close()

    async def _keep_discovering(self) -> None:
        while True:
            await asyncio.sleep(DISCOVER_EVERY)
            await self.discover()
