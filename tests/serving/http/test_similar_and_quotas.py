"""Similar items and quotas through the application, against the same computed from the release's own files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from asking import call, living, settings
from publishing import Published

from recsys.core.columns import load_array
from recsys.release.manifest import EMBEDDINGS, ITEM_VOCABULARY, ITEMS
from recsys.serving.gateway.shard_merge import merge
from recsys.serving.http.app import App
from recsys.serving.http.messages import SearchRequest, SearchResponse, SearchResult
from recsys.serving.quotas import within


class Content:
    """Ids, embeddings and categories of the items of a release."""

    def __init__(self, published: Published) -> None:
        folder = published.store / published.versions[0]
        items = pq.read_table(folder / ITEMS)
        known = pq.read_table(folder / ITEM_VOCABULARY)["item_id"].to_pylist()
        self.ids = [known[number - 1] for number in items["item_idx"].to_pylist()]
        self.embeddings = load_array(folder / EMBEDDINGS).view(np.float32)
        self.category = dict(zip(self.ids, items["category"].to_pylist(), strict=True))


@pytest.fixture(scope="module")
def content(published: Published) -> Content:
    return Content(published)


def test_similar_items(published: Published, content: Content, tmp_path: Path) -> None:
    given = content.ids[:2]
    directions = content.embeddings / np.linalg.norm(content.embeddings, axis=1, keepdims=True)
    mean = directions[:2].mean(axis=0)
    scores = content.embeddings @ (mean / np.linalg.norm(mean))
    best = [content.ids[row] for row in np.argsort(-scores, kind="stable") if content.ids[row] not in given]

    async def use(app: App) -> None:
        answer = await call(app, "POST", "/v1/similar", {"item_ids": [*given, "nothing"], "k": 5})
        assert answer.status == 200, answer.body
        assert [item["item_id"] for item in answer.body["items"]] == best[:5]
        assert answer.body["unknown_items"] == ["nothing"]
        assert answer.body["version"] == answer.body["index_version"] == published.versions[0]
        wanted = content.category[best[0]]
        filtered = await call(
            app, "POST", "/v1/similar", {"item_ids": given, "k": 5, "filter": {"category": {"not": wanted}}}
        )
        left = [item for item in best if content.category[item] != wanted]
        assert [item["item_id"] for item in filtered.body["items"]] == left[:5]
        for body, status in (
            ({"item_ids": ["nothing"]}, 400),
            ({"item_ids": []}, 400),
            ({"item_ids": given, "k": 1001}, 400),
            ({"item_ids": given, "exclude": ["a"] * 101}, 413),
            ({"item_ids": given, "version": "nope"}, 409),
        ):
            assert (await call(app, "POST", "/v1/similar", body)).status == status

    living(settings(published, tmp_path / "events.sqlite"), use)


def test_quotas_limit_the_items_of_a_value(published: Published, content: Content, tmp_path: Path) -> None:
    async def use(app: App) -> None:
        ranked = await call(app, "POST", "/v1/retrieve", {"k": 1000})
        order = [item["item_id"] for item in ranked.body["items"]]
        seen: Counter[Any] = Counter()
        expected = []
        for item in order:
            value = content.category[item]
            seen[value] += value is not None
            if value is None or seen[value] <= 2:
                expected.append(item)
        for k in (3, 1000):
            answer = await call(app, "POST", "/v1/retrieve", {"k": k, "quotas": {"category": 2}})
            assert [item["item_id"] for item in answer.body["items"]] == expected[:k]
        wrong = await call(app, "POST", "/v1/retrieve", {"quotas": {"categry": 2}})
        assert (wrong.status, wrong.body["error"]["field"]) == (400, "quotas.categry")
        assert "did you mean 'category'?" in wrong.body["error"]["message"]
        assert (await call(app, "POST", "/v1/retrieve", {"quotas": {"category": 0}})).status == 400

    living(settings(published, tmp_path / "events.sqlite"), use)


@pytest.mark.parametrize(
    ("groups", "quotas", "kept"),
    [
        ([[["a"]], [["a"]], [["b"]], [[]], [["a"]]], {"x": 1}, [0, 2, 3]),
        ([[["a", "b"]], [["b"]], [["c"]]], {"x": 1}, [0, 2]),
        ([[["a"], [1]], [["a"], [2]], [["b"], [1]], [["b"], [3]]], {"x": 2, "y": 1}, [0, 1, 3]),
        ([[["a", "a"]], [["a"]]], {"x": 2}, [0, 1]),
    ],
)
def test_within(groups: Any, quotas: Any, kept: list[int]) -> None:
    assert within(groups, quotas, 10) == kept
    assert within(groups, quotas, 1) == kept[:1]


def test_quotas_hold_over_shards() -> None:
    request = SearchRequest("v", np.zeros((1, 2), np.float32), 3, quotas={"x": 1})
    parts = [
        SearchResult(["a", "b"], np.array([4, 1], np.float32), [[["p"]], [["q"]]]),
        SearchResult(["c", "d"], np.array([3, 2], np.float32), [[["p"]], [["r"]]]),
    ]
    (merged,) = merge(request, [SearchResponse("v", [part]) for part in parts]).results
    assert merged.item_ids == ["a", "d", "b"]


def test_misspelled_fields_get_a_hint_and_the_docs_a_page(published: Published, tmp_path: Path) -> None:
    async def use(app: App) -> None:
        for path, body, hint, field in (
            ("/v1/retrieve", {"filtr": {}}, "filter", "filtr"),
            ("/v1/retrieve", [{"user": {}}, {"usr_id": 1}], "user_id", "[1].usr_id"),
            ("/v1/similar", {"item_ids": ["a"], "exlude": []}, "exclude", "exlude"),
        ):
            answer = await call(app, "POST", path, body)
            assert answer.status == 400
            assert f"did you mean '{hint}'?" in answer.body["error"]["message"]
            assert answer.body["error"]["field"] == field

    living(settings(published, tmp_path / "events.sqlite"), use)
