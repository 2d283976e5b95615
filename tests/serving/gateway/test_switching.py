"""The served version changes when an alias moves, or by admin calls."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from pathlib import Path

import pytest
from asking import call, living, settings
from publishing import Published

from recsys.core.errors import UserError
from recsys.release.runtime.item_search import ItemSearch
from recsys.release.runtime.retriever import Query, Retriever
from recsys.release.store import ReleaseStore
from recsys.serving.assembly import build_app
from recsys.serving.host.alias_follower import AliasFollower
from recsys.serving.host.host import Host
from recsys.serving.host.releases import ReleaseCache
from recsys.serving.http.app import App
from recsys.serving.observability.metrics import Metrics


def test_a_moved_alias_is_served_without_a_restart(
    published: Published, stored: Path, queries: dict[str, Query]
) -> None:
    old, new = published.versions
    store = ReleaseStore(published.store)
    store.set_alias("moving", old, why="test")
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
            store.set_alias("moving", version, why="test")
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

    living(settings(published, stored, release="moving"), use)
    assert met == {old, new}


def test_a_release_that_is_not_sound_leaves_the_old_one(
    published: Published, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, _ = published.versions
    store = ReleaseStore(published.store)
    store.set_alias("unsound", old, why="test")
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
    stored = tmp_path / "events.sqlite"
    bearing = {"authorization": "Bearer secret-of-the-tests"}

    async def use(app: App) -> None:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret-of-the-tests"}):
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

    living(settings(published, stored, release=old), use)

    async def without(app: App) -> None:
        assert (await call(app, "POST", "/v1/admin/load", {"version": new}, bearing)).status == 403

    living(settings(published, stored, admin_token=None), without)


def test_settings_that_cannot_be(published: Published, tmp_path: Path) -> None:
    wanted = settings(published, tmp_path / "events.sqlite")
    for changes, message in (
        ({"role": "both"}, "role: found both, expected one of all, host, gateway"),
        ({"release": None}, "expected release=VERSION|ALIAS"),
        ({"role": "gateway"}, "expected one of hosts="),
        ({"hosts": ["http://a:1"]}, "hosts and shards are settings of role=gateway"),
        ({"workers": 2}, "admin calls are not possible"),
        ({"k": 0}, "k: found 0"),
    ):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(wanted, **changes)
    with pytest.raises(UserError, match="has no alias 'prodution'"):
        build_app(dataclasses.replace(wanted, release="prodution"))


def test_a_load_that_never_ends_delays_neither_switches_nor_the_next_release(
    published: Published,
) -> None:
    old, new = published.versions
    store = ReleaseStore(published.store)
    store.set_alias("slow", old, why="test")
    never, loading = threading.Event(), threading.Event()
    releases = ReleaseCache(published.store)

    class Slow(ItemSearch):
        def check(self) -> None:
            if self.version == new:
                loading.set()
                assert never.wait(60)
            super().check()

    host = Host(releases, "one", open_index=Slow)
    host.serve(host.load(old))

    async def scenario() -> None:
        follower = AliasFollower(releases, "slow", host=host, towers=None, metrics=Metrics(), seconds=0.01)
        store.set_alias("slow", new, why="test")
        await follower.follow()
        assert loading.wait(60)
        # The lock is free during the load.
        host.serve(old)
        store.set_alias("slow", old, why="test")
        host.load(old)
        await follower.follow()
        assert next(iter(host.version().values())).serving == old
        late = AliasFollower(
            releases, "slow", host=host, towers=None, metrics=Metrics(), seconds=60.0, load_seconds=0.01
        )
        store.set_alias("slow", new, why="test")
        # Returns although the load goes on.
        await late.follow()
        await asyncio.gather(follower.stop(), late.stop())

    asyncio.run(scenario())
    never.set()
    # The thread of the load ends, and its version is held but not served.
    host.load(new)
    assert next(iter(host.version().values())).serving == old
    (published.store / "aliases/slow").unlink()
