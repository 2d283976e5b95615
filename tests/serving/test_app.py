"""The API: addresses, limits, errors, events, admin calls, an alias that moves; and a real server on a socket."""

from __future__ import annotations

import asyncio
import dataclasses
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from asking import MAX_EVENTS, call, living, queries_of, settings, store_users
from publishing import Published

from recsys.errors import UserError
from recsys.recommendation import choose_users, write_recommendations
from recsys.recommenders import open_recommender
from recsys.release.store import ReleaseStore
from recsys.serving.assembly import build_app
from recsys.serving.http import App
from recsys.serving.retriever import Query, Retriever

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def queries(published: Published) -> dict[str, Query]:
    return queries_of(published)


@pytest.fixture
def events(queries: dict[str, Query], tmp_path: Path) -> Path:
    store_users(tmp_path / "events.sqlite", queries)
    return tmp_path / "events.sqlite"


def test_answers_of_the_contract(published: Published, events: Path, queries: dict[str, Query]) -> None:
    version = published.versions[0]
    user, query = next(iter(queries.items()))

    async def use(app: App) -> None:
        answer = await call(app, "POST", "/v1/retrieve", {"user_id": user, "k": 3}, {"x-request-id": "abc1"})
        (expected,) = Retriever.load(published.store, version).retrieve([query], 3)
        items = answer.body.pop("items")
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
            f'recsys_versions_met_total{{user_tower="{version}",index="{version}"}} 3',
            'recsys_requests_total{route="/v1/retrieve",status="200"} 2',
            "recsys_version_mismatches_total 0",
            'recsys_stage_seconds_count{stage="tower"} 3',
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

    living(settings(published, events), use)


