"""What a gateway sees of an ANN host. Imports no torch."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from recsys.serving.host import Host
from recsys.serving.messages import Hosts, SearchRequest, SearchResponse, Versions
from recsys.serving.problems import VersionNotHeld, unavailable


class HostClient(Protocol):
    """A host, in this process or elsewhere."""

    name: str

    async def version(self) -> Versions:
        """Model -> what the host serves and has loaded, now.

        Raises:
            Problem: it does not answer (503).
        """
        ...

    async def search(self, request: SearchRequest) -> SearchResponse:
        """Search of the version that the request names.

        Raises:
            VersionNotHeld: the host does not hold it.
            Problem: the request is wrong (400), or the host does not answer (503).
        """
        ...


class LocalAssignment(NamedTuple):
    """The version that a request gets."""

    version: str


class LocalAnswer(NamedTuple):
    """What the host in this process answered."""

    response: SearchResponse
    hosts: tuple[str, ...]


class LocalRouter:
    """Routing where there is one host, in this process: what it serves is known, not asked for.

    Args:
        host: searched in the caller's thread, since a batch is small.
        model: that is served; None where the host has one.
    """

    def __init__(self, host: Host, model: str | None = None) -> None:
        self._host, self._model, self._names = host, model, (host.name,)

    def assign(self, user_id: int | str | None = None, version: str | None = None) -> LocalAssignment:  # noqa: ARG002
        """The version that is served, or the one that is asked for.

        Raises:
            VersionNotHeld: the host does not hold the one that is asked for.
            Problem: nothing is served (503).
        """
        versions = self._host.version()
        if self._model is None and len(versions) > 1:
            raise unavailable(f"{self._host.name} holds several models ({', '.join(versions)}); expected model=NAME")
        held = versions.get(self._model) if self._model is not None else next(iter(versions.values()), None)
        if held is None or held.serving is None:
            raise unavailable(f"{self._host.name} serves nothing yet")
        if version is not None and version not in held.loaded:
            raise VersionNotHeld(version, held.serving, held.loaded)
        return LocalAssignment(version or held.serving)

    async def search(self, assignment: LocalAssignment, request: SearchRequest) -> LocalAnswer:  # noqa: ARG002
        """As `Host.search`."""
        return LocalAnswer(self._host.search(request), self._names)

    def hosts(self) -> Hosts:
        """Host -> versions."""
        return {self._host.name: self._host.version()}
