"""Items come and go over the API: in the next answer, after a restart, and only for those who may."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import Answer, call, living, settings
from publishing import Published

from recsys.serving.http.app import App

TOKEN = {"authorization": "Bearer secret-of-the-tests"}


async def retrieved(app: App, **asked: Any) -> list[Any]:
    answer = await call(app, "POST", "/v1/retrieve", {"k": 1000, **asked})
    assert answer.status == 200, answer.body
    return [item["item_id"] for item in answer.body["items"]]


def test_new_and_removed_items_in_the_next_answer_and_after_a_restart(published: Published, tmp_path: Path) -> None:
    wanted = settings(published, tmp_path / "events.sqlite")
    version = published.versions[0]
    # Unit length, as embeddings by cosine are.
    vector = np.full(16, 0.25).tolist()
    asked = {"version": version, "items": [{"item_id": "new", "category": "fresh"}], "embeddings": [vector]}

    async def change(app: App) -> None:
        before = await retrieved(app)
        answer = await call(app, "POST", "/v1/admin/items", asked, TOKEN)
        assert (answer.status, answer.body) == (200, {"changed": 1})
        assert {*await retrieved(app)} == {*before, "new"}
        assert await retrieved(app, filter={"category": "fresh"}) == ["new"]
        # An item that is newer than the training is unknown in a history, and left out as seen.
        told = await call(app, "POST", "/v1/retrieve", {"history": [{"item_id": "new"}], "k": 1000})
        assert told.body["unknown_items"] == ["new"]
        assert "new" not in [item["item_id"] for item in told.body["items"]]
        answer = await call(app, "POST", "/v1/admin/takedown", {"item_ids": [before[0]]}, TOKEN)
        assert (answer.status, answer.body) == (200, {"changed": 1})
        assert {*await retrieved(app)} == {*before[1:], "new"}

    async def look(app: App) -> list[Any]:
        return await retrieved(app)

    living(wanted, change)
    assert "new" in (after := living(wanted, look))
    assert len(after) == len(
        living(settings(published, tmp_path / "other.sqlite", changes=str(tmp_path / "none.journal")), look)
    )


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("items", {"version": "0" * 16, "items": [], "embeddings": []}, 409, "version"),
        ("items", {"items": [], "embeddings": []}, 400, None),
        ("items", {"version": None, "items": [{"item_id": "new"}], "embeddings": [[1.0, 2.0]]}, 400, "embeddings"),
        ("items", {"version": None, "items": [{"item_id": "new"}], "embeddings": [1.0]}, 400, "embeddings"),
        ("items", {"version": None, "items": [{"item_id": "i001"}], "embeddings": [[0.25] * 16]}, 400, None),
        ("takedown", {"item_ids": [1.5]}, 400, "item_ids[0]"),
        ("takedown", {"ids": ["i001"]}, 400, None),
    ],
)
def test_invalid_input_is_refused(
    published: Published, tmp_path: Path, path: str, body: dict[str, Any], status: int, field: str | None
) -> None:
    # None stands for the version that is served.
    body = {name: published.versions[0] if value is None else value for name, value in body.items()}

    async def use(app: App) -> Answer:
        assert (await call(app, "POST", f"/v1/admin/{path}", body)).status == 401
        return await call(app, "POST", f"/v1/admin/{path}", body, TOKEN)

    answer: Answer = living(settings(published, tmp_path / "events.sqlite"), use)
    assert answer.status == status, answer.body
    if field is not None:
        assert answer.body["error"]["field"] == field
    assert not (tmp_path / "changes.journal").exists()


def test_metrics_contain_the_recall_of_the_index(published: Published, tmp_path: Path) -> None:
    async def use(app: App) -> str:
        for _ in range(3):
            await retrieved(app)
        text = ""
        for _ in range(3000):
            text = (await call(app, "GET", "/metrics", as_json=False)).body
            if f'recsys_index_recall_samples{{version="{published.versions[0]}"}} 3.0' in text:
                break
            await asyncio.sleep(0.02)
        return str(text)

    text = living(settings(published, tmp_path / "events.sqlite"), use)
    # This release's index is exact.
    assert f'recsys_index_recall{{version="{published.versions[0]}"}} 1.0\n' in text
    assert "recsys_index_recall_missed 0.0\n" in text