WRONG: list[tuple[str, Any, int, str | None]] = [
    ("/v1/retrieve", b"{", 400, None),
    ("/v1/retrieve", b"", 400, None),
    ("/v1/retrieve", b"\xff\xfe", 400, None),
    ("/v1/retrieve", b'{"user_id": "\xff"}', 400, None),
    ("/v1/retrieve", b"[" * 90_000, 400, "[0]"),
    ("/v1/retrieve", 7, 400, None),
    ("/v1/retrieve", {"kk": 3}, 400, None),
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


def test_what_is_wrong_is_said_and_stores_nothing(published: Published, tmp_path: Path) -> None:
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


def test_our_own_mistakes_are_logged_and_not_told(
    published: Published, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(app: App) -> None:
        async def broken(_: Any) -> Any:
            raise RuntimeError("secret")

        app.routes["/v1/hosts"] = {"GET": broken}  # type: ignore[index]
        answer = await call(app, "GET", "/v1/hosts", headers={"x-request-id": "abc2"})
        assert (answer.status, answer.body["error"]["code"]) == (500, "internal")
        assert "secret" not in str(answer.body)
        assert answer.headers[b"x-request-id"] == b"abc2"
        assert "abc2" in answer.body["error"]["message"]
        assert "secret" in caplog.text

    living(settings(published, tmp_path / "events.sqlite"), use)


def test_the_next_retrieve_sees_an_acknowledged_event(published: Published, tmp_path: Path) -> None:
    retriever = Retriever.load(published.store, published.versions[0])
    history: list[dict[str, Any]] = []

    async def use(app: App) -> None:
        for number in range(12):
            event = {"item_id": f"i{number:03d}", "timestamp": 1000 + number, "action": "save"}
            answer = await call(app, "POST", "/v1/events", {"user_id": "new", **event})
            assert (answer.status, answer.body) == (200, {"stored": 1})
            history.append(event)
            found = await call(app, "POST", "/v1/retrieve", {"user_id": "new", "k": 5})
            (expected,) = retriever.retrieve([Query(history, "new")], 5)
            assert [item["item_id"] for item in found.body["items"]] == expected.item_ids
            assert found.body["history_length"] == min(number + 1, retriever.manifest.max_history)
        late = [{"user_id": "new", "item_id": "i050", "timestamp": 1}, {"user_id": 5, "item_id": "i001"}]
        assert (await call(app, "POST", "/v1/events", late)).body == {"stored": 2}

    living(settings(published, tmp_path / "events.sqlite"), use)
    before = time.time()

    async def again(app: App) -> None:
        assert (await call(app, "POST", "/v1/retrieve", {"user_id": 5})).body["history_length"] == 1
        assert (await call(app, "POST", "/v1/retrieve", {"user_id": "5"})).body["history_length"] == 0
        found = await call(app, "POST", "/v1/retrieve", {"user_id": "new", "k": 1000})
        assert "i050" not in [item["item_id"] for item in found.body["items"]]

    living(settings(published, tmp_path / "events.sqlite"), again)
    assert time.time() > before


def test_a_moved_alias_is_served_without_a_restart(
    published: Published, events: Path, queries: dict[str, Query]
) -> None:
    old, new = published.versions
    store = ReleaseStore(published.store)
    store.set_alias("moving", old, "test")
    expected = {
        version: [
            answer.item_ids for answer in Retriever.load(published.store, version).retrieve([*queries.values()], 5)
        ]
        for version in (old, new)
    }
    met = set()

    async def use(app: App) -> None:
        asked = 0
        for version in (new, old, new):
            store.set_alias("moving", version, "test")
            give_up = time.monotonic() + 60
            while time.monotonic() < give_up:
                users = list(queries)
                bodies = [{"user_id": user, "k": 5} for user in users]
                answers = await asyncio.gather(*(call(app, "POST", "/v1/retrieve", body) for body in bodies))
                asked += len(answers)
                for number, answer in enumerate(answers):
                    assert answer.status == 200
                    found = answer.body
                    assert found["version"] == found["user_tower_version"] == found["index_version"]
                    assert [item["item_id"] for item in found["items"]] == expected[found["version"]][number]
                    met.add(found["version"])
                if all(answer.body["version"] == version for answer in answers):
                    break
                await asyncio.sleep(0.01)
            else:
                pytest.fail(f"{version} was never served")
        held = (await call(app, "GET", "/v1/version")).body["test"]
        assert (held["serving"], sorted(held["loaded"])) == (new, sorted((old, new)))

    living(settings(published, events, release="moving"), use)
    assert met == {old, new}


def test_a_release_that_is_not_sound_leaves_the_old_one(
    published: Published, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, _ = published.versions
    store = ReleaseStore(published.store)
    store.set_alias("unsound", old, "test")
    alias = published.store / "aliases/unsound"

    async def use(app: App) -> None:
        alias.write_text("0123456789abcdef\n")
        give_up = time.monotonic() + 30
        while "has no release '0123456789abcdef'" not in caplog.text:
            assert time.monotonic() < give_up
            await asyncio.sleep(0.02)
        assert (await call(app, "POST", "/v1/retrieve", {})).body["version"] == old

    living(settings(published, tmp_path / "events.sqlite", release="unsound"), use)
    alias.unlink()


def test_admin_calls_need_the_token(published: Published, tmp_path: Path) -> None:
    old, new = published.versions
    events = tmp_path / "events.sqlite"
    bearing = {"authorization": "Bearer secret"}

    async def use(app: App) -> None:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
            answer = await call(app, "POST", "/v1/admin/load", {"version": new}, headers)
            assert (answer.status, answer.headers[b"www-authenticate"]) == (401, b"Bearer")
        loaded = await call(app, "POST", "/v1/admin/load", {"version": new}, bearing)
        assert loaded.body == {"test": {"serving": old, "loaded": [old, new]}}
        give_up = time.monotonic() + 30
        while (named := await call(app, "POST", "/v1/retrieve", {"version": new})).status == 409:
            # The gateway's copy of what hosts hold is asked for again twice a second.
            assert named.body["loaded"] == [old]
            assert time.monotonic() < give_up
            await asyncio.sleep(0.05)
        assert (named.status, named.body["user_tower_version"], named.body["index_version"]) == (200, new, new)
        assert (await call(app, "POST", "/v1/retrieve", {})).body["version"] == old
        served = await call(app, "POST", "/v1/admin/serve", {"version": new}, bearing)
        assert served.body["test"]["serving"] == new
        unloaded = await call(app, "POST", "/v1/admin/unload", {"version": new}, bearing)
        assert (unloaded.status, unloaded.body["error"]["code"]) == (409, "is_serving")
        unloaded = await call(app, "POST", "/v1/admin/unload", {"version": old}, bearing)
        assert unloaded.body == {"test": {"serving": new, "loaded": [new]}}
        missing = await call(app, "POST", "/v1/admin/load", {"version": "0123456789abcdef"}, bearing)
        assert missing.status == 400

    living(settings(published, events, release=old), use)

    async def without(app: App) -> None:
        assert (await call(app, "POST", "/v1/admin/load", {"version": new}, bearing)).status == 403

    living(settings(published, events, admin_token=None), without)


def test_settings_that_cannot_be(published: Published, tmp_path: Path) -> None:
    wanted = settings(published, tmp_path / "events.sqlite")
    for changes, message in (
        ({"role": "both"}, "role: found both, expected one of all, host, gateway"),
        ({"release": None}, "expected release=VERSION|ALIAS"),
        ({"role": "gateway"}, "expected one of hosts="),
        ({"hosts": ["http://a:1"]}, "hosts and shards are of role=gateway"),
        ({"workers": 2}, "admin calls are not possible"),
        ({"k": 0}, "k: found 0"),
    ):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(wanted, **changes)
    with pytest.raises(UserError, match="has no alias 'prodution'"):
        build_app(dataclasses.replace(wanted, release="prodution"))


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def post(port: int, path: str, body: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path, json.dumps(body))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@contextmanager
def serving(published: Published, folder: Path, port: int, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    given = [f"store={published.store}", f"events={folder / 'events.sqlite'}", f"port={port}", *overrides]
    with (folder / f"log{port}").open("w") as log:
        command = [sys.executable, str(ROOT / "serve.py"), f"max_events={MAX_EVENTS}", *given]
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, text=True)
    try:
        give_up = time.monotonic() + 180
        while not is_ready(port):
            assert process.poll() is None, (folder / f"log{port}").read_text()
            assert time.monotonic() < give_up, (folder / f"log{port}").read_text()
            time.sleep(0.1)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.mark.slow
def test_a_gateway_and_a_host_answer_as_recommend_and_end_in_order(
    published: Published, events: Path, queries: dict[str, Query], tmp_path: Path
) -> None:
    version = published.versions[0]
    recommender = open_recommender(None, version, str(published.store), None)
    out = tmp_path / "recommendations.parquet"
    write_recommendations(recommender, choose_users("all", recommender.dataset), 20, True, out)
    (host, gateway) = (free_port(), free_port())
    of_host = ["role=host", f"release={version}"]
    of_gateway = ["role=gateway", f"hosts=http://127.0.0.1:{host}", "workers=2", "drain_seconds=0.5"]
    with (
        serving(published, events.parent, host, *of_host) as one,
        serving(published, events.parent, gateway, *of_gateway) as other,
    ):
        for row in pq.read_table(out).to_pylist():
            status, answer = post(gateway, "/v1/retrieve", {"user_id": row["user_id"], "k": 20})
            assert (status, answer["host"]) == (200, f"127.0.0.1:{host}")
            assert [item["item_id"] for item in answer["items"]] == row["item_ids"]
            np.testing.assert_allclose([item["score"] for item in answer["items"]], row["scores"], atol=1e-4)
        results: list[tuple[int, Any]] = []
        stop = threading.Event()

        def ask() -> None:
            for user in list(queries) * 100:
                try:
                    results.append(post(gateway, "/v1/retrieve", {"user_id": user}))
                except (ConnectionRefusedError, ConnectionResetError):
                    # Not accepted: the server had closed its port.
                    return
                if stop.is_set():
                    return

        callers = [threading.Thread(target=ask) for _ in range(4)]
        for caller in callers:
            caller.start()
        time.sleep(0.5)
        other.send_signal(signal.SIGTERM)
        assert other.wait(60) == -signal.SIGTERM
        stop.set()
        for caller in callers:
            caller.join()
        # What was accepted was answered.
        assert len(results) > 4
        assert {status for status, _ in results} == {200}
        assert one.poll() is None


@pytest.mark.slow
def test_what_was_accepted_is_answered(published: Published, tmp_path: Path) -> None:
    port = free_port()
    with serving(published, tmp_path, port, f"release={published.versions[0]}") as process:
        slow = json.dumps([{"k": 1000}] * 500)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.putrequest("POST", "/v1/retrieve")
        connection.putheader("content-length", str(len(slow)))
        connection.endheaders()
        connection.send(slow[:100].encode())
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        # The body ends after the signal.
        connection.send(slow[100:].encode())
        response = connection.getresponse()
        assert response.status == 200
        assert len(json.loads(response.read())) == 500
        assert process.wait(60) == -signal.SIGTERM
        connection.close()
        assert not is_ready(port)


def test_a_port_that_is_taken_and_a_release_that_is_not_there(published: Published, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for overrides, message in (
            ([f"release={published.versions[0]}"], f"port: cannot listen at 127.0.0.1:{port}"),
            ([f"release={published.versions[0]}", "workers=2"], f"port: cannot listen at 127.0.0.1:{port}"),
            (["release=none"], "has no alias 'none'"),
        ):
            given = [f"store={published.store}", f"events={tmp_path / 'events.sqlite'}", f"port={port}", *overrides]
            environment = {name: value for name, value in os.environ.items() if name != "RECSYS_ADMIN_TOKEN"}
            command = [sys.executable, str(ROOT / "serve.py"), *given]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180)
            assert done.returncode == 1
            assert message in done.stderr
