"""HTTP client of one address: kept connections, a deadline and a size limit for every request. Imports no torch."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping

import aiohttp

from recsys.serving.http.access import ANSWER_PROOF, REQUEST_PROOF, is_proven, request_proof

# Largest response in bytes. A search of 64 users for 1,000 items each takes about 3 MB.
MAX_RESPONSE_BYTES = 64 << 20
# Seconds after which an idle connection is closed, unless the other side closes it earlier.
KEEP_SECONDS = 60.0


class NoAnswerError(Exception):
    """A request got no whole response: refused, cut, late, too large or not HTTP. The message names the reason."""


class TooLateError(NoAnswerError):
    """The other side took too long, so another attempt at once would not help."""


class HTTPClient:
    """Requests to one address over connections that are kept for the next requests.

    `tls` is the context of connections by TLS, and `name` the one that a certificate must have, if it is not the
    address. Only for requests that may be sent twice: a request whose connection closes before the response is sent
    once more.
    """

    def __init__(
        self,
        address: tuple[str, int],
        connect_seconds: float = 0.5,
        *,
        max_bytes: int = MAX_RESPONSE_BYTES,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        name: str | None = None,
    ) -> None:
        self._tls, self._name = tls, name
        self.address, self.connect_seconds, self.max_bytes = address, connect_seconds, max_bytes
        self._token = token
        # Deadlines of the requests under way -> reason for giving up, empty if not given up.
        self._deadlines: dict[asyncio.Timeout, str] = {}
        self._open: aiohttp.ClientSession | None = None
        self._is_closed = False

    async def request(
        self,
        method: str,
        path: str,
        *,
        seconds: float,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        max_bytes: int = MAX_RESPONSE_BYTES,
    ) -> tuple[int, bytes]:
        """Send a request and return status and body of the response. The time limit includes connecting.

        Raises:
            NoAnswerError: If there is no whole response in time. The other side may have acted on the request.
        """
        deadline = asyncio.timeout(seconds)
        self._deadlines[deadline] = ""
        try:
            async with deadline:
                try:
                    return await self._send(
                        method, path, body=body, headers=headers, max_bytes=min(max_bytes, self.max_bytes)
                    )
                except aiohttp.ClientConnectorError:
                    raise
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                    # The other side closes connections that were idle for long, and may do so at this moment.
                    return await self._send(
                        method, path, body=body, headers=headers, max_bytes=min(max_bytes, self.max_bytes)
                    )
        except aiohttp.ConnectionTimeoutError as error:
            raise TooLateError(f"took no connection within {self.connect_seconds:g} s") from error
        except TimeoutError as error:
            if reason := self._deadlines[deadline]:
                raise NoAnswerError(reason) from error
            raise TooLateError(f"did not answer within {seconds:g} s") from error
        except aiohttp.ClientConnectorCertificateError as error:
            raise NoAnswerError(f"shows a certificate that is not accepted ({error.certificate_error})") from error
        except aiohttp.ClientConnectorError as error:
            raise NoAnswerError(f"took no connection ({error.os_error.strerror or error.os_error})") from error
        except aiohttp.ServerDisconnectedError as error:
            raise NoAnswerError("closed the connection") from error
        except aiohttp.ClientPayloadError as error:
            raise NoAnswerError("cut the connection in the middle of an answer") from error
        except aiohttp.ClientResponseError as error:
            raise NoAnswerError(f"does not speak HTTP ({error.message})") from error
        except aiohttp.ClientError as error:
            raise NoAnswerError(f"closed the connection ({error})") from error
        finally:
            del self._deadlines[deadline]
            if self._is_closed:
                await self.close()

    async def _send(
        self, method: str, path: str, *, body: bytes, headers: Mapping[str, str] | None, max_bytes: int
    ) -> tuple[int, bytes]:
        nonce = ""
        if self._token is not None:
            nonce, proof = request_proof(self._token, path, body)
            headers = {**(headers or {}), REQUEST_PROOF: proof}
        # Another place has no answer: a false host could send the gateway anywhere.
        asked = self._session().request(
            method, path, data=body, headers=headers, server_hostname=self._name, allow_redirects=False
        )
        async with asked as response:
            parts, size = [], 0
            async for part in response.content.iter_any():
                parts.append(part)
                size += len(part)
                if size > max_bytes:
                    response.close()
                    raise NoAnswerError(f"answers with more than {max_bytes} bytes")
            answer, given = b"".join(parts), response.headers.get(ANSWER_PROOF, "")
            if self._token is not None and not is_proven(
                self._token, nonce, status=response.status, body=answer, given=given
            ):
                raise NoAnswerError("does not prove that it knows the token of hosts")
            return response.status, answer

    def _session(self) -> aiohttp.ClientSession:
        # Created by the first request, because a session belongs to the running event loop.
        if self._open is None:
            host, port = self.address
            self._open = aiohttp.ClientSession(
                f"{'http' if self._tls is None else 'https'}://{f'[{host}]' if ':' in host else host}:{port}",
                connector=aiohttp.TCPConnector(
                    limit=0, keepalive_timeout=KEEP_SECONDS, ssl=True if self._tls is None else self._tls
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                # The limit of bytes is for what an answer becomes.
                auto_decompress=False,
                headers={"Content-Type": "application/json"},
                skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.connect_seconds),
            )
        return self._open

    def give_up(self, reason: str) -> None:
        """End all requests under way: they raise `NoAnswerError` with this reason."""
        for deadline in self._deadlines:
            if not deadline.expired():
                self._deadlines[deadline] = reason
                deadline.reschedule(0.0)

    async def close(self) -> None:
        """Close the connections, now or when the requests under way have ended."""
        self._is_closed = True
        if self._open is not None and not self._deadlines:
            await self._open.close()
