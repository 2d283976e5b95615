"""A small server that speaks the contract as far as the page needs it, over releases made by hand."""

from __future__ import annotations

import mimetypes
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import numpy as np
import pyarrow as pa

from recsys.release.runtime.item_ids import IdMap
from recsys.serving.explorer.item_explorer import ItemExplorer
from recsys.serving.explorer.messages import ExplainRequest, ExplainResponse, FindRequest, FindResponse, ItemsResponse
from recsys.serving.explorer.page_files import HEADERS, PAGE


@dataclass
class HandMade:
    """Releases, histories and hosts; tests change them while the server runs.

    Attributes:
        items: as in `items.parquet`.
        embeddings: of each release, [N, D].
        histories: user -> events, oldest first.
        hosts: what /v1/hosts answers.
        delay: seconds before a retrieve is answered.
        requests: every body that was posted, with its path.
    """

    items: pa.Table
    embeddings: Mapping[str, np.ndarray]
    histories: Mapping[int | str, list[dict[str, Any]]]
    hosts: dict[str, Any]
    delay: float = 0.0
    requests: list[tuple[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        ids = IdMap(self.items["item_id"].combine_chunks())
        self.rows = ids.rows
        self.explorers = {
            name: ItemExplorer(self.items, values.astype(np.float32), rows=ids.rows)
            for name, values in self.embeddings.items()
        }

    @property
    def serving(self) -> str:
        return next(state["serving"] for models in self.hosts.values() if models for state in models.values())

    def history(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        return body["history"] if body.get("history") is not None else self.histories.get(body.get("user_id"), [])

    def retrieve(self, body: dict[str, Any]) -> dict[str, Any]:
        time.sleep(self.delay)
        version = body.get("version") or self.serving
        if version not in self.embeddings:
            raise KeyError(version)
        history = [event["item_id"] for event in self.history(body)]
        rows = self.rows(history)
        known, embeddings = rows[rows >= 0], self.embeddings[version]
        scores = embeddings @ (embeddings[known].mean(axis=0) if len(known) else embeddings.mean(axis=0))
        scores[known] = -np.inf
        best = np.argsort(-scores, kind="stable")[: body.get("k", 100)]
        ids = self.items["item_id"].take(pa.array(best)).to_pylist()
        items = [
            {"item_id": item, "score": float(scores[row])}
            for item, row in zip(ids, best, strict=True)
            if np.isfinite(scores[row])
        ]
        unknown = [item for item, row in zip(history, rows, strict=True) if row < 0]
        pair = {"version": version, "user_tower_version": version, "index_version": version}
        return {"items": items, **pair, "host": "one", "history_length": len(history), "unknown_items": unknown}

    def answer(self, path: str, query: Mapping[str, str], body: Any) -> Any:
        version = query.get("version", self.serving)
        match path:
            case "/v1/hosts":
                return self.hosts
            case "/v1/users":
                found = [user for user in self.histories if str(user).startswith(query.get("prefix", ""))]
                return {"user_ids": found[: int(query.get("limit", 10))]}
            case "/v1/items":
                return ItemsResponse(version, self.explorers[version].search(query["q"], int(query["limit"])))
            case "/v1/items/find":
                names = msgspec.convert(body, FindRequest).names
                return FindResponse(version, [self.explorers[version].find(name) for name in names])
            case "/v1/explain":
                asked = msgspec.convert(body, ExplainRequest)
                explorer, events = self.explorers[asked.version], self.history(body)
                history = [event["item_id"] for event in events]
                past = explorer.past(history, [event.get("timestamp") for event in events])
                explained = explorer.explain(history, asked.item_ids, num_reasons=asked.num_reasons)
                return ExplainResponse(asked.version, past, explained, explorer.similarity)
            case "/v1/retrieve":
                return self.retrieve(body)
        raise KeyError(path)


@contextmanager
def serve(made: HandMade) -> Iterator[str]:
    """The server's address."""
    files = {f"/page/{file.name}": file for file in PAGE.iterdir()} | {"/": PAGE / "index.html"}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:  # noqa: N802
            self._answer(None)

        def do_POST(self) -> None:  # noqa: N802
            body = msgspec.json.decode(self.rfile.read(int(self.headers["content-length"])))
            made.requests.append((self.path, body))
            self._answer(body)

        def _answer(self, body: Any) -> None:
            address = urlsplit(self.path)
            if address.path in files:
                content = files[address.path].read_bytes()
                kind = mimetypes.guess_type(files[address.path])[0] or ""
                return self._send(200, content, HEADERS | {"content-type": kind, "content-length": str(len(content))})
            query = {name: values[-1] for name, values in parse_qs(address.query).items()}
            status = 200
            try:
                content = made.answer(address.path, query, body)
            except KeyError as error:
                status, content = 409, {"error": {"code": "version_not_held", "message": f"no {error}"}}
            encoded = msgspec.json.encode(content)
            return self._send(
                status, encoded, {"content-type": "application/json", "content-length": str(len(encoded))}
            )

        def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
