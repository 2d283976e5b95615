"""Protocol for calls of a gateway to an ANN host, and its implementation for the same process. Imports no torch."""

from __future__ import annotations

from typing import Protocol

from recsys.serving.host.host import Host
from recsys.serving.http.messages import SearchRequest, SearchResponse, Versions


class HostClient(Protocol):
    """A host, in this process or elsewhere."""

    name: str
    # Answers of other processes are checked.
    is_remote: bool

    async def version(self) -> Versions:
        """Return model -> versions that the host serves and has loaded now.

        Raises:
            Problem: If the host does not answer (503).
        """
        ...

    async def search(self, request: SearchRequest) -> SearchResponse:
        """Search the version that the request names.

        Raises:
            VersionNotHeld: If the host does not hold that version.
            Problem: If the request is invalid (400), or the host does not answer (503).
        """
        ...

    def give_up(self, reason: str) -> None:
        """End the searches under way because the host does not answer: they raise `Problem` (503)."""
        ...

    async def close(self) -> None:
        """Close the connections; no more calls follow."""
        ...


class LocalHost:
    """A host in this process, searched in the event loop, or in a thread if the search takes long."""

    is_remote = False

    def __init__(self, host: Host) -> None:
        self.name, self._host = host.name, host

    async def version(self) -> Versions:
        """Return the versions of the host."""
        self._host.require_sound()
        return self._host.version()

    async def search(self, request: SearchRequest) -> SearchResponse:
        """Search the version that the request names."""
        return await self._host.answer(request)

    def give_up(self, reason: str) -> None:
        """Do nothing: a host in this process always answers."""

    async def close(self) -> None:
        """Do nothing: there are no connections."""
