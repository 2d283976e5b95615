"""A host over the network. Imports no torch."""

from __future__ import annotations

from recsys.core.errors import UserError
from recsys.serving.gateway.http_client import HTTPClient, NoAnswerError, TooLateError
from recsys.serving.http.codec import Decoder, encode
from recsys.serving.http.messages import ErrorResponse, SearchRequest, SearchResponse, Versions
from recsys.serving.http.problems import Problem, VersionNotHeld

Address = tuple[str, int]

_versions = Decoder(Versions)
_search_response = Decoder(SearchResponse)
_error_response = Decoder(ErrorResponse)


class HostFailed(Problem):
    """A host did not answer, or not what it should (503); another one may. The message names the host."""

    def __init__(self, message: str) -> None:
        super().__init__(503, "unavailable", message=message)


class RemoteHost:
    """A `HostClient` over HTTP.

    Args:
        address: host and port.
        search_seconds: until a search is given up. Long, since a host that is busy with searches answers probes; what
            finds a host that hangs is these.
        probe_seconds: until the question for the versions is given up, and an attempt to connect.
    """

    def __init__(self, address: Address, search_seconds: float = 5.0, probe_seconds: float = 1.0) -> None:
        self.name = f"{address[0]}:{address[1]}"
        self.search_seconds, self.probe_seconds = search_seconds, probe_seconds
        self._client = HTTPClient(address, connect_seconds=probe_seconds)

    async def version(self) -> Versions:
        """Model -> what the host serves and has loaded, now.

        Raises:
            HostFailed: no answer.
        """
        try:
            body = await self._ask("GET", "/v1/version", b"", self.probe_seconds)
        except HostFailed as error:
            if isinstance(error.__cause__, TooLateError):
                raise
            # One connection that was cut says little of the host.
            body = await self._ask("GET", "/v1/version", b"", self.probe_seconds)
        try:
            versions: Versions = _versions(body)
        except Problem as error:
            raise HostFailed(f"{self.name}: its versions cannot be read ({error})") from error
        return versions

    async def search(self, request: SearchRequest) -> SearchResponse:
        """Search of the version that the request names.

        Raises:
            VersionNotHeld: the host does not hold it.
            HostFailed: no answer.
            Problem: the request is wrong, and would be elsewhere too.
        """
        body = await self._ask("POST", "/v1/search", encode(request), self.search_seconds, request.version)
        try:
            response: SearchResponse = _search_response(body)
        except Problem as error:
            raise HostFailed(f"{self.name}: its answer cannot be read ({error})") from error
        return response

    async def _ask(self, method: str, path: str, body: bytes, seconds: float, version: str = "") -> bytes:
        try:
            status, answer = await self._client.request(method, path, body=body, seconds=seconds)
        except NoAnswerError as error:
            raise HostFailed(f"{self.name}: {error}") from error
        if status == 200:
            return answer
        try:
            found: ErrorResponse = _error_response(answer)
        except Problem as error:
            raise HostFailed(f"{self.name}: status {status} without a reason") from error
        if status == 409 and isinstance(found.loaded, list):
            serving = found.serving if isinstance(found.serving, str) else None
            raise VersionNotHeld(version, serving=serving, loaded=found.loaded)
        if 400 <= status < 500:
            raise Problem(status, found.error.code, message=found.error.message, field=found.error.field)
        raise HostFailed(f"{self.name}: status {status}, {found.error.message}")

    def give_up(self, reason: str) -> None:
        """End searches under way: they raise `HostFailed`."""
        self._client.give_up(reason)

    async def close(self) -> None:
        """Close the connections that are not in use; the others when they have answered."""
        await self._client.close()


def parse_address(text: str) -> Address:
    """Host and port of `http://HOST:PORT` or `HOST:PORT`.

    Raises:
        UserError: it is something else.
    """
    host, _, port = text.removeprefix("http://").rstrip("/").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or "/" in host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"hosts: found {text!r}, expected http://HOST:PORT or dns:NAME:PORT")
    return host, int(port)
