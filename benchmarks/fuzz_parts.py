"""Of what `fuzz_messages.py` makes its messages: strange values, wrong addresses, and what is right."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

# What must come back: a 4xx of this server's own; any 2xx or 4xx; that or a closed connection, for what is no HTTP.
REFUSED, ANSWERED, ANY = "refused", "answered", "any"

# Values where others belong, as JSON or nearly so.
STRANGE = [
    b"null", b"true", b"-1", b"0", b"1.5", b"1e999", b"-1e999", b"1e308", b"9223372036854775808",
    b"-9223372036854775809",
    b"1" + b"0" * 400, b"1" + b"0" * 5000, b"0." + b"0" * 400 + b"1", b"-0", b'""', b'"\\ud800"', b'"\\u0000"',
    b'"\xff"',
    b'"\xc0\xaf"', b'"' + b"a" * 10_000 + b'"', b"[]", b"{}", b"[null]", b"[[[]]]", b'[1,"1",true]', b'{"a":{"b":[]}}',
    b'{"":""}', b"NaN", b"Infinity", b"'5'", b"0x10", b"01", b"1_000", b".5", b"[" * 500 + b"]" * 500,
]  # fmt: skip
TOKENS = [
    b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\\u", b"\\ud800", b"null", b"NaN", b"1e999", b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf", b"\xc0\xaf", b"\xed\xa0\x80", b"//", b"/*", b"\r\n", b"-", b"e", b"99999999999999999999",
]  # fmt: skip
WRONG_TIMES = [
    b"-1",
    b"1700000000000",
    b"true",
    b"[]",
    b"{}",
    b'"yesterday"',
    b'"1969-12-31"',
    b"1e300",
    b'"10000-01-01"',
]
PATHS = [
    b"/v2/retrieve", b"/v1/retrieve/", b"//v1/retrieve", b"/v1/../v1/retrieve", b"/v1/retrieve%00", b"/v1/Retrieve",
    b"/%ff%fe",
    b"/v1/retrieve;a=b", b"/" + b"a" * 5000, b"/v1/%72etrieve%2f", b"/page/../../../etc/passwd",
    b"/..%2f..%2fetc/passwd", b"*",
    b"/v1/admin", b"/v1/admin/nothing", b"/\\..\\..",
]  # fmt: skip
METHODS = [b"GET", b"HEAD", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"PROPFIND"]
ADDRESSES = [b"/v1/retrieve", b"/v1/events", b"/v1/search", b"/v1/explain", b"/v1/items/find"]
QUERIES = [
    b"/v1/users?prefix=%ff", b"/v1/users?limit=-1", b"/v1/users?limit=1e9", b"/v1/users?prefix=a&prefix=b",
    b"/v1/users?nothing=1",
    b"/v1/items?limit=99999999999999999999", b"/v1/items?version=../..",
    b"/v1/users?" + b"&".join(b"a%d=1" % number for number in range(100)),
]  # fmt: skip
KINDS = [
    b"application/xml",
    b"text/csv",
    b"multipart/form-data; boundary=x",
    b"application/x-www-form-urlencoded",
    b"\xff",
]
BODIES = [
    b"<a><b/></a>", b"user_id,item_id\n1,2\n", b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n',
    b"user_id=1&item_id=2", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xab\xae\x05\x00", b"", b" ", b"\xef\xbb\xbf{}",
    '{"k": 5}'.encode("utf-16"), '{"k": 5}'.encode("utf-32"),
]  # fmt: skip


class Sent(NamedTuple):
    """One message: which kind of wrong, its bytes, and what must come back."""

    kind: str
    data: bytes
    must: str


class World(NamedTuple):
    """What is right: parts of requests that the server would answer.

    Attributes:
        version: that is served.
        dim: of its embeddings.
        item_ids: some that it knows.
        column: of its items.
        token: of admin calls.
        k, batch, history, body_bytes, cost: limits.
    """

    version: str
    dim: int
    item_ids: list[Any]
    column: str
    token: str
    k: int
    batch: int
    history: int
    body_bytes: int
    cost: int


def post(
    path: bytes, body: bytes, headers: bytes = b"Content-Type: application/json\r\n", method: bytes = b"POST"
) -> bytes:
    """The bytes of a request."""
    return b"%s %s HTTP/1.1\r\nHost: fuzz\r\n%sContent-Length: %d\r\n\r\n%s" % (method, path, headers, len(body), body)


def places(value: Any) -> list[tuple[Any, Any]]:
    """(holder, key) of every value inside another."""
    found: list[tuple[Any, Any]] = []
    for key, inner in list(
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        found += [(value, key), *places(inner)]
    return found


def may_be_events(body: bytes) -> bool:
    """Whether a store might rightly take this: JSON by the standard library, with ids that could be some."""
    try:
        posted = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        return False
    events = posted if isinstance(posted, list) else [posted]
    return all(
        isinstance(one, dict) and all(_may_be_id(one.get(name)) for name in ("user_id", "item_id")) for one in events
    )


def _may_be_id(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool))
