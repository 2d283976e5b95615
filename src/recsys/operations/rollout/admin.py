"""Client of the admin calls of hosts and gateways. Imports no torch."""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import Any

from recsys.core.errors import UserError
from recsys.serving.events import UserId
from recsys.serving.gateway.remote_host import Address
from recsys.serving.host.additions import Additions
from recsys.serving.host.desired_state import ROLLOUT_HEADER
from recsys.serving.http.admin_messages import (
    Canary,
    ChangesResponse,
    ForgetRequest,
    ForgetResponse,
    ItemsRequest,
    RolloutLock,
    VersionRequest,
)
from recsys.serving.http.codec import Decoder, encode
from recsys.serving.http.messages import ErrorResponse, ModelVersions, Versions
from recsys.serving.http.problems import Problem
from recsys.serving.tls import TLS

_versions = Decoder(Versions)
_error = Decoder(ErrorResponse)
_changes = Decoder(ChangesResponse)
_forgotten = Decoder(ForgetResponse)

ASK_SECONDS = 5.0
# Loading is slow, because a host verifies and checks a release of possibly millions of items.
LOAD_SECONDS = 900.0
# Seconds in which calls are repeated to a server that restarts, or that answers 503.
PATIENCE = 10.0
TRY_EVERY = 0.5
# Largest answer of a server.
MOST_BYTES = 64 << 20
# An embedding of a thousand numbers takes about 10 kB as JSON, so this stays below the usual limit of a request.
ITEMS_AT_ONCE = 100


class UnreachableError(UserError):
    """A server does not answer."""


class RefusedError(UserError):
    """A server refused a change. `status` is that of the answer; None if the answer itself was no refusal."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class AdminClient:
    """Client of one server.

    Args:
        address: host and port.
        token: token of its admin calls; None to send none.
        patience: seconds in which calls to a server that does not answer are repeated.
    """

    def __init__(self, address: Address, token: str | None, *, patience: float = PATIENCE) -> None:
        self.address, self.patience = address, patience
        self.name = f"{address[0]}:{address[1]}"
        self._headers = {"Content-Type": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def versions(self, model: str | None) -> ModelVersions:
        """Return the versions that the host serves and has loaded.

        Raises:
            UnreachableError: If the host does not answer.
            RefusedError: If it has several models and none is named.
        """
        held: Versions = _versions(self._call("GET", "/v1/version", message=None, seconds=ASK_SECONDS))
        if model is None and len(held) > 1:
            raise RefusedError(f"{self.name}: has several models ({', '.join(sorted(held))}), expected --model NAME")
        if model is None:
            return next(iter(held.values()), ModelVersions(None, []))
        return held.get(model, ModelVersions(None, []))

    def load(self, version: str, model: str | None) -> None:
        """Let a host load a version in addition to the others, and run its self-check."""
        self._call("POST", "/v1/admin/load", message=VersionRequest(version, model), seconds=LOAD_SECONDS)

    def load_tower(self, version: str) -> None:
        """Let a gateway load the user tower of a version."""
        self._call("POST", "/v1/admin/tower", message=VersionRequest(version), seconds=LOAD_SECONDS)

    def serve(self, version: str, model: str | None) -> None:
        """Let a host serve a version that it has loaded."""
        self._call("POST", "/v1/admin/serve", message=VersionRequest(version, model), seconds=ASK_SECONDS)

    def unload(self, version: str, model: str | None) -> None:
        """Let a host unload a version."""
        self._call("POST", "/v1/admin/unload", message=VersionRequest(version, model), seconds=ASK_SECONDS)

    def lock(self, token: str, owner: str, *, seconds: float, force: bool = False, once: bool = False) -> None:
        """Take or renew the lock of a rollout at a host, and send its token with later calls; 0 seconds end it.

        With `once` the call is not repeated.

        Raises:
            RefusedError: If another rollout has the lock (status 409).
        """
        self._headers[ROLLOUT_HEADER] = token
        message = RolloutLock(token, owner, seconds, force)
        self._call("POST", "/v1/admin/lock", message=message, seconds=ASK_SECONDS, once=once)

    def canary(self, version: str, share: float) -> None:
        """Let a gateway give a version to a share of the users."""
        self._call("POST", "/v1/admin/canary", message=Canary(version, share), seconds=ASK_SECONDS)

    def add_items(self, additions: Additions) -> int:
        """Add items to the index of the version that they were embedded for, and return their number.

        Each call is durable. If one is refused, the calls before it stay, and all calls can be repeated.
        """
        added = 0
        for begin in range(0, len(additions.items), ITEMS_AT_ONCE):
            part = slice(begin, begin + ITEMS_AT_ONCE)
            message = ItemsRequest(
                additions.version, list(map(dict, additions.items[part])), additions.embeddings[part]
            )
            answer: ChangesResponse = _changes(
                self._call("POST", "/v1/admin/items", message=message, seconds=ASK_SECONDS)
            )
            added += answer.changed
        return added

    def forget(self, user_ids: Sequence[UserId]) -> ForgetResponse:
        """Let a gateway erase users, and return what it removed and found."""
        message = ForgetRequest(list(user_ids))
        answer = self._call("POST", "/v1/admin/forget", message=message, seconds=LOAD_SECONDS)
        found: ForgetResponse = _forgotten(answer)
        return found

    def _call(self, method: str, path: str, *, message: Any, seconds: float, once: bool = False) -> bytes:
        body = b"" if message is None else encode(message)
        give_up = -float("inf") if once else time.monotonic() + self.patience
        while True:
            try:
                status, answer = call(self.address, method, path, seconds=seconds, body=body, headers=self._headers)
            except ssl.SSLCertVerificationError as error:
                raise UnreachableError(
                    f"{self.name}: its certificate is not accepted ({error.verify_message})"
                ) from error
            except (OSError, http.client.HTTPException) as error:
                if time.monotonic() > give_up:
                    reason = str(error) or type(error).__name__
                    raise UnreachableError(f"{self.name}: does not answer ({reason})") from error
                # Repeating a call is safe.
                time.sleep(TRY_EVERY)
                continue
            if status == 200:
                return answer
            # Refused for now: the state of the fleet cannot be read for a moment.
            if status == 503 and time.monotonic() <= give_up:
                time.sleep(TRY_EVERY)
                continue
            try:
                found: ErrorResponse = _error(answer)
                reason = found.error.message
            except Problem:
                reason = answer.decode(errors="replace")[:200] or "without a reason"
            raise RefusedError(f"{self.name}: {path} was refused with status {status}: {reason}", status)


def call(
    address: Address,
    method: str,
    path: str,
    *,
    seconds: float,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes]:
    """Send one request on a connection of its own, and return status and body of the answer.

    With RECSYS_TLS_CA it is a connection by TLS.
    """
    context = TLS.of_environment().client_context()
    if context is None:
        connection = http.client.HTTPConnection(*address, timeout=seconds)
    else:
        connection = http.client.HTTPSConnection(*address, timeout=seconds, context=context)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        answer = response.read(MOST_BYTES + 1)
        if len(answer) > MOST_BYTES:
            raise http.client.HTTPException(f"answers with more than {MOST_BYTES} bytes")
        return response.status, answer
    finally:
        connection.close()
