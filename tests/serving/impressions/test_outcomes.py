"""Answers carry impression ids, and outcomes join to them over HTTP: within the window, once, from any gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from asking import Answer, call, living, settings
from publishing import Published

from recsys.core.errors import UserError
from recsys.serving.events import StoreError
from recsys.serving.http.app import App
from recsys.serving.impressions import open_impressions
from recsys.serving.impressions.joining import GivenOutcome, Joined, OutcomeJoiner
from recsys.serving.impressions.recorder import ImpressionRecorder
from recsys.serving.impressions.sqlite import SQLiteImpressions
from recsys.serving.observability.metrics import Metrics

POST = "/v1/outcomes"


def counts(*numbers: int) -> dict[str, int]:
    return dict(zip(("stored", "repeated", "unknown", "late"), numbers, strict=True))


def test_answers_have_ids_whose_records_name_version_generator_and_items(published: Published, tmp_path: Path) -> None:
    async def use(app: App) -> list[dict[str, Any]]:
        asked = [{"user_id": "u001", "k": 3}, {"k": 2}, {"user_id": 7, "k": 1}]
        (await call(app, "GET", "/readyz"))
        single = (await call(app, "POST", "/v1/retrieve", asked[0])).body
        several = (await call(app, "POST", "/v1/retrieve", asked[1:])).body
        item = single["items"][0]["item_id"]
        similar = (await call(app, "POST", "/v1/similar", {"item_ids": [item], "k": 2})).body
        return [single, *several, similar]

    events = tmp_path / "events.sqlite"
    answers = living(settings(published, events), use)
    assert len({answer["impression_id"] for answer in answers}) == 4
    store = open_impressions(str(events))
    recorded = [one for _, batch in store.batches(0) for one in batch.impressions]
    store.close()
    assert [(one.user_id, one.version, one.generator, one.item_ids) for one in recorded] == [
        (user, answer["version"], generator, [item["item_id"] for item in answer["items"]])
        for user, generator, answer in zip(
            ("u001", None, 7, None), ("test", "test", "test", "similar"), answers, strict=True
        )
    ]


def test_an_id_as_long_as_a_request_is_not_recorded(published: Published, tmp_path: Path) -> None:
    async def use(app: App) -> list[Answer]:
        return [await call(app, "POST", "/v1/retrieve", {"user_id": "u" * size, "k": 3}) for size in (4096, 4097)]

    kept, long = living(settings(published, tmp_path / "events.sqlite"), use)
    assert (kept.status, long.status) == (200, 200)
    assert "impression_id" in kept.body
    assert "impression_id" not in long.body
    assert (tmp_path / "events.impressions.sqlite").read_bytes().count(b"u" * 4096) <= 1


def test_outcomes_are_counted_by_what_became_of_them(published: Published, tmp_path: Path) -> None:
    async def use(app: App) -> list[Answer]:
        answer = (await call(app, "POST", "/v1/retrieve", {"user_id": "u001", "k": 3})).body
        first, other = (item["item_id"] for item in answer["items"][:2])
        saved = {"impression_id": answer["impression_id"], "item_id": first, "action": "save"}
        shown = [
            saved,
            [saved, saved | {"action": "click"}, saved | {"item_id": other}, saved | {"item_id": "nowhere"}],
            saved | {"impression_id": "A" * 20, "item_id": first},
            saved | {"impression_id": "no id", "item_id": first},
            saved | {"item_id": other, "action": "late", "timestamp": int(time.time()) - 2 * 86400},
            [],
        ]
        answers = [await call(app, "POST", POST, body) for body in shown]
        metrics = (await call(app, "GET", "/metrics", as_json=False)).body
        for what, number in counts(3, 1, 3, 1).items():
            assert f'recsys_outcomes_total{{what="{what}"}} {number}.0' in metrics
        return answers

    answers = living(settings(published, tmp_path / "events.sqlite"), use)
    assert [answer.status for answer in answers] == [200] * 6
    assert [answer.body for answer in answers] == [
        counts(1, 0, 0, 0), counts(2, 1, 1, 0), counts(0, 0, 1, 0), counts(0, 0, 1, 0), counts(0, 0, 0, 1),
        counts(0, 0, 0, 0),
    ]  # fmt: skip


TOKEN = {"authorization": "Bearer token-of-events-1"}
VALID = {"impression_id": "A" * 20, "item_id": 1, "action": "save"}


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({**VALID, "item_id": None}, 400, "item_id"),
        ({**VALID, "item_id": 2**63}, 400, "item_id"),
        ({**VALID, "item_id": ""}, 400, "item_id"),
        ({**VALID, "item_id": "\ud800"}, 400, None),
        ({**VALID, "action": ""}, 400, "action"),
        ({**VALID, "action": 3}, 400, "action"),
        ({**VALID, "action": "a\n"}, 400, "action"),
        ({**VALID, "action": "a" * 65}, 400, "action"),
        ({**VALID, "impression_id": 5}, 400, "impression_id"),
        ({**VALID, "impresion_id": "x"}, 400, "impresion_id"),
        ({**VALID, "timestamp": "soon"}, 400, "timestamp"),
        ({**VALID, "timestamp": -1}, 400, "timestamp"),
        ({**VALID, "timestamp": 253370764800}, 400, "timestamp"),
        ({"item_id": 1, "action": "save"}, 400, None),
        ([VALID, {**VALID, "timestamp": True}], 400, "[1].timestamp"),
        ([VALID, {**VALID, "item_id": "i" * 4096}], 400, "[1]"),
        (5, 400, None),
        ([VALID] * 21, 413, None),
    ],
)
def test_wrong_outcomes_are_refused_with_the_field(app: App, body: Any, status: int, field: str | None) -> None:
    answer = asyncio.run(call(app, "POST", POST, body, TOKEN))
    assert answer.status == status, answer.body
    assert answer.body["error"].get("field") == field, answer.body


@pytest.fixture(scope="module")
def app(published: Published, tmp_path_factory: pytest.TempPathFactory) -> App:
    from recsys.serving.assembly import build_app

    given = settings(published, tmp_path_factory.mktemp("outcomes") / "events.sqlite", events_token="token-of-events-1")
    return build_app(given)[0]


def test_outcomes_need_json_and_the_token_of_events(app: App) -> None:
    wrong = asyncio.run(call(app, "POST", POST, VALID, {"content-type": "text/plain", "authorization": "Bearer x"}))
    assert wrong.status == 401
    assert asyncio.run(call(app, "POST", POST, VALID, {"content-type": "text/plain", **TOKEN})).status == 415


def test_without_a_share_nothing_is_recorded_and_outcomes_have_no_address(published: Published, tmp_path: Path) -> None:
    async def use(app: App) -> tuple[Answer, Answer]:
        return await call(app, "POST", "/v1/retrieve", {"k": 1}), await call(app, "POST", POST, VALID)

    answer, outcome = living(settings(published, tmp_path / "events.sqlite", impressions_share=0.0), use)
    assert "impression_id" not in answer.body
    assert outcome.status == 404
    assert not list(tmp_path.glob("*impressions*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"impressions_share": 1.5}, "impressions.share: found 1.5"),
        ({"impressions_bytes": 5}, "impressions.bytes: found 5"),
        ({"outcomes_window_hours": 0}, "outcomes.window_hours: found 0"),
        ({"outcomes_window_hours": 500}, "at most impressions.keep_hours=168"),
    ],
)
def test_impossible_settings_are_refused(
    published: Published, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        settings(published, tmp_path / "events.sqlite", **changes)


def test_outcomes_join_at_another_gateway_and_after_a_restart(tmp_path: Path) -> None:
    place = str(tmp_path / "events.sqlite")

    def outcomes(*ids: str, action: str = "save") -> list[GivenOutcome]:
        return [GivenOutcome(one, 2, action, int(time.time())) for one in ids]

    async def first() -> Sequence[str | None]:
        stores = open_impressions(place), open_impressions(place)
        recorders = [ImpressionRecorder(store, 1.0, metrics=Metrics()) for store in stores]
        joiners = [
            OutcomeJoiner(store, recorder.hurry, window_hours=1)
            for store, recorder in zip(stores, recorders, strict=True)
        ]
        ids = [recorders[0].record("a", "v1", generator="g", item_ids=[1, 2]) for _ in range(600)]
        known = [one for one in ids if one]
        # The first batches are full; the last one is still open, and another process waits for it.
        assert await joiners[1].join(outcomes(known[0], known[-1])) == {Joined.STORED: 2, Joined.REPEATED: 0}
        begin = time.monotonic()
        again = recorders[0].record("a", "v1", generator="g", item_ids=[1, 2])
        assert await joiners[0].join(outcomes(str(again), known[0])) == {Joined.STORED: 1, Joined.REPEATED: 1}
        assert time.monotonic() - begin < 5
        for recorder, store in zip(recorders, stores, strict=True):
            recorder.close()
            store.close()
        return known

    known = asyncio.run(first())

    async def then() -> None:
        store = open_impressions(place)
        joiner = OutcomeJoiner(store, lambda _: False, window_hours=1)
        assert await joiner.join(outcomes(*known[:3])) == {Joined.STORED: 2, Joined.REPEATED: 1}
        store.close()

    asyncio.run(then())


def test_a_share_of_the_users_is_recorded_whole(tmp_path: Path) -> None:
    async def use() -> dict[int, set[bool]]:
        store = open_impressions(str(tmp_path / "events.sqlite"))
        recorder = ImpressionRecorder(store, 0.3, metrics=Metrics())
        found: dict[int, set[bool]] = {}
        for _ in range(2):
            for user in range(1000):
                made = recorder.record(user, "v1", generator="g", item_ids=[1])
                found.setdefault(user, set()).add(made is not None)
        recorder.close()
        store.close()
        return found

    found = asyncio.run(use())
    assert all(len(is_recorded) == 1 for is_recorded in found.values())
    assert 250 < sum(True in is_recorded for is_recorded in found.values()) < 350


def test_a_store_that_fails_costs_answers_nothing_and_outcomes_get_503(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise StoreError("impressions: the disk is full")

    async def use(app: App) -> tuple[Answer, Answer]:
        answer = await call(app, "POST", "/v1/retrieve", {"user_id": "u001", "k": 1})
        posted = {**VALID, "impression_id": answer.body["impression_id"], "item_id": answer.body["items"][0]["item_id"]}
        return answer, await call(app, "POST", POST, posted)

    for name in ("add", "get", "add_outcomes"):
        monkeypatch.setattr(SQLiteImpressions, name, fail)
    answer, outcome = living(settings(published, tmp_path / "events.sqlite"), use)
    assert (answer.status, outcome.status) == (200, 503)
    assert "disk is full" in outcome.body["error"]["message"]
