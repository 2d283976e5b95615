"""Tokens by role, names of the server, origins of pages, and proofs between gateways and hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from asking import call, living, settings
from publishing import Published

from recsys.core.errors import UserError
from recsys.serving.http.access import check_token, is_proven, request_proof
from recsys.serving.http.app import App

ADMIN, READ, EVENTS, HOST = (f"token-of-the-role-{name}" for name in ("admin", "read", "events", "host"))


@pytest.mark.parametrize(
    "token", ["", " ", "short", "x" * 15, 5, 1234567890123456789, True, ["x" * 20], "x" * 20 + " "]
)
@pytest.mark.parametrize("role", ["admin_token", "read_token", "events_token", "host_token"])
def test_a_token_that_can_be_guessed_is_refused_at_the_start(
    published: Published, tmp_path: Path, token: Any, role: str
) -> None:
    with pytest.raises(UserError, match="expected"):
        settings(published, tmp_path / "e", **{role: token})
    check_token("token", "x" * 16)


@pytest.mark.parametrize("role", ["read_token", "events_token", "host_token"])
def test_no_other_role_has_the_token_of_admin_calls(published: Published, tmp_path: Path, role: str) -> None:
    with pytest.raises(UserError, match=f"tokens.{role.removesuffix('_token')}: found the admin_token"):
        settings(published, tmp_path / "e", **{"admin_token": ADMIN, role: ADMIN})


def test_roles(published: Published, tmp_path: Path) -> None:
    version = published.versions[0]
    calls = [
        ("POST", "/v1/retrieve", {"k": 1}, READ),
        ("POST", "/v1/events", {"user_id": "a", "item_id": "i001"}, EVENTS),
        ("GET", "/v1/users", None, READ),
        ("POST", "/v1/explain", {"item_ids": ["i001"], "history": [], "version": version}, READ),
        ("GET", "/v1/version", None, HOST),
        ("POST", "/v1/admin/takedown", {"item_ids": []}, ADMIN),
    ]

    async def use(app: App) -> None:
        for method, path, body, right in calls:
            for token in ("", ADMIN, READ, EVENTS, HOST):
                found = await call(app, method, path, body, {"authorization": f"Bearer {token}"})
                assert found.status == (200 if token in (right, ADMIN) else 401), (path, token, found)
            assert (await call(app, method, path, body)).status == 401
        for path in ("/healthz", "/readyz", "/schema"):
            assert (await call(app, "GET", path)).status == 200

    tokens = {"admin_token": ADMIN, "read_token": READ, "events_token": EVENTS, "host_token": HOST}
    living(settings(published, tmp_path / "events.sqlite", **tokens), use)

    async def without_users(app: App) -> None:
        for path in ("/v1/users", "/v1/explain"):
            assert (await call(app, "GET", path)).status == 404

    living(settings(published, tmp_path / "events.sqlite", access_users=False), without_users)


def test_pages_of_other_sites(published: Published, tmp_path: Path) -> None:
    event = {"user_id": "a", "item_id": "i001"}
    own = ("127.0.0.1:8080", "localhost:8080", "localhost", "[::1]:8080", "10.0.0.1", "gateway:8080", "mine.example:80")
    other = ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example:80", "1.2.3.4.5")

    async def use(app: App) -> None:
        for host in own:
            for origin in ({}, {"origin": f"http://{host}"}, {"origin": "https://friend.example"}):
                assert (await call(app, "POST", "/v1/events", event, {"host": host, **origin})).status == 200, host
        for host in other:
            for path in ("/v1/users", "/", "/healthz"):
                assert (await call(app, "GET", path, headers={"host": host})).status == 421, host
        for origin in ("http://evil.example", "null", "http://127.0.0.1:9", "https://friend.example.evil.example"):
            headers = {"host": "127.0.0.1:8080", "origin": origin}
            assert (await call(app, "POST", "/v1/events", event, headers)).status == 403
        for kind in ("text/plain", "", "application/x-www-form-urlencoded", "multipart/form-data; a=application/json"):
            assert (await call(app, "POST", "/v1/events", event, {"content-type": kind})).status == 415
        assert (await call(app, "POST", "/v1/events", event, {"content-type": "Application/JSON; a=b"})).status == 200

    allowed = {"access_hosts": ["mine.example"], "access_origins": ["https://friend.example"]}
    living(settings(published, tmp_path / "events.sqlite", **allowed), use)


@pytest.mark.parametrize(
    ("host", "names"),
    [("127.0.0.1", ()), ("127.0.0.2", ()), ("::1", ()), ("localhost", ()), ("::ffff:127.0.0.1", ()), ("0.0.0.0", None),
     ("10.0.0.1", None), ("gateway", None)],
)  # fmt: skip
def test_names_are_checked_at_every_loopback_address(
    published: Published, tmp_path: Path, host: str, names: object
) -> None:
    assert settings(published, tmp_path / "events.sqlite", host=host).access.names == names


def test_admin_calls_leave_a_line(published: Published, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def use(app: App) -> None:
        bearing = {"authorization": "Bearer secret-of-the-tests"}
        assert (await call(app, "POST", "/v1/admin/takedown", {"item_ids": ["i001"]}, bearing)).status == 200

        version = published.versions[0]
        for share in (0.5, 0):
            canary = {"version": version, "share": share}
            assert (await call(app, "POST", "/v1/admin/canary", canary, bearing)).status == 200
        assert (await call(app, "POST", "/v1/admin/serve", {"version": version}, bearing)).status == 200

    with caplog.at_level("INFO", "recsys.audit"):
        living(settings(published, tmp_path / "events.sqlite"), use)
    assert '/v1/admin/takedown from unknown: {"item_ids": ["i001"]}' in caplog.text
    version = published.versions[0]
    assert f"canary: from None to {version} for 0.5 of the users" in caplog.text
    assert f"canary: from {version} for 0.5 of the users to None" in caplog.text
    assert f"served versions: from ['{version}'] to ['{version}']" in caplog.text
    assert "secret" not in caplog.text


def test_a_gateway_and_a_host_prove_their_token(published: Published, tmp_path: Path) -> None:
    async def use(app: App) -> None:
        nonce, proof = request_proof(HOST, "/v1/version", b"")
        answer = await call(app, "GET", "/v1/version", None, {"x-recsys-request-proof": proof}, as_json=False)
        given = answer.headers[b"x-recsys-answer-proof"].decode()
        whole = {"status": answer.status, "body": answer.body.encode()}
        assert answer.status == 200
        assert is_proven(HOST, nonce, **whole, given=given)
        assert not is_proven(READ, nonce, **whole, given=given)
        assert not is_proven(HOST, nonce, status=200, body=b"{}", given=given)
        for wrong in (
            request_proof(READ, "/v1/version", b"")[1],
            request_proof(HOST, "/v1/search", b"")[1],
            "",
            ".",
            "é",
        ):
            refused = await call(app, "GET", "/v1/version", None, {"x-recsys-request-proof": wrong})
            assert refused.status == 401

    living(settings(published, tmp_path / "events.sqlite", host_token=HOST), use)
