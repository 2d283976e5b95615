"""Several versions side by side; a search is answered by the one that it names, or not at all."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from publishing import Published

from recsys.core.errors import UserError
from recsys.release.manifest import SELF_CHECK, describe_file
from recsys.release.runtime.item_search import ItemSearch
from recsys.release.runtime.retriever import Retriever
from recsys.serving.host.host import Host
from recsys.serving.host.releases import ReleaseCache
from recsys.serving.http.messages import SearchRequest
from recsys.serving.http.problems import Problem, ServerFault, VersionNotHeld
from recsys.serving.http.routes import HostRoutes


@pytest.fixture
def host(published: Published) -> Host:
    return Host(ReleaseCache(published.store), "one")


def ask(published: Published, version: str, **more: object) -> SearchRequest:
    dim = Retriever.load(published.store, version).manifest.dim
    rng = np.random.default_rng(0)
    return SearchRequest(version, rng.normal(size=(3, dim)).astype(np.float32), 5, **more)  # type: ignore[arg-type]


def test_each_version_answers_for_itself(host: Host, published: Published) -> None:
    old, new = published.versions
    with pytest.raises(ServerFault):
        host.require_ready()
    assert host.version() == {}
    assert [host.load("candidate"), host.load(new)] == [old, new]
    host.serve(old)
    host.require_ready()
    ((model, held),) = host.version().items()
    assert (model, held.serving, held.loaded) == ("test", old, [old, new])
    found = {}
    for version in (old, new):
        request = ask(published, version, exclude=[["i001"], [], ["nothing"]])
        response = host.search(request)
        assert response.version == version
        items = np.load(published.store / version / "item_embeddings.npy")
        retriever = Retriever.load(published.store, version)
        ids = retriever.items["item_id"].to_pylist()
        for user, result in enumerate(response.results):
            scores = items @ request.embeddings[user]
            allowed = [row for row in np.argsort(-scores, kind="stable") if user or ids[row] != "i001"][:5]
            assert result.item_ids == [ids[row] for row in allowed]
            np.testing.assert_allclose(result.scores, scores[allowed], atol=1e-5)
        found[version] = [result.item_ids for result in response.results]
    # The releases differ, so a mix would be noticed.
    assert found[old] != found[new]


@pytest.mark.parametrize(("num_users", "is_refused"), [(64, False), (200, False), (300, True)])
def test_a_host_accepts_what_gateways_accept(
    host: Host, published: Published, num_users: int, is_refused: bool
) -> None:
    """Users of a microbatch are of many requests, accepted one by one; quotas read no more than all items."""
    version = host.load(published.versions[0])
    manifest = host.held(version).manifest
    routes = HostRoutes(host, k=1000, batch=1000, cost=250 + 250 * manifest.num_items // 8)
    embeddings = np.ones((num_users, manifest.dim), np.float32)
    request = SearchRequest(version, embeddings, 1, quotas={"category": 2})
    if is_refused:
        with pytest.raises(Problem, match="cost: found 300 users"):
            asyncio.run(routes.search(request))
    else:
        assert len(asyncio.run(routes.search(request)).results) == num_users


def test_a_microbatch_is_within_small_limits(host: Host, published: Published) -> None:
    version = host.load(published.versions[0])
    embeddings = np.ones((64, host.held(version).manifest.dim), np.float32)
    routes = HostRoutes(host, k=1000, batch=2, cost=2)
    assert len(asyncio.run(routes.search(SearchRequest(version, embeddings, 2))).results) == 64


def test_a_version_that_is_not_held_is_refused(host: Host, published: Published) -> None:
    old, new = published.versions
    with pytest.raises(VersionNotHeld) as refused:
        host.search(ask(published, old))
    assert (refused.value.serving, refused.value.loaded) == (None, [])
    host.load(old)
    with pytest.raises(Problem, match=f"version: found {new}, held are {old}"):
        host.serve(new)
    host.serve(old)
    with pytest.raises(VersionNotHeld) as refused:
        host.search(ask(published, new))
    assert (refused.value.status, refused.value.serving, refused.value.loaded) == (409, old, [old])
    with pytest.raises(Problem, match="version: .* is served; serve another one first"):
        host.unload(old)
    host.load(new)
    host.serve(new)
    host.unload(old)
    with pytest.raises(VersionNotHeld):
        host.search(ask(published, old))
    with pytest.raises(VersionNotHeld):
        host.unload(old)
    with pytest.raises(Problem, match="model: found tset; did you mean 'test'"):
        host.search(ask(published, new, model="tset"))


def test_the_oldest_runs_are_pruned_except_the_served_one(host: Host, published: Published) -> None:
    old, new = published.versions
    host.load(old)
    host.load(new)
    host.serve(old)
    host.trim(1)
    assert host.version()["test"].loaded == [old]
    host.load(new)
    host.serve(new)
    host.trim(2)
    assert host.version()["test"].loaded == [old, new]
    host.trim(1)
    assert host.version()["test"].loaded == [new]


@pytest.mark.parametrize(
    ("shape", "exclude", "message"),
    [
        ((3, 5), None, r"embeddings: found \[3, 5\], expected \[B, 16\]"),
        ((16,), None, r"embeddings: found \[16\]"),
        ((), None, r"embeddings: found \[\]"),
        ((3, 2, 16), None, r"embeddings: found \[3, 2, 16\]"),
        ((3, 16), [["i001"]], "exclude: found 1 lists, expected one for each of 3 users"),
    ],
)
def test_values_that_do_not_fit_are_refused(
    host: Host, published: Published, shape: tuple[int, ...], exclude: object, message: str
) -> None:
    host.serve(host.load("candidate"))
    request = SearchRequest(published.versions[0], np.zeros(shape, np.float32), 5, exclude=exclude)  # type: ignore[arg-type]
    with pytest.raises(Problem, match=message) as refused:
        asyncio.run(host.answer(request))
    assert refused.value.status == 400


def test_an_index_that_fails_its_self_check_is_not_served(published: Published, tmp_path: Path) -> None:
    old, new = published.versions
    releases = ReleaseCache(published.store)

    def other_index(folder: Path, *_: object, **__: object) -> ItemSearch:
        # The index of one release with the self-check of the other, as after a mix-up of files.
        mixed = tmp_path / "mixed"
        shutil.copytree(published.store / new, mixed)
        (mixed / "self_check.npz").unlink()
        shutil.copy(folder / "self_check.npz", mixed)
        manifest = releases.open(new)[1]
        files = {**manifest.files, SELF_CHECK: describe_file(mixed / SELF_CHECK)}
        return ItemSearch(mixed, dataclasses.replace(manifest, files=files))

    host = Host(releases, "one", open_index=other_index)
    with pytest.raises(UserError, match="does not return the items of self_check.npz"):
        host.load(old)
    assert host.version() == {}


def test_a_release_is_verified_once_and_ids_are_shared(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    releases = ReleaseCache(published.store)
    opened = []
    real = releases.store.open
    monkeypatch.setattr(releases.store, "open", lambda name: opened.append(name) or real(name))
    version = published.versions[0]
    assert releases.open("candidate") == releases.open(version)
    assert opened == [version]
    items = releases.known_items(version)
    assert releases.known_items(version) is items
