"""After any accepted event, a retrieve of its user is answered. `RECSYS_FUZZ_EVENTS=100000` draws that many events."""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from asking import MAX_EVENTS, call, living, settings
from publishing import Published

from recsys.serving.events import SQLiteEvents
from recsys.serving.gateway.host_client import LocalHost
from recsys.serving.http.app import App
from recsys.serving.http.codec import Decoder, encode
from recsys.serving.http.messages import SearchRequest, SearchResponse

NUM_EVENTS = int(os.environ.get("RECSYS_FUZZ_EVENTS", "600"))
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 3, -1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 10**30, 0.5, 1e308, 1e-320,
    "", "save", "click", "3", "2020-01-01", "ü", "\ud800", "\x00", "x" * 300, "\x01" * 300, "x" * 5000,
    [], [None], ["a"], ["a", 3], [3, 2.5], [[1.0]], [1.0, 2.0, 3.0], [2**62 + 1, 0.5, 1], [1.0, None, 2], ["x"] * 900,
    {}, {"a": 1},
)  # fmt: skip
FEATURES = ("action", "dwell", "labels", "seen_vector", "surface", "query")
TIMES = (None, 0, 5, 1000.7, 10**9, "2001-01-01", "2001-01-01T00:00:00+02:00", -1, 9 * 10**9, 253_402_300_799, 2**60,
         "9999-12-31", "soon", True, [1], 1e300)  # fmt: skip


def draw(rng: random.Random) -> Any:
    """Return an event, mostly valid in its ids, so that many are accepted."""

    def one_of(likely: Any, share: float = 0.9) -> Any:
        return likely if rng.random() < share else rng.choice(VALUES)

    event: dict[str, Any] = {
        "user_id": one_of(rng.choice(["u001", "new", 5, "5", rng.randrange(40)])),
        "item_id": one_of(rng.choice(["i001", f"i{rng.randrange(90):03d}", "unknown", 7])),
    }
    if rng.random() < 0.8:
        event["timestamp"] = rng.choice([rng.randrange(10**6), rng.choice(TIMES)])
    valid = {
        "action": "save",
        "dwell": 1.5,
        "labels": ["a", "zz"],
        "seen_vector": [1, 2.5, 0],
        "surface": "home",
        "query": "q",
    }
    for name in rng.sample(FEATURES, rng.randrange(4)):
        event[name] = one_of(valid[name], 0.7)
    if rng.random() < 0.02:
        event[rng.choice(["actoin", "\ud800", "", "item_idx"])] = 1
    return event if rng.random() < 0.98 else rng.choice(VALUES)


def test_after_an_accepted_event_a_retrieve_of_its_user_is_answered(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, decode = LocalHost.search, Decoder(SearchRequest)

    async def as_over_http(self: LocalHost, request: SearchRequest) -> SearchResponse:
        body = encode(request)
        assert len(body) <= 1 << 20
        return await search(self, decode(body))

    monkeypatch.setattr(LocalHost, "search", as_over_http)
    rng, counts, touched = random.Random(1), Counter[str](), set[int | str]()

    async def use(app: App) -> None:
        left = NUM_EVENTS
        while left > 0:
            posted: Any = [draw(rng) for _ in range(rng.choice([1, 1, 2, 20]))]
            left -= len(posted)
            if len(posted) == 1 and rng.random() < 0.5:
                posted = posted[0]
            answer = await call(app, "POST", "/v1/events", posted, JSON)
            counts[str(answer.status)] += 1
            assert answer.status in (200, 400, 413), answer
            if answer.status != 200:
                continue
            events = posted if isinstance(posted, list) else [posted]
            assert sum(answer.body.values()) == len(events)
            counts.update(answer.body)
            users = {event["user_id"] for event in events}
            touched.update(users)
            for user in users:
                assert (await call(app, "POST", "/v1/retrieve", {"user_id": user, "k": 3})).status == 200
        # Together in one microbatch.
        for begin in range(0, len(touched), 20):
            together = [{"user_id": user} for user in list(touched)[begin : begin + 20]]
            assert (await call(app, "POST", "/v1/retrieve", together)).status == 200
        text = (await call(app, "GET", "/metrics", as_json=False)).body
        counted = {what: float(re.search(rf'what="{what}"}} (\S+)', text)[1]) for what in OUTCOMES}  # type: ignore[index]
        assert counted == {what: counts[what] for what in OUTCOMES}

    # On a busy machine no request is refused for having waited.
    living(settings(published, tmp_path / "events.sqlite", body_bytes=1 << 20, queue_seconds=600.0), use)
    store = SQLiteEvents(tmp_path / "events.sqlite", MAX_EVENTS)
    kept = sum(map(len, store.histories(list(touched))))
    store.close()
    # A full history gives up an old event for a new one.
    assert kept <= counts["stored"]
    assert min(counts["200"], counts["400"], counts["stored"]) > NUM_EVENTS / 60


OUTCOMES = ("stored", "repeated", "dropped")
JSON = {"content-type": "application/json"}
