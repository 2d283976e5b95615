"""The API: addresses, limits, errors and events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from asking import call, living, settings
from publishing import Published

from recsys.release.runtime.retriever import Query, Retriever
from recsys.serving.http.app import App


def test_answers_of_the_contract(published: Published, stored: Path, queries: dict[str, Query]) -> None:
    version = published.versions[0]
    user, query = next(iter(queries.items()))

    async def use(app: App) -> None:
        answer = await call(app, "POST", "/v1/retrieve", {"user_id": user, "k": 3}, {"x-request-id": "abc1"})
        (expected,) = Retriever.load(published.store, version).retrieve([query], 3)
        items = answer.body.pop("items")
        assert len(answer.body.pop("impression_id")) == 20
        assert [item["item_id"] for item in items] == expected.item_ids
        assert [item["score"] for item in items] == pytest.approx(expected.scores.tolist(), abs=1e-5)
        assert answer.body == {
            "version": version,
            "user_tower_version": version,
            "index_version": version,
            "host": "127.0.0.1:1",
            "history_length": expected.history_length,
            "unknown_items": [],
        }
        assert (answer.headers[b"content-type"], answer.headers[b"x-request-id"]) == (b"application/json", b"abc1")
        several = await call(app, "POST", "/v1/retrieve", [{"user_id": user, "k": 3}, {"k": 2}])
        assert several.body[0]["items"] == items
        assert len(several.body[1]["items"]) == 2
        held = {"test": {"serving": version, "loaded": [version]}}
        assert (await call(app, "GET", "/v1/hosts")).body == {"127.0.0.1:1": held}
        assert (await call(app, "GET", "/v1/version")).body == held
        told = await call(app, "GET", "/metrics", as_json=False)
        assert told.headers[b"content-type"].startswith(b"text/plain")
        for line in (
            f'recsys_versions_met_total{{index="{version}",user_tower="{version}"}} 3.0',
            'recsys_requests_total{route="/v1/retrieve",status="200"} 2.0',
            "recsys_version_mismatches_total 0.0",
            'recsys_stage_seconds_count{stage="tower"} 3.0',
        ):
            assert line in told.body, told.body
        for path in ("/healthz", "/readyz"):
            assert (await call(app, "GET", path)).status == 200
        embedding = Retriever.load(published.store, version).embed([query])
        search = {
            "version": version,
            "embeddings": embedding.tolist(),
            "k": 3,
            "exclude": [list(expected.item_ids)[:1]],
        }
        found = await call(app, "POST", "/v1/search", search)
        assert found.body["version"] == version
        assert len(found.body["results"][0]["item_ids"]) == 3
        assert expected.item_ids[0] not in found.body["results"][0]["item_ids"]
        refused = await call(app, "POST", "/v1/search", search | {"version": "x"})
        assert refused.status == 409
        assert (refused.body["serving"], refused.body["loaded"]) == (version, [version])
        assert refused.body["error"]["code"] == "version_not_held"

    living(settings(published, stored), use)


WRONG: list[tuple[str, Any, int, str | None]] = [
    ("/v1/retrieve", b"{", 400, None),
    ("/v1/retrieve", b"", 400, None),
    ("/v1/retrieve", b"\xff\xfe", 400, None),
    ("/v1/retrieve", b'{"user_id": "\xff"}', 400, None),
    ("/v1/retrieve", b"[" * 90_000, 400, "[0]"),
    ("/v1/retrieve", 7, 400, None),
    ("/v1/retrieve", {"kk": 3}, 400, "kk"),
    ("/v1/retrieve", {"k": 0}, 400, "k"),
    ("/v1/retrieve", {"k": 1001}, 400, "k"),
    ("/v1/retrieve", {"k": "3"}, 400, "k"),
    ("/v1/retrieve", {"k": 1e300}, 400, "k"),
    ("/v1/retrieve", {"user_id": 1.5}, 400, "user_id"),
    ("/v1/retrieve", {"user_id": 2**70}, 400, "user_id"),
    ("/v1/retrieve", {"user_id": True}, 400, "user_id"),
    ("/v1/retrieve", {"user_id": "\ud800"}, 400, None),
    ("/v1/retrieve", {"history": {}}, 400, "history"),
    ("/v1/retrieve", {"history": ["a"]}, 400, "history[0]"),
    ("/v1/retrieve", {"history": [{"item_id": None}]}, 400, "history[0].item_id"),
    ("/v1/retrieve", {"history": [{"item_id": "a", "labels": ["x", 1]}]}, 400, "history.labels"),
    ("/v1/retrieve", {"history": [{"item_id": "a"}] * 101}, 413, "history"),
    ("/v1/retrieve", {"filter": {"price": [[1]]}}, 400, "filter[...][0]"),
    ("/v1/retrieve", {"filter": {"title": None}}, 400, "filter[...]"),
    ("/v1/retrieve", {"filter": {"price": 2**70}}, 400, "filter.price"),
    ("/v1/retrieve", [{}, {"k": 0}], 400, "[1].k"),
    ("/v1/retrieve", [{}, {"user": {"contry": 1}}], 400, "[1].user.contry"),
    ("/v1/retrieve", [{}] * 21, 413, None),
    ("/v1/retrieve", b" " * 100_001, 413, None),
    ("/v1/events", {"user_id": "a"}, 400, "item_id"),
    ("/v1/events", [{"user_id": "a", "item_id": "b"}, {"user_id": "a", "item_id": [1]}], 400, "[1].item_id"),
    ("/v1/events", {"user_id": "a", "item_id": "b", "timestamp": "soon"}, 400, "timestamp"),
    ("/v1/events", {"user_id": "a", "item_id": "b", "actoin": "save"}, 400, "actoin"),
    ("/v1/events", [{"user_id": "a", "item_id": "b"}] * 21, 413, None),
    ("/v1/search", {"version": "CURRENT", "embeddings": [[1, 2], [3]]}, 400, "embeddings"),
    ("/v1/search", {"version": "CURRENT", "embeddings": [[1, 2]]}, 400, "embeddings"),
    ("/v1/search", {"version": "CURRENT", "embeddings": "abc"}, 400, "embeddings"),
    ("/v1/search", {"version": "CURRENT", "embeddings": [["1"] * 16]}, 400, "embeddings"),
    ("/v1/search", {"version": "CURRENT", "embeddings": [[1e300] * 16]}, 400, "embeddings"),
    ("/v1/search", {"version": "CURRENT", "embeddings": [[0.0] * 16], "k": 1001}, 400, "k"),
    ("/v1/search", {"version": "CURRENT", "embeddings": [[0.0] * 16], "exclude": [[], []]}, 400, "exclude"),
    ("/v1/search", {"version": "CURRENT", "embeddings": []}, 400, "embeddings"),
    ("/v1/nothing", {}, 404, None),
    ("/v1/hosts", {}, 405, None),
    ("/v1/admin/load", {"version": "CURRENT"}, 401, None),
]


def test_invalid_requests_are_refused_with_the_field_and_store_nothing(published: Published, tmp_path: Path) -> None:
    version = published.versions[0]

    async def use(app: App) -> None:
        others = []
        for path, body, status, field in WRONG:
            if isinstance(body, dict) and body.get("version") == "CURRENT":
                body = body | {"version": version}
            answer = await call(app, "POST", path, body)
            error = answer.body.get("error", {}) if isinstance(answer.body, dict) else {}
            if (answer.status, error.get("field")) != (status, field) or not error.keys() >= {"code", "message"}:
                others.append((path, str(body)[:80], answer.status, error))
        assert others == []
        good = await call(app, "POST", "/v1/retrieve", {"user_id": "a"})
        assert (good.status, good.body["history_length"]) == (200, 0)
        wrong_method = await call(app, "GET", "/v1/retrieve")
        assert (wrong_method.status, wrong_method.headers[b"allow"]) == (405, b"POST")

    living(settings(published, tmp_path / "events.sqlite"), use)


def test_the_next_retrieve_sees_an_acknowledged_event(published: Published, tmp_path: Path) -> None:
    retriever = Retriever.load(published.store, published.versions[0])
    history: list[dict[str, Any]] = []

    async def use(app: App) -> None:
        for number in range(12):
            event = {"item_id": f"i{number:03d}", "timestamp": 1000 + number, "action": "save"}
            answer = await call(app, "POST", "/v1/events", {"user_id": "new", **event})
            assert (answer.status, answer.body) == (200, {"stored": 1, "repeated": 0, "dropped": 0})
            history.append(event)
            found = await call(app, "POST", "/v1/retrieve", {"user_id": "new", "k": 5})
            (expected,) = retriever.retrieve([Query(history, "new")], 5)
            assert [item["item_id"] for item in found.body["items"]] == expected.item_ids
            assert found.body["history_length"] == min(number + 1, retriever.manifest.max_history)
        late = [{"user_id": "new", "item_id": "i050", "timestamp": 1}, {"user_id": 5, "item_id": "i001"}]
        stored = {"stored": 2, "repeated": 0, "dropped": 0}
        assert (await call(app, "POST", "/v1/events", late)).body == stored
        assert (await call(app, "POST", "/v1/events", late)).body == {"stored": 0, "repeated": 2, "dropped": 0}
        far = {"user_id": "new", "item_id": "i001", "timestamp": "9999-01-01"}
        assert (await call(app, "POST", "/v1/events", far)).status == 400

    living(settings(published, tmp_path / "events.sqlite"), use)

    async def again(app: App) -> None:
        assert (await call(app, "POST", "/v1/retrieve", {"user_id": 5})).body["history_length"] == 1
        assert (await call(app, "POST", "/v1/retrieve", {"user_id": "5"})).body["history_length"] == 0
        found = await call(app, "POST", "/v1/retrieve", {"user_id": "new", "k": 1000})
        assert "i050" not in [item["item_id"] for item in found.body["items"]]

    living(settings(published, tmp_path / "events.sqlite"), again)
