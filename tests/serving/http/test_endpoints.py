"""The application around the handlers: methods, body limits, tokens, unexpected errors, start and stop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from asking import Answer, call
from msgspec import Struct

from recsys.core.errors import UserError, nearest
from recsys.serving.http.app import OTHER, App
from recsys.serving.http.endpoint import ADMIN_ERRORS, Endpoint
from recsys.serving.http.problems import bad_request

LIMIT = 20


class Number(Struct):
    number: int


async def double(request: Number) -> Number:
    return Number(2 * request.number)


async def fail() -> Number:
    raise RuntimeError("secret")


async def refuse(query: Number) -> Number:
    raise UserError(f"users.number: found {query.number}, expected another one")


async def text() -> bytes:
    return b"plain"


ENDPOINTS = [
    Endpoint(method="POST", path="/double", handler=double),
    Endpoint(method="GET", path="/fail", handler=fail),
    Endpoint(method="GET", path="/refuse", handler=refuse),
    Endpoint(method="GET", path="/text", handler=text, media_type="text/plain; charset=utf-8"),
    Endpoint(method="POST", path="/v1/admin/double", handler=double, errors=ADMIN_ERRORS, is_admin=True),
]


def ask(method: str, path: str, body: Any = None, *, token: str | None = None, **headers: str) -> Answer:
    app = App(ENDPOINTS, body_bytes=LIMIT, token=token)
    is_json = path != "/text" and method != "HEAD"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return asyncio.run(call(app, method, path, body, named, is_json))


def test_requests_are_decoded_and_responses_encoded() -> None:
    answer = ask("POST", "/double", {"number": 4})
    assert (answer.status, answer.body) == (200, {"number": 8})
    assert (answer.headers[b"content-type"], answer.headers[b"content-length"]) == (b"application/json", b"12")
    plain = ask("GET", "/text")
    assert (plain.body, plain.headers[b"content-type"]) == ("plain", b"text/plain; charset=utf-8")
    wrong = ask("POST", "/double", {"number": "4"})
    assert (wrong.status, wrong.body["error"]["field"]) == (400, "number")
    refused = ask("GET", "/refuse?number=3")
    assert (refused.status, refused.body["error"]) == (
        400,
        {"code": "bad_request", "message": "users.number: found 3, expected another one", "field": "user.number"},
    )


def test_head_is_get_without_the_body() -> None:
    answer = ask("HEAD", "/text")
    assert (answer.status, answer.body, answer.headers[b"content-length"]) == (200, "", b"5")


@pytest.mark.parametrize(("method", "path", "allowed"), [("HEAD", "/double", "POST"), ("POST", "/text", "GET, HEAD")])
def test_another_method_is_405(method: str, path: str, allowed: str) -> None:
    app = App(ENDPOINTS, body_bytes=LIMIT)
    answer = asyncio.run(call(app, method, path, as_json=False))
    assert (answer.status, answer.headers[b"allow"].decode()) == (405, allowed)
    assert f"{path}: found {method}, expected {allowed}" in answer.body


@pytest.mark.parametrize("path", ["/", "/double/", "//double", "/Double", "/v1/admin"])
def test_an_address_has_one_spelling(path: str) -> None:
    answer = ask("POST", path, {"number": 1})
    assert (answer.status, answer.body["error"]["code"]) == (404, "not_found")


def receive_all(app: App, messages: Sequence[dict[str, Any]], headers: dict[bytes, bytes]) -> list[dict[str, Any]]:
    """Everything that is sent for these messages from the client."""
    received, sent = iter(messages), list[dict[str, Any]]()

    async def receive() -> dict[str, Any]:
        return next(received)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    named = list(headers.items())
    scope = {"type": "http", "method": "POST", "path": "/double", "query_string": b"", "headers": named}
    asyncio.run(app(scope, receive, send))
    return sent


def part(body: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


@pytest.mark.parametrize(
    ("messages", "headers"),
    [
        ([], {b"content-length": b"21"}),
        ([part(b" " * 21, False)], {}),
        ([part(b" " * 15, True), part(b" " * 6, True)], {}),
        ([part(b" " * 21, False)], {b"content-length": b"3"}),
    ],
)
def test_a_body_beyond_the_limit_is_not_read(messages: list[dict[str, Any]], headers: dict[bytes, bytes]) -> None:
    start, body = receive_all(App(ENDPOINTS, body_bytes=LIMIT), messages, headers)
    assert start["status"] == 413
    assert (b"connection", b"close") in start["headers"]
    assert b"body: expected at most 20 bytes" in body["body"]


def test_a_body_in_parts_up_to_the_limit() -> None:
    messages = [part(b'{"number":', True), part(b"", True), part(b" 4}" + b" " * 7, False)]
    start, body = receive_all(App(ENDPOINTS, body_bytes=LIMIT), messages, {})
    assert (start["status"], body["body"]) == (200, b'{"number":8}')


def test_a_client_that_disconnects_gets_no_answer_and_is_not_counted() -> None:
    counted: list[Any] = []
    app = App(ENDPOINTS, body_bytes=LIMIT, observe=lambda *seen: counted.append(seen))
    assert receive_all(app, [part(b'{"nu', True), {"type": "http.disconnect"}], {}) == []
    assert counted == []


def test_unexpected_errors_are_logged_but_not_returned(caplog: pytest.LogCaptureFixture) -> None:
    answer = ask("GET", "/fail", x_request_id="abc2")
    assert (answer.status, answer.body["error"]["code"]) == (500, "internal")
    assert "secret" not in str(answer.body)
    assert answer.headers[b"x-request-id"] == b"abc2"
    assert "abc2" in answer.body["error"]["message"]
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    ("token", "given", "status"),
    [
        (None, "Bearer secret", 403),
        ("secret", None, 401),
        ("secret", "Bearer other", 401),
        ("secret", "Bearer secret", 200),
    ],
)
def test_admin_calls_need_the_token(token: str | None, given: str | None, status: int) -> None:
    headers = {"authorization": given} if given else {}
    answer = ask("POST", "/v1/admin/double", {"number": 1}, token=token, **headers)
    assert answer.status == status
    assert (answer.headers.get(b"www-authenticate") == b"Bearer") == (status == 401)


def test_every_answer_is_counted_by_route() -> None:
    counted: list[tuple[str, int]] = []
    app = App(ENDPOINTS, body_bytes=LIMIT, observe=lambda route, status, _: counted.append((route, status)))

    async def use() -> None:
        for method, path in (("POST", "/double"), ("GET", "/fail"), ("GET", "/double"), ("GET", "/made/up")):
            await call(app, method, path, {"number": 1})

    asyncio.run(use())
    assert counted == [("/double", 200), ("/fail", 500), ("/double", 405), (OTHER, 404)]


def test_a_server_that_cannot_start_reports_the_reason() -> None:
    sent: list[dict[str, Any]] = []

    async def start() -> None:
        raise UserError("hosts: found none")

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    app = App([], body_bytes=1, start=[start])
    with pytest.raises(UserError):
        asyncio.run(app({"type": "lifespan"}, receive, send))
    (failed,) = sent
    assert failed["type"] == "lifespan.startup.failed"
    assert "hosts: found none" in failed["message"]


def test_a_refusal_repeats_only_the_beginning_of_a_long_name() -> None:
    async def refuse_long(query: Number) -> Number:
        raise bad_request(f"{'x' * 10**6}: found {query.number}", "y" * 10**6)

    app = App([Endpoint(method="GET", path="/long", handler=refuse_long)], body_bytes=LIMIT)
    error = asyncio.run(call(app, "GET", "/long?number=1")).body["error"]
    assert error["message"] == "x" * 4000 + "..."
    assert error["field"] == "y" * 4000
    # The hint needs no comparison of a million letters.
    assert nearest("name" + "x" * 10**6, ["name", "k"]) == "; valid: k, name"


def test_a_long_list_of_answers_is_encoded_in_parts() -> None:
    async def many(request: Number) -> list[Number]:
        return [Number(number) for number in range(request.number)]

    app = App([Endpoint(method="POST", path="/many", handler=many)], body_bytes=LIMIT)
    for count in (0, 64, 65, 200):
        answer = asyncio.run(call(app, "POST", "/many", {"number": count}))
        assert answer.body == [{"number": number} for number in range(count)]
