"""What a gateway sees of an ANN host. Imports no torch."""

from __future__ import annotations

from typing import Protocol

from recsys.serving.host.host import Host
from recsys.serving.http.messages import SearchRequest, SearchResponse, Versions


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

    def give_up(self, reason: str) -> None:
        """End searches under way, since the host does not answer: they raise `Problem` (503)."""
        ...

    async def close(self) -> None:
        """Nothing more will be asked."""
        ...


class LocalHost:
    """A host in this process.

    Args:
        host: searched in the caller's thread, unless that takes long.
    """

    def __init__(self, host: Host) -> None:
        self.name, self._host = host.name, host

    async def version(self) -> Versions:
        """As `Host.version`."""
        return self._host.version()

    async def search(self, request: SearchRequest) -> SearchResponse:
        """As `Host.answer`."""
        return await self._host.answer(request)

    def give_up(self, reason: str) -> None:
        """A search in this process is over before anything else is done."""

    async def close(self) -> None:
        """Nothing to give back."""
