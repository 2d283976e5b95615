"""Items by name, explanations, and users by prefix."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from asking import Answer, call, living, queries_of, settings, store_users
from publishing import Published

from recsys.serving.http.app import App


@pytest.fixture(scope="module")
def events(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("explorer") / "events.sqlite"
    store_users(path, queries_of(published))
    return path


def ask(published: Published, events: Path, *asked: tuple[Any, ...]) -> list[Answer]:
    """Answers to (method, path, body?, headers?), in order, of one server."""

    async def use(app: App) -> list[Answer]:
        return [await call(app, *one) for one in asked]

    answers: list[Answer] = living(settings(published, events), use)
    return answers


@pytest.fixture(scope="module")
def titles(published: Published) -> dict[str, str]:
    rows = pq.read_table(published.store / published.versions[0] / "items.parquet").to_pylist()
    return {row["item_id"]: row["title"] for row in rows}


def test_items_by_text(published: Published, events: Path, titles: dict[str, str]) -> None:
    found, few = ask(published, events, ("GET", "/v1/items?q=title+1"), ("GET", "/v1/items?q=I00&limit=3"))
    assert found.status == 200
    assert found.body["version"] == published.versions[0]
    assert [card["title"] for card in found.body["items"]][0] == "Title 1"
    assert all(titles[card["item_id"]] == card["title"] for card in found.body["items"])
    assert all(card["item_id"].startswith("i00") for card in few.body["items"])
    assert len(few.body["items"]) == 3


def test_pasted_names(published: Published, events: Path, titles: dict[str, str]) -> None:
    item, title = next((item, title) for item, title in titles.items() if title and len(title) == 8)
    (found,) = ask(published, events, ("POST", "/v1/items/find", {"names": [item, title.upper(), "nothing"]}))
    assert [entry["item"] and entry["item"]["item_id"] for entry in found.body["found"]] == [item, item, None]
    assert [entry["matches"] for entry in found.body["found"]] == [1, 1, 0]


def test_names_of_too_many_words_are_refused(
    published: Published, events: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.serving.explorer.routes.MOST_READS", 5 * 90)
    few, found, searched = ask(
        published,
        events,
        ("POST", "/v1/items/find", {"names": ["a b b b b", "a c"]}),
        ("POST", "/v1/items/find", {"names": ["a b c", "d e f"]}),
        ("GET", "/v1/items?q=a+b+c+d+e+f", None),
    )
    assert few.status == 200
    for answer, field in ((found, "names"), (searched, "q")):
        assert (answer.status, answer.body["error"]["field"]) == (413, field)
        assert "found 6 words, expected at most 5" in answer.body["error"]["message"]


def test_explanations_of_an_answer(published: Published, events: Path, titles: dict[str, str]) -> None:
    """The nearest items of the stored history, by the embeddings that the release holds."""
    query = max(queries_of(published).values(), key=lambda one: len(one.history))
    user, version = query.user_id, published.versions[0]
    (retrieved,) = ask(published, events, ("POST", "/v1/retrieve", {"user_id": user, "k": 5}))
    item_ids = [item["item_id"] for item in retrieved.body["items"]]
    given = [{"item_id": event["item_id"], "timestamp": 7, "action": "save"} for event in query.history[:2]]
    asked = {"version": version, "item_ids": item_ids}
    stored, explicit, nobody = ask(
        published,
        events,
        ("POST", "/v1/explain", {**asked, "user_id": user}),
        ("POST", "/v1/explain", {**asked, "user_id": user, "history": given, "num_reasons": 1}),
        ("POST", "/v1/explain", {**asked, "user_id": "nobody"}),
    )
    folder = published.store / version
    order = pq.read_table(folder / "items.parquet")["item_id"].to_pylist()
    vectors = np.load(folder / "item_embeddings.npy")
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    past = list(dict.fromkeys(event["item_id"] for event in query.history))
    assert [(one["item_id"], one["timestamp"]) for one in stored.body["history"]] == [
        (event["item_id"], event["timestamp"]) for event in query.history
    ]
    for item in stored.body["items"]:
        cosines = {other: float(unit[order.index(item["item_id"])] @ unit[order.index(other)]) for other in past}
        best = sorted((other for other in past if cosines[other] > 0), key=lambda other: -cosines[other])[:3]
        assert [reason["item_id"] for reason in item["reasons"]] == best
        assert [reason["similarity"] for reason in item["reasons"]] == pytest.approx(
            [cosines[o] for o in best], abs=1e-4
        )
        assert item["title"] == titles[item["item_id"]]
    assert [one["timestamp"] for one in explicit.body["history"]] == [7, 7]
    assert all(len(item["reasons"]) <= 1 for item in explicit.body["items"])
    assert nobody.body["history"] == []
    assert all(item["reasons"] == [] for item in nobody.body["items"])


def test_users_by_prefix(published: Published, events: Path) -> None:
    found, nobody, first = ask(
        published, events, ("GET", "/v1/users?prefix=u01"), ("GET", "/v1/users?prefix=v"), ("GET", "/v1/users?limit=1")
    )
    assert found.body == {"user_ids": [f"u{number:03d}" for number in range(10, 20)]}
    assert nobody.body == {"user_ids": []}
    assert first.body == {"user_ids": ["u000"]}


def test_another_version_is_explored_once_a_host_holds_it(published: Published, events: Path) -> None:
    first, other = published.versions

    async def use(app: App) -> None:
        before = await call(app, "GET", f"/v1/items?q=i0&version={other}")
        assert (before.status, before.body["error"]["code"], before.body["loaded"]) == (
            409,
            "version_not_held",
            [first],
        )
        loaded = await call(
            app, "POST", "/v1/admin/load", {"version": other}, {"authorization": "Bearer secret-of-the-tests"}
        )
        assert loaded.status == 200
        # The gateway hears of it when it asks its hosts the next time.
        for _ in range(1200):
            (models,) = (await call(app, "GET", "/v1/hosts")).body.values()
            if any(other in held["loaded"] for held in models.values()):
                break
            await asyncio.sleep(0.05)
        items = await call(app, "GET", f"/v1/items?q=i0&version={other}")
        assert (items.status, items.body["version"]) == (200, other)
        explained = await call(app, "POST", "/v1/explain", {"version": other, "item_ids": ["i001"]})
        assert explained.body["version"] == other

    living(settings(published, events), use)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/items", None, None),
        ("/v1/items?q=a&limit=0", None, "limit"),
        ("/v1/items?q=a&limit=x", None, "limit"),
        ("/v1/items?q=a&q=b", None, None),
        ("/v1/items?q=%FF", None, None),
        ("/v1/items?text=a", None, "text"),
        ("/v1/users?limit=101", None, "limit"),
        ("/v1/items/find", {"names": ["a"] * 501}, "names"),
        ("/v1/items/find", {"names": [1]}, "names[0]"),
        ("/v1/explain", {"item_ids": []}, None),
        ("/v1/explain", {"version": "v", "item_ids": [], "history": [{}]}, "history[0]"),
        ("/v1/explain", {"version": "v", "item_ids": [2**70]}, "item_ids[0]"),
    ],
)
def test_invalid_requests_are_refused_with_the_field(
    published: Published, events: Path, path: str, body: Any, field: str | None
) -> None:
    (answer,) = ask(published, events, ("GET" if body is None else "POST", path, body))
    assert answer.status == 400
    assert answer.body["error"].get("field") == field


def test_a_history_beyond_the_limit(published: Published, events: Path) -> None:
    body = {"version": published.versions[0], "item_ids": [], "history": [{"item_id": "a"}] * 101}
    (answer,) = ask(published, events, ("POST", "/v1/explain", body))
    assert (answer.status, answer.body["error"]["field"]) == (413, "history")
