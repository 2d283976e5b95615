"""Requests that try to reach what they may not, on the sockets of a real server."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from asking import settings
from small_server import PATIENCE, serving

from recsys.core.errors import UserError
from recsys.serving.http.access import Access
from recsys.serving.http.admin_messages import TakedownRequest
from recsys.serving.http.admission import Admission
from recsys.serving.http.app import App
from recsys.serving.http.connection import Connection, _path
from recsys.serving.http.endpoint import admin, endpoints_of, route
from recsys.serving.http.messages import Status

ADMIN, READ = "token-of-the-role-admin", "token-of-the-role-read"


class Routes:
    @admin("takedown")
    async def take_down(self, request: TakedownRequest) -> Status:
        return Status(f"taken down {len(request.item_ids)}")

    @route("GET", "/v1/users")
    async def users(self) -> Status:
        return Status("users")

    @route("POST", "/v1/retrieve", errors=(503,))
    async def retrieve(self, request: TakedownRequest) -> Status:
        return Status(f"retrieved {len(request.item_ids)}")


class Servers(NamedTuple):
    port: int
    admin_port: int


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    access = Access(admin=ADMIN, read=READ, names=())
    app = App(endpoints_of(Routes()), body_bytes=1000, access=access)
    with serving(app, tmp_path_factory.mktemp("server"), has_admin=True) as port:
        assert app.admin_port is not None
        yield Servers(port, app.admin_port)


def ask(port: int, line: str, *headers: str, body: str = "", host: str = "Host: localhost") -> tuple[int, str]:
    """Return status and body; 0 if the server closed the connection without an answer."""
    own = [host] if host else []
    lines = [f"{line} HTTP/1.1", *own, *headers, f"Content-Length: {len(body)}", "Connection: close", "", body]
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as opened:
        opened.sendall("\r\n".join(lines).encode("latin-1"))
        answer = b""
        while part := opened.recv(65536):
            answer += part
    head, _, content = answer.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else 0), content.decode()


BODY = {"body": json.dumps({"item_ids": []})}
RIGHT = ("Content-Type: application/json", f"Authorization: Bearer {ADMIN}")


def test_admin_calls_on_a_port_of_their_own(servers: Servers) -> None:
    assert ask(servers.admin_port, "POST /v1/admin/takedown", *RIGHT, **BODY)[0] == 200
    assert ask(servers.admin_port, "POST /v1/admin/takedown", RIGHT[0], **BODY)[0] == 401
    for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE"):
        assert ask(servers.admin_port, f"{method} /v1/admin/takedown", *RIGHT, **BODY)[0] == 405, method
    for method in ("POST", "GET", "HEAD", "OPTIONS", "PUT"):
        assert ask(servers.port, f"{method} /v1/admin/takedown", *RIGHT, **BODY)[0] == 404, method
    for path in (
        "/v1/%61dmin/takedown", "/v1/admin%2ftakedown", "//v1/admin/takedown", "/v1/admin/takedown/",
        "/v1/./admin/takedown", "/v1/x/../admin/takedown", "/V1/ADMIN/takedown", "/v1/admin/takedown;x", "/v1/admin//",
        "http://localhost/v1/admin/takedown", f"http://127.0.0.1:{servers.admin_port}/v1/admin/takedown",
        "/v1/admin/takedown%00", "/v1/admin/takedown?a=/v1/users", "/v1/admin\\takedown", "/v1/users/../admin/takedown",
    ):  # fmt: skip
        status, content = ask(servers.port, f"POST {path}", *RIGHT, **BODY)
        assert status in (400, 404, 421), (path, status, content)
        status, content = ask(servers.admin_port, f"POST {path}", RIGHT[0], **BODY)
        assert status in (400, 401, 404, 421), (path, status, content)


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (f"Bearer {READ}", 200),
        (f"bearer {READ}", 200),
        (f"BEARER  {READ} ", 200),
        (f"Bearer {ADMIN}", 200),
        (f"Bearer {READ}x", 401),
        (f"Bearer {READ[:-1]}", 401),
        (f"Bearer {READ.upper()}", 401),
        (f"Bearer{READ}", 401),
        (f"Bearer\t{READ}", 401),
        (f"Bearer {READ},{READ}", 401),
        (f"Bearer {READ} {READ}", 401),
        (f"Basic {READ}", 401),
        (f"Token {READ}", 401),
        (READ, 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("Bearer None", 401),
        ("Bearer null", 401),
        ("Bearer \xe9\xff", 401),
        ("Bearer " + "x" * 30_000, 401),
        ("", 401),
    ],
)
def test_authorization(servers: Servers, given: str, status: int) -> None:
    assert ask(servers.port, "GET /v1/users", f"Authorization: {given}")[0] == status


_OWN = ("localhost", "LOCALHOST:80", "127.0.0.1:1", "[::1]", "[::1]:8080", "10.1.2.3", "[fe80::1]:5")
_OTHER = ("evil.example", "EVIL.EXAMPLE:80", "127.0.0.1.evil.example", "localhost.evil.example", "localhost.")
_OTHER += ("127.1.evil", "1.2.3", "127.0.0.1.", "0x7f.1", "999.1.1.1")
_MALFORMED = ("[::1].evil.example", "localhost:80@evil.example", "evil.example/localhost", "a b", "::1", "a,b", "[::1")
_MALFORMED += ("[evil.example]", "localhost:80:80", "localhost:x", "l\xf6calhost", "%6cocalhost")


@pytest.mark.parametrize(
    ("host", "status"),
    [(one, status) for status, places in ((200, _OWN), (421, _OTHER), (400, _MALFORMED)) for one in places],
)
def test_host(servers: Servers, host: str, status: int) -> None:
    assert ask(servers.port, "GET /v1/users", f"Authorization: Bearer {READ}", host=f"Host: {host}")[0] == status


def test_two_headers_of_which_one_counts(servers: Servers) -> None:
    right = f"Authorization: Bearer {READ}"
    for twice in (
        ("Host: evil.example", right),
        (right, f"authorization: Bearer {READ}x"),
        (right, "Origin: http://localhost", "Origin: http://evil.example"),
    ):
        for headers in (twice, twice[::-1]):
            assert ask(servers.port, "GET /v1/users", *headers)[0] == 400, headers
    kinds = ("Content-Type: text/plain", *RIGHT)
    assert ask(servers.admin_port, "POST /v1/admin/takedown", *kinds, **BODY)[0] == 400


def test_an_upgrade_is_an_ordinary_request(servers: Servers) -> None:
    upgrade = ("Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZQ==", "Sec-WebSocket-Version: 13")
    status, content = ask(servers.port, "GET /v1/users", "Connection: Upgrade", *upgrade)
    assert (status, "users" in content) == (401, False)
    assert ask(servers.port, "GET /v1/admin/takedown", "Connection: Upgrade", *upgrade, RIGHT[1])[0] in (0, 404)


def test_an_admission_counts_however_a_path_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A refused client that asked for the end of its connection gets it with the refusal, not with the idle timeout.
    monkeypatch.setattr(Connection, "timeout_keep_alive_handler", lambda self: None)  # noqa: ARG005
    admission = Admission(1.0, most=1, least=1)
    app = App(endpoints_of(Routes()), body_bytes=1000, admissions={"/v1/retrieve": admission})
    with serving(app, tmp_path) as port:
        assert ask(port, "POST /v1/retrieve", **BODY)[0] == 200
        admission.enter()
        for path in ("/v1/retrieve?x", "/v1/%72etrieve", "/%761/retrieve", "http://localhost/v1/retrieve"):
            assert ask(port, f"POST {path}", **BODY)[0] == 503, path
        admission.leave()
        assert ask(port, "POST /v1/%72etrieve", **BODY)[0] == 200
    assert [_path(url) for url in (b"http://a", b"*", b"/%", b"/%ff", b"https://a/b?c")] == [
        "/",
        "/",
        "/%",
        "/\ufffd",
        "/b",
    ]


def test_half_a_request_takes_no_place_of_a_whole_one(tmp_path: Path) -> None:
    admission = Admission(1.0, most=1, least=1)
    app = App(endpoints_of(Routes()), body_bytes=1000, admissions={"/v1/retrieve": admission})
    half = b"POST /v1/retrieve HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16\r\n\r\n{"
    with serving(app, tmp_path) as port, socket.create_connection(("127.0.0.1", port), PATIENCE) as slow:
        slow.sendall(half)
        # The server has read the half by the time it answers a later connection.
        assert ask(port, "GET /healthz")[0] == 200
        assert ask(port, "POST /v1/retrieve", **BODY)[0] == 200
        slow.sendall(b'"item_ids": []}')
        assert slow.recv(12) == b"HTTP/1.1 200"
    assert admission.in_progress == 0


def test_settings_of_the_admin_port(tmp_path: Path) -> None:
    class Store(NamedTuple):
        store: Path

    def made(**options: Any) -> None:
        settings(Store(tmp_path), tmp_path / "events", **options)

    made(admin_port=2, admin_host="127.0.0.1")
    for options in ({"admin_port": 1}, {"admin_port": 2, "admin_token": None}, {"admin_host": "127.0.0.1"}):
        with pytest.raises(UserError, match=r"^admin\."):
            made(**options)
