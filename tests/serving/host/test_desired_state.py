"""What a fleet shall serve is known to servers that start later, and one rollout at a time changes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asking import call, living, settings
from publishing import Published

from recsys.release.store import ReleaseStore
from recsys.serving.host.desired_state import RolloutLocks, rollout_token
from recsys.serving.http.admin_messages import RolloutLock
from recsys.serving.http.app import App
from recsys.serving.http.problems import Problem
from recsys.serving.shared_state import FolderState

HEADERS = {"content-type": "application/json", "authorization": "Bearer secret-of-the-tests"}


def started(published: Published, folder: Path, use: Callable[[App], Any], **changes: Any) -> Any:
    return living(settings(published, folder / "events.sqlite", **changes), use)


async def admin(app: App, what: str, body: dict[str, Any], **headers: str) -> Any:
    return await call(app, "POST", f"/v1/admin/{what}", body, HEADERS | headers)


async def versions(app: App) -> Any:
    (held,) = (await call(app, "GET", "/v1/version")).body.values()
    return held["serving"], set(held["loaded"])


def test_a_host_that_starts_serves_what_the_fleet_serves_until_the_alias_moves(
    published: Published, tmp_path: Path
) -> None:
    old, new = published.versions
    store = ReleaseStore(published.store)
    store.set_alias("fleet", old, why="test")

    async def switch(app: App) -> None:
        assert (await admin(app, "load", {"version": new})).status == 200
        assert (await admin(app, "serve", {"version": new})).status == 200

    started(published, tmp_path, switch, release="fleet", role="host")
    assert started(published, tmp_path, versions, release="fleet") == (new, {new})
    # Whoever asks for a version gets it.
    assert started(published, tmp_path, versions, release=old) == (old, {old})

    async def canary(app: App) -> None:
        assert (await admin(app, "load", {"version": old})).status == 200
        assert (await admin(app, "canary", {"version": old, "share": 0.3})).status == 200

    started(published, tmp_path, canary, release="fleet")
    assert started(published, tmp_path, versions, release="fleet") == (new, {new, old})
    # Also if it moved and came back while no host ran.
    store.set_alias("fleet", new, why="test")
    store.set_alias("fleet", old, why="test")
    assert started(published, tmp_path, versions, release="fleet")[0] == old
    (path,) = tmp_path.glob("served-*.json")
    path.write_bytes(b"no JSON")
    assert started(published, tmp_path, versions, release="fleet")[0] == old


def test_a_version_of_the_fleet_that_cannot_be_loaded_is_no_outage(published: Published, tmp_path: Path) -> None:
    old, new = published.versions
    ReleaseStore(published.store).set_alias("fleet", old, why="test")

    async def switch(app: App) -> None:
        await admin(app, "load", {"version": new})
        await admin(app, "serve", {"version": new})

    started(published, tmp_path, switch, release="fleet", role="host")
    (path,) = tmp_path.glob("served-*.json")
    path.write_bytes(path.read_bytes().replace(new.encode(), b"0" * 16))
    assert started(published, tmp_path, versions, release="fleet") == (old, {old})


def lock(token: str, seconds: float = 30, **options: Any) -> RolloutLock:
    return RolloutLock(token.ljust(8, "."), f"owner of {token}", seconds, **options)


def test_one_rollout_has_the_lock_until_it_ends(tmp_path: Path) -> None:
    now = 1000.0
    locks = RolloutLocks(FolderState(tmp_path), lambda: now)
    locks.hold(lock("first"))
    now += 20
    locks.hold(lock("first"))
    with pytest.raises(Problem, match="owner of first has changed the versions since 1970-01-01 00:16:40") as refused:
        locks.hold(lock("second"))
    assert refused.value.status == 409
    now += 29
    with pytest.raises(Problem):
        locks.hold(lock("second"))
    # A rollout that was killed does not renew it.
    now += 2
    locks.hold(lock("second"))
    with pytest.raises(Problem, match="owner of second"):
        locks.hold(lock("first"))
    locks.hold(lock("third", force=True))
    with pytest.raises(Problem):
        locks.hold(lock("second", 0))
    locks.hold(lock("third", 0))
    locks.hold(lock("first"))
    rollout_token.set("another rollout")
    with pytest.raises(Problem, match="owner of first"):
        locks.require()
    rollout_token.set(None)
    locks.require()


def test_a_host_refuses_the_calls_of_a_rollout_without_the_lock(published: Published, tmp_path: Path) -> None:
    new = published.versions[1]

    async def use(app: App) -> None:
        held = {"token": "the first", "owner": "ann", "seconds": 30}
        assert (await admin(app, "lock", held)).status == 200
        answer = await admin(app, "lock", held | {"token": "the second", "owner": "bob"})
        assert (answer.status, answer.body["error"]["code"]) == (409, "rollout_under_way")
        stale = {"x-recsys-rollout": "the second"}
        for what in ("load", "serve", "unload"):
            refused = await admin(app, what, {"version": new}, **stale)
            assert (refused.status, refused.body["error"]["code"]) == (409, "rollout_under_way")
        assert new not in (await versions(app))[1]
        assert (await admin(app, "load", {"version": new}, **{"x-recsys-rollout": "the first"})).status == 200

    started(published, tmp_path, use)
