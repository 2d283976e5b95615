"""Calls to the admin addresses of hosts and gateways. Imports no torch."""

from __future__ import annotations

import http.client
import time
from typing import Any

from recsys.core.errors import UserError
from recsys.serving.gateway.remote_host import Address
from recsys.serving.host.additions import Additions
from recsys.serving.http.codec import Decoder, encode
from recsys.serving.http.messages import (
    CanaryRequest,
    ChangesResponse,
    ErrorResponse,
    ItemsRequest,
    ModelVersions,
    VersionRequest,
    Versions,
)
from recsys.serving.http.problems import Problem

_versions = Decoder(Versions)
_error = Decoder(ErrorResponse)
_changes = Decoder(ChangesResponse)

ASK_SECONDS = 5.0
# A release of millions of items is verified and checked while it is loaded.
LOAD_SECONDS = 900.0
# A process that is started again has so long to answer.
PATIENCE = 10.0
TRY_EVERY = 0.5
# A thousand numbers of an embedding take some 10 kB as JSON: below the usual limit of a request.
ITEMS_AT_ONCE = 100


class UnreachableError(UserError):
    """A server does not answer."""


class RefusedError(UserError):
    """A server answered, and will not do it.

    Args:
        message: what is told.
        status: of the answer; None: the answer itself was no refusal.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Admin:
    """One server.

    Args:
        address: host and port.
        token: of its admin calls.
        patience: seconds for a server that does not answer, before that is an error.
    """

    def __init__(self, address: Address, token: str | None, patience: float = PATIENCE) -> None:
        self.address, self.patience = address, patience
        self.name = f"{address[0]}:{address[1]}"
        self._headers = {"Content-Type": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def versions(self, model: str | None) -> ModelVersions:
        """What the host serves and holds of a model; None: of its only one.

        Raises:
            UnreachableError: no answer.
            RefusedError: it has no such model, or several where none is named.
        """
        held: Versions = _versions(self._call("GET", "/v1/version", None, ASK_SECONDS))
        if model is None and len(held) > 1:
            raise RefusedError(f"{self.name}: has several models ({', '.join(sorted(held))}), expected --model NAME")
        if model is None:
            return next(iter(held.values()), ModelVersions(None, []))
        return held.get(model, ModelVersions(None, []))

    def load(self, version: str, model: str | None) -> None:
        """Have a host load a version beside the others; it has answered its self-check."""
        self._call("POST", "/v1/admin/load", VersionRequest(version, model), LOAD_SECONDS)

    def load_tower(self, version: str) -> None:
        """Have a gateway load the user tower of a version."""
        self._call("POST", "/v1/admin/tower", VersionRequest(version), LOAD_SECONDS)

    def serve(self, version: str, model: str | None) -> None:
        """Make it the version that the host serves."""
        self._call("POST", "/v1/admin/serve", VersionRequest(version, model), ASK_SECONDS)

    def unload(self, version: str, model: str | None) -> None:
        """Let go of a version."""
        self._call("POST", "/v1/admin/unload", VersionRequest(version, model), ASK_SECONDS)

    def canary(self, version: str, share: float) -> None:
        """Have a gateway give a version to a share of the users."""
        self._call("POST", "/v1/admin/canary", CanaryRequest(version, share), ASK_SECONDS)

    def add_items(self, additions: Additions) -> int:
        """Add items to the index of the version that they were embedded for; their number.

        Each call is durable by itself: where one is refused, those before it stay, and all may be made again.
        """
        added = 0
        for begin in range(0, len(additions.items), ITEMS_AT_ONCE):
            part = slice(begin, begin + ITEMS_AT_ONCE)
            message = ItemsRequest(
                additions.version, list(map(dict, additions.items[part])), additions.embeddings[part]
            )
            answer: ChangesResponse = _changes(self._call("POST", "/v1/admin/items", message, ASK_SECONDS))
            added += answer.changed
        return added

    def _call(self, method: str, path: str, message: Any, seconds: float) -> bytes:
        give_up = time.monotonic() + self.patience
        while True:
            try:
                status, body = self._once(method, path, b"" if message is None else encode(message), seconds)
            except (OSError, http.client.HTTPException) as error:
                if time.monotonic() > give_up:
                    reason = str(error) or type(error).__name__
                    raise UnreachableError(f"{self.name}: does not answer ({reason})") from error
                # Every call may be made twice.
                time.sleep(TRY_EVERY)
                continue
            if status == 200:
                return body
            try:
                found: ErrorResponse = _error(body)
                reason = found.error.message
            except Problem:
                reason = body.decode(errors="replace")[:200] or "without a reason"
            raise RefusedError(f"{self.name}: {path} was refused with status {status}: {reason}", status)

    def _once(self, method: str, path: str, body: bytes, seconds: float) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(*self.address, timeout=seconds)
        try:
            connection.request(method, path, body, self._headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()
