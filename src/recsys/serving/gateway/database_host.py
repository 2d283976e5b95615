"""A vector database as the host of a gateway. Imports no torch."""

from __future__ import annotations

from recsys.index.vector_database import DatabaseError, VectorDatabase
from recsys.serving.gateway.host_client import LocalHost
from recsys.serving.gateway.remote_host import HostFailed
from recsys.serving.http.messages import ModelVersions, SearchRequest, SearchResponse, Versions
from recsys.serving.http.problems import ServerFault, VersionNotHeld
from recsys.serving.pools import DATABASE


class DatabaseHost:
    """A `HostClient` for a host in this process whose collections lie in a database.

    A version counts as loaded while the database has its collection.
    """

    is_remote = False

    def __init__(self, local: LocalHost, database: VectorDatabase) -> None:
        self.name, self._local, self._database = local.name, local, database

    async def version(self) -> Versions:
        """Return the versions of the host whose collections exist; this is also the probe of the database."""
        versions = await self._local.version()
        try:
            present = set(await DATABASE.run(self._database.versions))
        except DatabaseError as error:
            raise HostFailed(str(error)) from error
        return {
            model: ModelVersions(
                held.serving if held.serving in present else None,
                [version for version in held.loaded if version in present],
                held.shard,
            )
            for model, held in versions.items()
        }

    async def search(self, request: SearchRequest) -> SearchResponse:
        """Search the collection of the version that the request names.

        Raises:
            ServerFault: If the database refuses this search. It stays the host of others.
            HostFailed: If the database does not answer.
        """
        try:
            return await self._local.search(request)
        except VersionNotHeld as error:
            for held in (await self.version()).values():
                if request.version in held.loaded or held.loaded:
                    raise VersionNotHeld(request.version, serving=held.serving, loaded=held.loaded) from error
            raise
        except ServerFault:
            # One request that the database cannot answer must not take it from all others.
            await self.version()
            raise

    def give_up(self, reason: str) -> None:
        """Do nothing: calls of the database have time limits."""

    async def close(self) -> None:
        """Do nothing: the connections of the database end with the process."""
