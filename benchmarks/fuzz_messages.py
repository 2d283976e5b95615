"""What `serving_fuzz.py` sends: requests of which each is wrong in some way, as bytes for a socket.

Where a change might by chance have left a request right, the server may answer it (`ANSWERED`); of events
none is sent that a store might rightly take.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from fuzz_parts import (
    ADDRESSES,
    ANSWERED,
    ANY,
    BODIES,
    KINDS,
    METHODS,
    PATHS,
    QUERIES,
    REFUSED,
    STRANGE,
    TOKENS,
    WRONG_TIMES,
    Sent,
    World,
    may_be_events,
    places,
    post,
)


class Messages:
    """Draws messages.

    Args:
        world: what is right.
        seed: of the draws.
    """

    def __init__(self, world: World, seed: int) -> None:
        self._world, self._rng = world, random.Random(seed)
        self._kinds: list[Callable[[], Sent]] = [
            self._changed_bytes, self._changed_bytes, self._strange_value, self._strange_value, self._changed_event,
            self._changed_event, self._wrong_event, self._nested, self._other_format, self._over_a_limit, self._cut,
            self._too_large, self._wrong_place, self._query, self._headers, self._no_http, self._search, self._admin,
        ]  # fmt: skip

    def draw(self) -> Sent:
        """The next one."""
        return self._rng.choice(self._kinds)()

    def _item(self) -> Any:
        return self._rng.choice(self._world.item_ids)

    def _right(self) -> tuple[bytes, Any]:
        """An address, and a body that it takes."""
        rng, item = self._rng, self._item
        history = [{"item_id": item(), "timestamp": 1_600_000_000 + number} for number in range(rng.randrange(1, 6))]
        retrieve = {"user_id": "fuzz", "k": 5, "history": history, "exclude": [item()], "exclude_seen": True}
        retrieve["filter"] = {self._world.column: ["a", "b"]}
        search = {
            "version": self._world.version,
            "embeddings": [[0.1] * self._world.dim],
            "k": 5,
            "exclude": [[item()]],
        }
        bodies: dict[bytes, Any] = {
            b"/v1/retrieve": rng.choice([retrieve, [retrieve, {"k": 3}]]),
            b"/v1/search": search,
            b"/v1/explain": {"item_ids": [item()], "history": history},
            b"/v1/items/find": {"names": [str(item())]},
        }
        path = rng.choice([b"/v1/retrieve", *bodies])
        return path, bodies[path]

    def _event(self) -> dict[str, Any]:
        return {"user_id": "fuzz", "item_id": self._item(), "timestamp": 1_600_000_000}

    def _changed(self, body: bytes) -> bytes:
        """A few bytes are others, more or fewer."""
        rng, changed = self._rng, bytearray(body)
        for _ in range(rng.randrange(1, 5)):
            at = rng.randrange(len(changed) + 1)
            what = rng.randrange(5)
            if what == 0:
                changed[at : at + 1] = rng.randbytes(1)
            elif what == 1:
                del changed[at : at + rng.randrange(1, 20)]
            elif what == 2:
                changed[at:at] = changed[at : at + rng.randrange(1, 40)]
            elif what == 3:
                changed[at:at] = rng.choice(TOKENS)
            else:
                changed[at:at] = rng.randbytes(rng.randrange(1, 8))
        return bytes(changed)

    def _with_strange(self, body: Any) -> bytes:
        """One value, somewhere, is a strange one."""
        rng = self._rng
        copy = json.loads(json.dumps(body))
        found = places(copy)
        for _ in range(rng.randrange(1, 3)):
            holder, key = rng.choice(found)
            if rng.random() < 0.15 and isinstance(holder, dict):
                key = rng.choice(["nothing", "", "\u0000", "K", "userId"])
            holder[key] = "@@"
        content: bytes = json.dumps(copy).encode()
        return content.replace(b'"@@"', rng.choice(STRANGE))

    def _changed_bytes(self) -> Sent:
        path, body = self._right()
        return Sent("changed bytes", post(path, self._changed(json.dumps(body).encode())), ANSWERED)

    def _strange_value(self) -> Sent:
        path, body = self._right()
        return Sent("values of other types, huge numbers", post(path, self._with_strange(body)), ANSWERED)

    def _changed_event(self) -> Sent:
        while True:
            events: Any = [self._event() for _ in range(self._rng.randrange(1, 4))]
            if len(events) == 1 and self._rng.random() < 0.5:
                events = events[0]
            body = (
                self._changed(json.dumps(events).encode()) if self._rng.random() < 0.5 else self._with_strange(events)
            )
            if not may_be_events(body):
                return Sent("events: changed bytes and values", post(b"/v1/events", body), REFUSED)

    def _wrong_event(self) -> Sent:
        """One of several events has a time that is none, or a feature that is none: no event may be stored."""
        events = [self._event() for _ in range(self._rng.randrange(1, 6))]
        wrong = self._rng.choice(events)
        if self._rng.random() < 0.5:
            wrong["timestamp"] = "@@"
        else:
            wrong["no_such_feature"] = 1
        body = json.dumps(events).encode().replace(b'"@@"', self._rng.choice(WRONG_TIMES))
        return Sent("events: one of several is wrong", post(b"/v1/events", body), REFUSED)

    def _nested(self) -> Sent:
        rng = self._rng
        depth = rng.choice([100, 1000, 5000, 50_000])
        begin, end = rng.choice([(b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")])
        # Where it is closed, what it holds, and where it stands.
        body = begin * depth + rng.choice([b"1", b"{}", b""]) + (end * depth if rng.random() < 0.8 else b"")
        around = rng.choice(
            [b"%s", b'{"history": %s}', b'{"k": 5, "user": {"a": %s}}', b'{"user_id": 1, "item_id": %s}']
        )
        return Sent("deep nesting", post(rng.choice(ADDRESSES), around % body), REFUSED)

    def _other_format(self) -> Sent:
        rng = self._rng
        headers = b"Content-Type: " + rng.choice(KINDS) + b"\r\n"
        if rng.random() < 0.3:
            headers += b"Content-Encoding: gzip\r\n"
        return Sent("other formats and encodings", post(rng.choice(ADDRESSES), rng.choice(BODIES), headers), REFUSED)

    def _over_a_limit(self) -> Sent:
        world, item = self._world, self._item()
        wrong: list[tuple[bytes, Any]] = [
            (b"/v1/retrieve", {"k": world.k + 1}),
            (b"/v1/retrieve", {"k": 0}),
            (b"/v1/retrieve", {"k": 10**18}),
            (b"/v1/retrieve", [{"k": 1}] * (world.batch + 1)),
            (b"/v1/retrieve", {"history": [{"item_id": item}] * (world.history + 1)}),
            (b"/v1/retrieve", {"exclude": [item] * (world.history + 1)}),
            (b"/v1/events", [self._event()] * (world.batch + 1)),
            (b"/v1/search", {"version": world.version, "embeddings": [[0.1] * world.dim], "k": world.k + 1}),
        ]
        path, body = self._rng.choice(wrong)
        return Sent("over a limit", post(path, json.dumps(body).encode()), REFUSED)

    def _cut(self) -> Sent:
        """The rest of a right request does not come."""
        body = json.dumps([self._event()] * 3).encode()
        whole = post(b"/v1/events", body)
        if self._rng.random() < 0.3:
            head = b"POST /v1/events HTTP/1.1\r\nHost: fuzz\r\nTransfer-Encoding: chunked\r\n\r\n"
            whole = head + b"%x\r\n%s\r\n" % (len(body), body)
            return Sent("cut in the middle", whole, ANY)
        return Sent("cut in the middle", whole[: self._rng.randrange(1, len(whole))], ANY)

    def _too_large(self) -> Sent:
        rng, size = self._rng, self._world.body_bytes + 1
        path = rng.choice(ADDRESSES)
        if rng.random() < 0.5:
            # It says so, and begins.
            head = b"POST %s HTTP/1.1\r\nHost: fuzz\r\nContent-Length: %d\r\n\r\n" % (
                path,
                size * rng.choice([1, 10**9]),
            )
            return Sent("too large", head + b"[" * 1000, REFUSED)
        chunk = b"%x\r\n%s\r\n" % (65536, b" " * 65536)
        head = b"POST %s HTTP/1.1\r\nHost: fuzz\r\nTransfer-Encoding: chunked\r\n\r\n" % path
        return Sent("too large", head + chunk * (size // 65536 + 1) + b"0\r\n\r\n", REFUSED)

    def _wrong_place(self) -> Sent:
        rng, body = self._rng, json.dumps(self._event()).encode()
        if rng.random() < 0.5:
            return Sent("wrong addresses and methods", post(rng.choice(PATHS), body), REFUSED)
        return Sent("wrong addresses and methods", post(rng.choice(ADDRESSES), body, b"", rng.choice(METHODS)), REFUSED)

    def _query(self) -> Sent:
        return Sent("queries", b"GET %s HTTP/1.1\r\nHost: fuzz\r\n\r\n" % self._rng.choice(QUERIES), REFUSED)

    def _headers(self) -> Sent:
        """A wrong body, and headers that say odd things."""
        rng = self._rng
        odd = rng.choice(
            [
                b"X-Request-Id: " + bytes(rng.choice(range(0x21, 0xFF)) for _ in range(rng.randrange(1, 300))),
                b"Authorization: Bearer " + bytes(rng.choice(range(0x21, 0xFF)) for _ in range(20)),
                b"If-None-Match: *", b"Range: bytes=5-2", b"Accept: nothing/at-all", b"Accept-Encoding: br;q=9",
                b"Expect: 100-continue", b"Upgrade: websocket\r\nConnection: upgrade", b"Connection: keep-alive, close",
                b"Cookie: " + b"a" * 4000, b"X-Forwarded-For: \xff\xfe", b"Forwarded: for=;;;", b"Host: other",
            ]
        )  # fmt: skip
        return Sent("headers", post(rng.choice(ADDRESSES), b'{"k": "five"', odd + b"\r\n"), REFUSED)

    def _no_http(self) -> Sent:
        rng, body = self._rng, json.dumps(self._event()).encode()
        right = post(b"/v1/events", body + b",")
        head = b"POST /v1/events HTTP/1.1\r\nHost: fuzz\r\n"
        messages = [
            rng.randbytes(rng.randrange(1, 200)), b"\r\n\r\n", b"GET\r\n\r\n", b"POST /v1/events\r\n\r\n" + body,
            b"POST /v1/events HTTP/9.9\r\n\r\n" + body, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            head + b"Content-Length: -5\r\n\r\n" + body, head + b"Content-Length: five\r\n\r\n" + body,
            head + b"Content-Length: 5\r\nContent-Length: 50\r\n\r\n" + body,
            head + b"Content-Length: 99999999999999999999999\r\n\r\n" + body,
            head + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
            head + b"Transfer-Encoding: nothing\r\n\r\n" + body,
            head + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n" + body,
            head + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n" + body,
            head + b"No colon\r\n\r\n" + body,
            head + b": no name\r\n\r\n" + body, head + b"A\x00B: c\r\n\r\n" + body,
            head + b"A: " + b"b" * 200_000 + b"\r\n\r\n",
            head + b"".join(b"A%d: b\r\n" % number for number in range(3000)) + b"\r\n",
            self._changed(right[:60]) + right[60:],
        ]  # fmt: skip
        return Sent("no HTTP", rng.choice(messages), ANY)

    def _search(self) -> Sent:
        world, rng = self._world, self._rng
        right = [[0.1] * world.dim]
        wrong: list[Any] = [
            [[0.1] * (world.dim + 1)], [0.1] * world.dim, [], [[]], [[[]]], [[[0.1] * world.dim] * 3] * 2, [right,
            right[0]],
            [["a"] * world.dim], [[None] * world.dim], [[1e39] * world.dim], [[10**400] * world.dim], {"a": 1},
            "AAAA", 5, None,
            [[True] * world.dim], [[0.1] * world.dim, [0.1]],
        ]  # fmt: skip
        asked: dict[str, Any] = {"version": world.version, "embeddings": right, "k": 5}
        change: dict[str, Any] = rng.choice(
            [
                *({"embeddings": found} for found in wrong), {"version": "0" * 16}, {"version": "../.."},
                {"version": None},
                {"exclude": [[], []]}, {"exclude": [[None]]}, {"model": "nothing"}, {"filter": {"no such column": 1}},
                {"filter": {world.column: [[]]}}, {"k": 0}, {"k": -5},
            ]
        )  # fmt: skip
        # No embeddings have no results, and that is right.
        must = ANSWERED if change.get("embeddings") == [] else REFUSED
        return Sent("searches", post(b"/v1/search", json.dumps(asked | change).encode()), must)

    def _admin(self) -> Sent:
        rng, world = self._rng, self._world
        wrong: list[tuple[bytes, Any]] = [
            (b"load", {"version": "nothing"}), (b"load", {"version": "../../etc"}), (b"load", {"version": 5}),
            (b"load", {}),
            (b"serve", {"version": "0" * 16}), (b"unload", {"version": "0" * 16}), (b"unload",
            {"version": world.version}),
            (b"tower", {"version": "0" * 16}), (b"tower", {"version": "\u0000"}), (b"canary",
            {"version": world.version, "share": 2}),
            (b"canary", {"version": "0" * 16, "share": 0.5}), (b"canary", {"version": world.version, "share": "1"}),
            (b"takedown", {"item_ids": 5}), (b"takedown", {"item_ids": [None]}), (b"takedown", [1]), (b"items",
            {"items": 1}),
            (b"items", {"version": world.version, "items": [{}], "embeddings": [[0.1] * world.dim]}),
            (b"items", {"version": world.version, "items": [{"item_id": "fuzz"}], "embeddings": []}),
            (b"items", {"version": world.version, "items": [{"item_id": "fuzz"}], "embeddings": [[1e39] * world.dim]}),
            (b"items", {"version": "0" * 16, "items": [{"item_id": "fuzz"}], "embeddings": [[0.1] * world.dim]}),
        ]  # fmt: skip
        name, body = rng.choice(wrong)
        path, content = b"/v1/admin/" + name, json.dumps(body).encode()
        if rng.random() < 0.5:
            given = rng.choice(
                [b"", b"Basic YTpi", b"Bearer", b"Bearer ", b"Bearer wrong", b"bearer \xff", b"Bearer " + b"a" * 5000]
            )
            return Sent("admin calls without the token", post(path, content, b"Authorization: %s\r\n" % given), REFUSED)
        header = b"Authorization: Bearer %s\r\n" % world.token.encode()
        return Sent("admin calls with the token", post(path, content, header), REFUSED)
