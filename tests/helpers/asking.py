"""Helpers for tests of servers: settings, stored users of the small world, and calls without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow.parquet as pq
from publishing import Published

from recsys.release.runtime.retriever import Query
from recsys.serving.assembly import build_app
from recsys.serving.events import Event, Restored, SQLiteEvents
from recsys.serving.http.app import App
from recsys.serving.settings import Settings

MAX_EVENTS = 50


class Answer(NamedTuple):
    status: int
    body: Any
    headers: dict[bytes, bytes]


class HasStore(Protocol):
    @property
    def store(self) -> Path: ...


def settings(published: HasStore, events: Path, **changes: Any) -> Settings:
    given: dict[str, Any] = {
        "role": "all",
        "release": "candidate",
        "store": str(published.store),
        "model": None,
        "host": "127.0.0.1",
        "port": 1,
        "workers": 1,
        "drain_seconds": 0,
        "towers": 3,
        "follow_seconds": 0.05,
        "hosts": None,
        "shards": None,
        "shard": None,
        "changes": str(events.with_name("changes.journal")),
        "monitor": 1.0,
        "events": str(events),
        "max_events": MAX_EVENTS,
        "suppressed": str(events.with_name("suppressed")),
        "samples": str(events.with_name("samples")),
        "samples_share": 0.0,
        "samples_bytes": 1 << 20,
        "page": None,
        "admin_token": "secret-of-the-tests",
        "k": 1000,
        "history": 100,
        "batch": 20,
        "body_bytes": 100_000,
        "log_level": "info",
    }
    return Settings(**(given | changes))


def queries_of(published: Published) -> dict[str, Query]:
    """Return the whole history and the profile of each user, read from the tables."""
    users = {row.pop("user_id"): row for row in pq.read_table(published.root / "users.parquet").to_pylist()}
    histories: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(published.root / "interactions.parquet").to_pylist():
        histories.setdefault(row.pop("user_id"), []).append(row)
    return {
        user: Query(sorted(events, key=lambda event: event["timestamp"]), user, users.get(user, {}))
        for user, events in sorted(histories.items())
    }


def store_users(path: Path, queries: Mapping[str, Query]) -> None:
    """Store the histories and profiles of the queries."""
    store = SQLiteEvents(path, MAX_EVENTS)
    users = []
    for user, query in queries.items():
        events = []
        for row in query.history:
            features = {name: value for name, value in row.items() if name not in ("item_id", "timestamp")}
            events.append(Event(row["item_id"], row["timestamp"], features))
        users.append(Restored(user, events, query.user))
    store.restore(users, "tables", done=1)
    store.close()


async def call(
    app: App,
    method: str,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    as_json: bool = True,
) -> Answer:
    """One request; `body` is JSON unless it is bytes."""
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    given = {"content-type": "application/json", **(headers or {})}
    named = [(name.encode(), value.encode()) for name, value in given.items()]
    sent: list[dict[str, Any]] = []

    received = iter([{"type": "http.request", "body": content, "more_body": False}])

    async def receive() -> dict[str, Any]:
        # A client that stays connected sends nothing more.
        return next(received, None) or await asyncio.Future()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    path, _, query = path.partition("?")
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": named}
    await app(scope, receive, send)
    begin, *parts = sent
    answered = b"".join(part["body"] for part in parts)
    assert len(dict(begin["headers"])) == len(begin["headers"])
    return Answer(
        begin["status"], json.loads(answered or b"null") if as_json else answered.decode(), dict(begin["headers"])
    )


def living(wanted: Settings, use: Callable[[App], Coroutine[Any, Any, Any]]) -> Any:
    """Run `use` between the start and the end of a server's life."""

    async def run() -> Any:
        app, _ = build_app(wanted)
        told: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        said: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        life = asyncio.create_task(app({"type": "lifespan"}, told.get, said.put))
        await told.put({"type": "lifespan.startup"})
        assert (await said.get())["type"] == "lifespan.startup.complete"
        try:
            return await use(app)
        finally:
            await told.put({"type": "lifespan.shutdown"})
            await life
            assert (await said.get())["type"] == "lifespan.shutdown.complete"

    return asyncio.run(run())
