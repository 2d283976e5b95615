"""Access to calls: tokens by role, names of the server, origins of pages, and proofs of hosts. Imports no torch.

Without a token a role is open, except `admin`, which is then closed. The admin token is valid for every role.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recsys.core.errors import UserError
from recsys.serving.http.endpoint import Endpoint
from recsys.serving.http.problems import Problem, bad_request, forbidden, unauthorized

LEAST_CHARACTERS = 16
# Headers by which a gateway and a host show each other that both know the token, without sending it.
REQUEST_PROOF, ANSWER_PROOF = "x-recsys-request-proof", "x-recsys-answer-proof"
_OPEN = ("/healthz", "/readyz", "/metrics", "/schema")
_ROLES = {"/v1/events": "events", "/v1/outcomes": "events", "/v1/search": "host", "/v1/version": "host"}
Headers = Mapping[bytes, bytes]
# An address of IPv6 in brackets or a name, and a port.
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::[0-9]{0,5})?", re.ASCII)
# Headers that decide, so that two different ones would be two requests.
_SINGLE = (b"host", b"origin", b"authorization", b"content-type", b"content-length", REQUEST_PROOF.encode())


def check_single(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Refuse a request with two headers of which only one can count.

    Raises:
        Problem: If it has them.
    """
    names = [name for name, _ in headers]
    for name in _SINGLE:
        if names.count(name) > 1:
            raise bad_request(f"{name.decode()}: found {names.count(name)} headers, expected one")


def check_token(place: str, token: object) -> None:
    """Refuse a token that is no text, or that can be guessed.

    Raises:
        UserError: If it is.
    """
    if token is None:
        return
    if not isinstance(token, str):
        raise UserError(f"{place}: found a {type(token).__name__}, expected a text in quotes")
    if len(token) < LEAST_CHARACTERS or not token.isascii() or not token.isprintable() or token != token.strip():
        raise UserError(
            f"{place}: found {len(token)} characters, expected at least {LEAST_CHARACTERS} letters, digits and signs; "
            "`openssl rand -hex 24` makes a token"
        )


@dataclass(frozen=True, kw_only=True)
class Access:
    """Rules of one server.

    Attributes:
        admin, read, events, host: token of each role.
        names: names by which requests may address the server, besides addresses and names without a dot; None for all.
        origins: further origins of pages that may call the server, such as https://HOST.
    """

    admin: str | None = None
    read: str | None = None
    events: str | None = None
    host: str | None = None
    names: Sequence[str] | None = None
    origins: Sequence[str] = ()

    def role(self, endpoint: Endpoint) -> str | None:
        """Return the role that may call an address; None for everybody."""
        if endpoint.is_admin:
            return "admin"
        return None if endpoint.path in _OPEN else _ROLES.get(endpoint.path, "read")

    def is_open(self, endpoint: Endpoint) -> bool:
        """Return True if everybody may call an address."""
        role = self.role(endpoint)
        return role is None or (role != "admin" and getattr(self, role) is None)

    def check_place(self, headers: Headers) -> None:
        """Refuse a request that a page of another site sent, or that was sent to a name of another site.

        Raises:
            Problem: 403 for an origin, 421 for a name.
        """
        place, name, is_local = _parse_host(headers.get(b"host", b""))
        if place and name is None:
            raise bad_request(f"Host: found {place[:80]!r}, expected NAME or NAME:PORT")
        if place and self.names is not None and not (is_local or name in self.names or place in self.names):
            raise Problem(421, "misdirected", message=f"Host: found {place[:80]}; access.hosts= lists further names")
        origin = headers.get(b"origin")
        if origin is not None:
            found = origin.decode("latin-1").lower()
            if found not in (f"http://{place}", f"https://{place}", *self.origins):
                raise forbidden(
                    f"Origin: found {found[:80]}, expected a page of this server, or one of access.origins="
                )

    def check_caller(self, endpoint: Endpoint, headers: Headers, body: bytes) -> None:
        """Refuse a caller without the token of the role; `body` is part of the proof of a gateway.

        Raises:
            Problem: 401 without the token, 403 if an admin call is made to a server without tokens.
        """
        if self.is_open(endpoint):
            return
        role = self.role(endpoint)
        assert role is not None
        token: str | None = getattr(self, role)
        if token is None:
            raise forbidden("admin calls need admin_token= (or RECSYS_ADMIN_TOKEN), and this server has none")
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        given = given.strip(b" ") if scheme.lower() == b"bearer" else b""
        valid = [hmac.compare_digest(given, one.encode()) for one in (token, self.admin) if one]
        if any(valid) or (role == "host" and self._has_proof(endpoint, headers, body)):
            return
        raise unauthorized("expected the header `Authorization: Bearer TOKEN` with the token of this server")

    def _has_proof(self, endpoint: Endpoint, headers: Headers, body: bytes) -> bool:
        nonce, _, given = headers.get(REQUEST_PROOF.encode(), b"").decode("latin-1").partition(".")
        assert self.host is not None
        wanted = _proof(self.host, "request", nonce, endpoint.path, body=body if endpoint.method == "POST" else b"")
        return bool(nonce) and hmac.compare_digest(given.encode(), wanted.encode())

    def answer_proof(self, headers: Headers, status: int, body: bytes) -> str | None:
        """Return the proof of an answer to a gateway that sent one; None if none is expected."""
        nonce, _, _ = headers.get(REQUEST_PROOF.encode(), b"").decode("latin-1").partition(".")
        return _proof(self.host, "answer", nonce, str(status), body=body) if self.host and nonce else None


def request_proof(token: str, path: str, body: bytes) -> tuple[str, str]:
    """Return a new nonce, and the header of a request that proves the token."""
    nonce = secrets.token_hex(16)
    return nonce, f"{nonce}.{_proof(token, 'request', nonce, path, body=body)}"


def is_proven(token: str, nonce: str, *, status: int, body: bytes, given: str) -> bool:
    """Return True if an answer proves that its sender knows the token."""
    return hmac.compare_digest(given.encode(), _proof(token, "answer", nonce, str(status), body=body).encode())


def _proof(token: str, *parts: str, body: bytes) -> str:
    content = "\n".join([*parts, hashlib.sha256(body).hexdigest()])
    return hmac.new(token.encode(), content.encode("latin-1"), hashlib.sha256).hexdigest()


def is_loopback(host: str) -> bool:
    """Return True if only programs of this machine reach a bind address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


@functools.lru_cache(maxsize=64)
def _parse_host(header: bytes) -> tuple[str, str | None, bool]:
    """Return a Host header in lower case, its name without the port (None if it has no such form), and if it is local.

    An address and a name without a dot are local: no site of the web can have these.
    """
    place = header.decode("latin-1").lower()
    match = _HOST.fullmatch(place)
    if match is None:
        return place, None, False
    name = match[1] or match[2]
    if "." not in name and ":" not in name:
        return place, name, True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return place, name, False
    return place, name, True
