"""A host that is called over HTTP. Imports no torch."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping

from recsys.core.errors import UserError
from recsys.serving.gateway.answer_check import MAX_VERSION_BYTES, largest_answer, oddity_of_versions
from recsys.serving.gateway.http_client import HTTPClient, NoAnswerError, TooLateError
from recsys.serving.http.admission import DEADLINE_HEADER, OVERLOADED, deadline, is_late, overloaded
from recsys.serving.http.codec import Decoder, encode
from recsys.serving.http.messages import ErrorResponse, SearchRequest, SearchResponse, Versions
from recsys.serving.http.problems import Problem, VersionNotHeld
from recsys.serving.tls import TLS

Address = tuple[str, int]

_versions = Decoder(Versions)
_search_response = Decoder(SearchResponse)
_reasonresponse = Decoder(ErrorResponse)

# Refusals that may be about the request. Any other 4xx, such as a token that a host does not accept, is about the host.
_OF_THE_REQUEST = {400: "bad_request", 413: "too_large"}
_LATE = "the deadline of the request has passed"


class HostFailed(Problem):
    """A host gave no usable answer (503), but another host may. The message names the host."""

    def __init__(self, message: str) -> None:
        super().__init__(503, "unavailable", message=message)


class HostBusy(HostFailed):
    """A host has more searches than it can answer. It works, and another one may have time."""


class RemoteHost:
    """A `HostClient` over HTTP.

    The time limit of a search is long, because a host that is busy with searches still answers probes, and a host that
    hangs is found by its probes. `probe_seconds` also limits a new connection.
    """

    is_remote = True

    def __init__(
        self,
        address: Address,
        search_seconds: float = 5.0,
        *,
        probe_seconds: float = 1.0,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        tls_name: str | None = None,
    ) -> None:
        self.name = f"{address[0]}:{address[1]}"
        self.search_seconds, self.probe_seconds = search_seconds, probe_seconds
        self._client = HTTPClient(address, connect_seconds=probe_seconds, token=token, tls=tls, name=tls_name)

    async def version(self) -> Versions:
        """Return model -> versions that the host serves and has loaded now."""
        try:
            body = await self._call("GET", "/v1/version", seconds=self.probe_seconds, max_bytes=MAX_VERSION_BYTES)
        except HostFailed as error:
            if isinstance(error.__cause__, TooLateError):
                raise
            # One connection that was cut is no reason to stop using the host.
            body = await self._call("GET", "/v1/version", seconds=self.probe_seconds, max_bytes=MAX_VERSION_BYTES)
        try:
            versions: Versions = _versions(body)
        except Problem as error:
            raise HostFailed(f"{self.name}: its versions cannot be read ({error})") from error
        if (oddity := oddity_of_versions(versions)) is not None:
            raise HostFailed(f"{self.name}: {oddity}")
        return versions

    async def search(self, request: SearchRequest) -> SearchResponse:
        """Search the version that the request names."""
        body, seconds, headers = encode(request), self.search_seconds, {}
        if (until := deadline.get()) is not None:
            remaining = until - time.monotonic()
            if remaining <= 0:
                raise overloaded(_LATE)
            seconds, headers = min(seconds, remaining), {DEADLINE_HEADER: str(int(1000 * remaining))}
        try:
            answer = await self._call(
                "POST",
                "/v1/search",
                seconds=seconds,
                body=body,
                headers=headers,
                version=request.version,
                max_bytes=largest_answer(request),
            )
        except HostFailed as error:
            if isinstance(error.__cause__, TooLateError) and is_late():
                # The client set a time that was too short, which is no fault of the host.
                raise overloaded(_LATE) from error
            raise
        try:
            response: SearchResponse = _search_response(answer)
        except Problem as error:
            raise HostFailed(f"{self.name}: its answer cannot be read ({error})") from error
        return response

    async def _call(
        self,
        method: str,
        path: str,
        *,
        seconds: float,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        version: str = "",
        max_bytes: int,
    ) -> bytes:
        try:
            status, answer = await self._client.request(
                method, path, body=body, seconds=seconds, headers=headers, max_bytes=max_bytes
            )
        except NoAnswerError as error:
            raise HostFailed(f"{self.name}: {error}") from error
        if status == 200:
            return answer
        try:
            refusal: ErrorResponse = _reasonresponse(answer)
        except Problem as error:
            raise HostFailed(f"{self.name}: status {status} without a reason") from error
        if status == 409 and isinstance(refusal.loaded, list):
            serving = refusal.serving if isinstance(refusal.serving, str) else None
            raise VersionNotHeld(version, serving=serving, loaded=refusal.loaded)
        if status == 503 and refusal.error.code == OVERLOADED:
            raise HostBusy(f"{self.name}: {refusal.error.message}")
        if status in _OF_THE_REQUEST:
            reason = refusal.error
            raise Problem(status, _OF_THE_REQUEST[status], message=reason.message, field=reason.field)
        raise HostFailed(f"{self.name}: status {status}, {refusal.error.message}")

    def give_up(self, reason: str) -> None:
        """End the searches under way: they raise `HostFailed`."""
        self._client.give_up(reason)

    async def close(self) -> None:
        """Close the connections, now or when the searches under way have ended."""
        await self._client.close()


def parse_address(text: str, *, is_tls: bool | None = None) -> Address:
    """Return host and port of `http://HOST:PORT` or `HOST:PORT`, and with TLS of `https://HOST:PORT`.

    `is_tls` says whether calls use TLS; None for what the environment of commands says.
    """
    if text.startswith("https://"):
        if not (TLS.of_environment().ca is not None if is_tls is None else is_tls):
            raise UserError(
                f"hosts: found {text!r}, expected http://HOST:PORT or dns:NAME:PORT; TLS needs RECSYS_TLS_CA"
            )
        text = text.removeprefix("https://")
    host, _, port = text.removeprefix("http://").rstrip("/").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or "/" in host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"hosts: found {text!r}, expected http://HOST:PORT or dns:NAME:PORT")
    return host, int(port)
