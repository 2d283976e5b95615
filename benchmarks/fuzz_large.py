"""Requests of `serving_fuzz.py` that are as large as a server takes, valid and not: what costs most for its bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from fuzz_parts import ADDRESSES, ANSWERED, ANY, STRANGE, Sent, World, post

# Users whose events are stored.
USERS = [f"large-{number}" for number in range(50)]


class LargeMessages:
    """Draws large messages; `world` is what is right, and a seed always draws the same."""

    def __init__(self, world: World, seed: int) -> None:
        self._world, self._rng = world, random.Random(seed)
        self._kinds: list[Callable[[], Sent]] = [
            self._many_users, self._many_users, self._long_history, self._filters, self._filters, self._exclusions,
            self._events, self._events, self._searches, self._similar, self._explained, self._outcomes, self._names,
            self._numbers, self._nested, self._cut_in_chunks, self._pipelined, self._items,
        ]  # fmt: skip

    def draw(self) -> Sent:
        """The next one."""
        return self._rng.choice(self._kinds)()

    def _items_of(self, count: int) -> list[Any]:
        known, rng = self._world.item_ids, self._rng
        strange: list[Any] = ["unknown", "x" * 100, -1, 2**63 - 1]
        return [rng.choice(known) if rng.random() < 0.8 else rng.choice(strange) for _ in range(count)]

    def _sent(self, kind: str, path: bytes, body: Any) -> Sent:
        """A message of at most the size that the server takes; one value is sometimes a strange one."""
        rng, content = self._rng, json.dumps(body).encode()
        if rng.random() < 0.3:
            parts = content.split(b", ")
            parts[rng.choice([0, rng.randrange(len(parts)), -1])] = rng.choice(STRANGE)
            content = b", ".join(parts)
        return Sent(f"large: {kind}", post(path, content[: self._world.body_bytes]), ANSWERED)

    def _many_users(self) -> Sent:
        rng, world = self._rng, self._world
        users = rng.choice([1, 10, world.batch // 4, world.batch])
        k = min(world.k, rng.choice([1, 100, world.k, world.cost // users]))
        asked = [{"k": k, "user_id": rng.choice([None, *USERS])} for _ in range(users)]
        if rng.random() < 0.5:
            events = rng.choice([1, 15_000 // users])
            asked = [one | {"history": [{"item_id": item} for item in self._items_of(events)]} for one in asked]
        return self._sent("many users", b"/v1/retrieve", asked)

    def _long_history(self) -> Sent:
        world, rng = self._world, self._rng
        history = [
            {"item_id": item, "timestamp": rng.choice([1_600_000_000 + at, "2020-01-01T00:00:00+02:00", at / 7])}
            for at, item in enumerate(self._items_of(world.history))
        ]
        body = {"k": world.k, "history": history, "user": {"a" * 50: "b" * 5000}}
        return self._sent("long histories", b"/v1/retrieve", body)

    def _filters(self) -> Sent:
        world, rng = self._world, self._rng
        values = [rng.choice([f"value {at}", at, at / 3, "x" * 200]) for at in range(rng.choice([1, 100, 20_000]))]
        one: Any = rng.choice([values, {"not": values}, {"gte": "a", "lt": 5}, {"gte": 1}, [None]])
        count = rng.choice([1, 50, world.batch])
        if count > 1:
            one = values[: 20_000 // count]
        asked = [
            {"k": 10, "filter": {world.column: [number, one] if rng.random() < 0.1 else one, "item_id": number}}
            for number in range(count)
        ]
        if rng.random() < 0.3:
            asked = [one | {"quotas": {world.column: number + 1}} for number, one in enumerate(asked)]
        return self._sent("filters", b"/v1/retrieve", asked if rng.random() < 0.8 else asked[0])

    def _exclusions(self) -> Sent:
        world, rng = self._world, self._rng
        exclude = self._items_of(rng.choice([1000, world.history]))
        body = {"k": world.k, "exclude": exclude, "quotas": {world.column: rng.choice([1, 5, 10**9])}}
        return self._sent("exclusions", b"/v1/retrieve", body)

    def _events(self) -> Sent:
        world, rng = self._world, self._rng
        count = rng.choice([1, 100, world.batch])
        users = rng.choice([USERS[:1], USERS, [f"large-{rng.random()}" for _ in range(count)]])
        events = [
            {"user_id": rng.choice(users), "item_id": item, "timestamp": 1_600_000_000 + rng.randrange(10**6)}
            for item in self._items_of(count)
        ]
        if rng.random() < 0.5:
            for event in events:
                event["item_id"] = f"{rng.random()}" * rng.choice([1, 50])
        elif rng.random() < 0.3:
            events[-1]["x" * rng.choice([10, 4000, 500_000])] = rng.choice([1, "y" * 100_000, [1] * 10_000])
        return self._sent("events", b"/v1/events", events)

    def _searches(self) -> Sent:
        world, rng = self._world, self._rng
        users = rng.choice([1, 100, min(world.batch, 900_000 // (20 * world.dim))])
        embeddings = [[rng.random() for _ in range(world.dim)] for _ in range(users)]
        k = min(world.k, rng.choice([1, world.k, world.cost // users]))
        body = {"version": world.version, "embeddings": embeddings, "k": k}
        if rng.random() < 0.5:
            body["exclude"] = [self._items_of(20_000 // users) for _ in range(users)]
        return self._sent("searches", b"/v1/search", body)

    def _similar(self) -> Sent:
        body = {"item_ids": self._items_of(1000), "k": self._world.k, "exclude": self._items_of(self._world.history)}
        return self._sent("similar", b"/v1/similar", body)

    def _explained(self) -> Sent:
        rng, version = self._rng, self._world.version
        history, shown = (
            [{"item_id": item} for item in self._items_of(10_000)],
            self._items_of(rng.choice([1, 100, 50_000])),
        )
        bodies: list[tuple[bytes, Any]] = [
            (b"/v1/explain", {"version": version, "item_ids": shown, "history": history, "num_reasons": 10}),
            (b"/v1/items/find", {"names": [f"a name {number}" for number in range(rng.choice([10, 500, 50_000]))]}),
            (b"/v1/items/find", {"names": ["n" * 900_000]}),
        ]
        return self._sent("the page", *rng.choice(bodies))

    def _outcomes(self) -> Sent:
        one = {"impression_id": "a" * 20, "item_id": self._items_of(1)[0], "action": "save"}
        return self._sent("outcomes", b"/v1/outcomes", [one] * self._rng.choice([10, 1000, 8000]))

    def _names(self) -> Sent:
        """Fields that nobody has: a server looks for the nearest name."""
        rng = self._rng
        names = rng.choice([[f"name {number}" for number in range(40_000)], ["k" * 900_000], ["kk" * 1000] * 10])
        fields = dict.fromkeys(names, 1)
        bodies: list[tuple[bytes, Any]] = [
            (path, around)
            for path in ADDRESSES
            for around in (
                fields, {"k": 5, "user": fields, "filter": fields}, {"request": fields, "quotas": fields},
                {"user_id": 1, "item_id": 1} | fields, {"history": [{"item_id": 1} | fields]},
            )
        ]  # fmt: skip
        return self._sent("unknown names", *rng.choice(bodies))

    def _numbers(self) -> Sent:
        rng = self._rng
        values = [b"9" * 900_000, b"0." + b"3" * 900_000, b"1e" + b"9" * 900_000, b'"' + b"\\u00e4" * 150_000 + b'"']
        value = rng.choice([*values, b'"' + b"a" * 900_000 + b'"'])
        body = rng.choice([b'{"k": %s}', b'{"history": [{"item_id": %s}]}', b'{"user_id": %s, "item_id": 1}', b"%s"])
        return Sent("large: numbers and texts", post(rng.choice(ADDRESSES), body % value), ANSWERED)

    def _nested(self) -> Sent:
        begin, end = self._rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
        depth = 900_000 // len(begin + end)
        around = self._rng.choice([b"%s", b'{"history": %s}', b'{"user": {"a": %s}}'])
        return Sent(
            "large: nested", post(self._rng.choice(ADDRESSES), around % (begin * depth + end * depth)), ANSWERED
        )

    def _cut_in_chunks(self) -> Sent:
        """A body in many small parts."""
        rng = self._rng
        body = json.dumps({"history": [{"item_id": item} for item in self._items_of(8000)]}).encode()
        size = rng.choice([1, 2, 16])
        body = body.ljust(1_000_000 // (size + 5) * size)[: 1_000_000 // (size + 5) * size]
        chunks = b"".join(b"%x\r\n%s\r\n" % (size, body[at : at + size]) for at in range(0, len(body), size))
        head = b"POST /v1/retrieve HTTP/1.1\r\nHost: fuzz\r\nTransfer-Encoding: chunked\r\n\r\n"
        return Sent("large: small chunks", head + chunks + b"0\r\n\r\n", ANSWERED)

    def _pipelined(self) -> Sent:
        """Many requests at once; only the first answer is read."""
        one = self._rng.choice(
            [post(b"/v1/retrieve", b'{"k":1}'), b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"]
        )
        return Sent("large: pipelined", one * (1_000_000 // len(one)), ANY)

    def _items(self) -> Sent:
        """New items that are refused: without the token, or with a wrong one among them."""
        world, rng = self._world, self._rng
        count = min(2000, 800_000 // (20 * world.dim))
        embeddings = [[rng.random() for _ in range(world.dim)] for _ in range(count)]
        items: list[Any] = [{"item_id": f"new {number}"} for number in range(count - 1)]
        bodies: list[tuple[bytes, Any]] = [
            (b"items", {"version": world.version, "items": [*items, {"nothing": 1}], "embeddings": embeddings}),
            (b"takedown", {"item_ids": [*range(150_000), None]}),
        ]
        name, body = rng.choice(bodies)
        header = b"Authorization: Bearer %s\r\n" % rng.choice([world.token.encode(), b"wrong"])
        headers = header + b"Content-Type: application/json\r\n"
        content = json.dumps(body).encode()[: world.body_bytes]
        return Sent("large: new items", post(b"/v1/admin/" + name, content, headers), ANSWERED)
