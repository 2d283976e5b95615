"""Router: chooses the hosts and the version of a request, and sends searches to them. Imports no torch.

The version of a request is one that a host serves, according to the last probe. That state may be outdated, which costs
an attempt and never mixes versions: a search names its version, a host that does not hold it refuses, and the gateway
assigns the request again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import NamedTuple

from recsys.serving.gateway.answer_check import Screen, checked
from recsys.serving.gateway.fleet import Fleet, HostState
from recsys.serving.gateway.remote_host import HostBusy, HostFailed
from recsys.serving.gateway.shard_merge import for_shards, merge
from recsys.serving.http.admin_messages import Canary
from recsys.serving.http.messages import Hosts, ModelVersions, SearchRequest, SearchResponse
from recsys.serving.http.problems import Problem, VersionNotHeld, unavailable
from recsys.serving.observability.metrics import Metrics

UserId = int | str | None
# Seconds without an answer to any search after which a second host gets the request too.
SILENCE = 0.3
# Seconds in which a host that had too many searches is used only as a last resort.
BUSY_REST = 0.1


class Assignment(NamedTuple):
    """Version of a request, and its hosts, one of each shard. Made before the request is embedded."""

    version: str
    hosts: tuple[HostState, ...]


class RoutedResponse(NamedTuple):
    """Response to a search, and the names of the hosts that gave it."""

    response: SearchResponse
    hosts: tuple[str, ...]


class Router:
    """Sends searches to hosts.

    Args:
        model: model that is served; None if every host has one model.
        screen: finds unknown and removed items in the answers of other processes; None to trust hosts.
        reread: reads the item updates again before an answer counts as odd, because an item may be a moment old.
        is_usable: returns False for versions whose user tower cannot be loaded, which are not assigned.
    """

    def __init__(
        self,
        fleet: Fleet,
        model: str | None = None,
        *,
        metrics: Metrics | None = None,
        screen: Screen | None = None,
        reread: Callable[[], Awaitable[None]] | None = None,
        is_usable: Callable[[str], bool] = lambda version: True,  # noqa: ARG005
    ) -> None:
        self.fleet, self.model, self._screen, self._is_usable = fleet, model, screen, is_usable
        self._reread = reread
        self.canary: Canary | None = None
        self.metrics = metrics or Metrics()
        self._under_way: set[asyncio.Task[tuple[SearchResponse, str]]] = set()
        self._turn = 0

    def assign(self, user_id: UserId = None, wanted: str | None = None) -> Assignment:
        """Choose the hosts of a request, and a version that all of them hold, by their last probes.

        Raises:
            VersionNotHeld: If some shard does not hold the version that is wanted.
            Problem: If no host of a shard is up, or the shards have no version in common (503).
        """
        is_named = self.model is not None
        shards = [
            [
                (state, self._of(state))
                for state in shard
                if state.failure is None and (is_named or len(state.versions) < 2)
            ]
            for shard in self.fleet.shards
        ]
        for number, shard in enumerate(shards):
            if not shard:
                self.fleet.probe_all()
                reasons = (
                    "; ".join(self._failure(state) or "" for state in self.fleet.shards[number]) or "there are none"
                )
                raise unavailable(f"{self._shard_prefix(number)}no host is up: {reasons}")
        held = [{version for _, of_host in shard for version in of_host.loaded} for shard in shards]
        common = set.intersection(*held)
        if len(common) > 1:
            # If none is usable, the reason comes from the tower itself.
            common = {version for version in common if self._is_usable(version)} or common
        version = wanted
        if wanted is not None and wanted not in common:
            serving = self._first(shards, common)
            current = self._of(serving).serving if serving else None
            raise VersionNotHeld(wanted, serving=current, loaded=sorted(common))
        if version is None and self.canary is not None and user_id in self.canary:
            if self.canary.version in common:
                version = self.canary.version
            else:
                self.metrics.routing["canary_not_held"].inc()
        first = None
        if version is None:
            first = self._first(shards, common)
            version = self._of(first).serving if first is not None else None
        if version is None:
            self.fleet.probe_all()
            raise unavailable(self._nothing_common(held, common))
        hosts = []
        for shard in shards:
            holders = [state for state, of_host in shard if version in of_host.loaded]
            hosts.append(first if first in holders else self._least_busy(holders))
        return Assignment(version, tuple(hosts))

    async def search(self, assignment: Assignment, request: SearchRequest) -> RoutedResponse:
        """Search all shards and merge their results, all of the version that the request names.

        A host that does not answer is replaced by another one that holds the version.

        Raises:
            VersionNotHeld: If a shard has no running host with the version. Assign and embed the request again.
            HostFailed: If all hosts that hold the version failed.
            Problem: If the request is invalid (400).
        """
        if len(self.fleet.shards) == 1:
            response, host = await self._search_shard(0, assignment.hosts[0], request=request)
            return RoutedResponse(response, (host,))
        part = for_shards(request)
        searches = [self._search_shard(number, host, request=part) for number, host in enumerate(assignment.hosts)]
        answers = await asyncio.gather(*searches, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        good = [answer for answer in answers if not isinstance(answer, BaseException)]
        return RoutedResponse(merge(request, [response for response, _ in good]), tuple(host for _, host in good))

    def hosts(self) -> Hosts:
        """Return host -> versions that it serves and holds; None for a host that does not answer."""
        return {state.name: state.versions if state.failure is None else None for state in self.fleet.states}

    async def _search_shard(
        self, shard: int, state: HostState, *, request: SearchRequest
    ) -> tuple[SearchResponse, str]:
        """Return the first response of a host of the shard, and the host's name.

        If the first host is silent, a second one gets the request too ("The Tail at Scale", Dean and Barroso 2013).
        """
        tried: set[HostState] = set()
        if state.failure is not None and (others := self._holders(shard, request.version, tried=tried)):
            # The host went down while the request waited for its microbatch.
            state = self._least_busy(others)
        if len(self.fleet.shards[shard]) == 1:
            return await self._attempt(state, request)
        tried.add(state)
        of = {self._begin(state, request): state}
        waiting = set(of)
        refusal: tuple[HostState, Problem] | None = None
        while True:
            done, waiting = await asyncio.wait(waiting, timeout=SILENCE, return_when=asyncio.FIRST_COMPLETED)
            errors = [task.exception() for task in done]
            if None in errors:
                if refusal is not None:
                    refusal[0].fail(f"{refusal[0].name}: refused what another host answers: {refusal[1]}")
                return next(task.result() for task, error in zip(done, errors, strict=True) if error is None)
            for task, error in zip(done, errors, strict=True):
                if not isinstance(error, VersionNotHeld | HostFailed):
                    assert error is not None
                    # Another host decides whether the request is wrong or this host is.
                    if refusal is not None or not isinstance(error, Problem) or error.status not in (400, 413):
                        raise error if refusal is None else refusal[1]
                    refusal = of[task], error
            if not done:
                if not state.is_silent(SILENCE):
                    continue
                state.suspect(SILENCE)
            if holders := self._holders(shard, request.version, tried=tried):
                self.metrics.routing["retry" if done else "hedge"].inc()
                state = self._least_busy(holders)
                tried.add(state)
                task = self._begin(state, request)
                of[task] = state
                waiting.add(task)
            elif not waiting and refusal is not None:
                raise refusal[1]
            elif not waiting:
                raise next(error for error in errors if error is not None)

    def _begin(self, state: HostState, request: SearchRequest) -> asyncio.Task[tuple[SearchResponse, str]]:
        task = asyncio.create_task(self._attempt(state, request))
        # An attempt that nobody waits for any more runs to completion and updates the state of its host.
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[tuple[SearchResponse, str]]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            # Retrieve the exception so that asyncio does not warn.
            task.exception()

    async def _attempt(self, state: HostState, request: SearchRequest) -> tuple[SearchResponse, str]:
        state.in_flight += 1
        try:
            response = await state.client.search(request)
            if response.version != request.version:
                self.metrics.routing["mismatch_refused"].inc()
                raise HostFailed(f"{state.name}: answered from {response.version}, expected {request.version}")
            if state.client.is_remote:
                answer = checked(request, response, self._screen)
                if isinstance(answer, str) and self._reread is not None:
                    await self._reread()
                    answer = checked(request, response, self._screen)
                if isinstance(answer, str):
                    self.metrics.routing["answer_refused"].inc()
                    raise HostFailed(f"{state.name}: {answer}")
                response = answer
        except VersionNotHeld as refusal:
            model = self.model or next(iter(state.versions), "")
            state.versions = {**state.versions, model: ModelVersions(refusal.serving, refusal.loaded)}
            raise
        except HostBusy:
            state.suspect(BUSY_REST)
            raise
        except HostFailed as failure:
            state.fail(str(failure))
            raise
        finally:
            state.in_flight -= 1
        state.succeed()
        return response, state.name

    def _failure(self, state: HostState) -> str | None:
        if state.failure is None and self.model is None and len(state.versions) > 1:
            names = ", ".join(sorted(state.versions))
            return f"{state.name} holds several models ({names}): the gateway needs model=NAME"
        return state.failure

    def _holders(self, shard: int, version: str, *, tried: Collection[HostState]) -> list[HostState]:
        states = self.fleet.shards[shard]
        return [s for s in states if s not in tried and self._failure(s) is None and version in self._of(s).loaded]

    def _first(
        self, shards: Sequence[Sequence[tuple[HostState, ModelVersions]]], common: Collection[str]
    ) -> HostState | None:
        """Return the host whose version the request gets: the least busy one that serves a version all shards hold."""
        for shard in shards:
            able = [state for state, of_host in shard if of_host.serving in common]
            if able:
                return self._least_busy(able)
        return None

    def _least_busy(self, states: Sequence[HostState]) -> HostState:
        if len(states) == 1:
            return states[0]
        self._turn += 1
        turn = self._turn % len(states)
        return min([*states[turn:], *states[:turn]], key=lambda state: (state.is_resting, state.in_flight))

    def _of(self, state: HostState) -> ModelVersions:
        if self.model is not None:
            return state.versions.get(self.model, _NOTHING)
        return next(iter(state.versions.values()), _NOTHING)

    def _shard_prefix(self, shard: int) -> str:
        return f"shard {shard}: " if len(self.fleet.shards) > 1 else ""

    def _nothing_common(self, held: Sequence[Collection[str]], common: Collection[str]) -> str:
        if common:
            return f"no host serves a version; loaded are {', '.join(sorted(common))}"
        if len(held) == 1:
            return "no host holds a version"
        parts = "; ".join(f"shard {n} holds {', '.join(sorted(v)) or 'none'}" for n, v in enumerate(held))
        return f"no version is held by every shard: {parts}"


_NOTHING = ModelVersions(None, [])
