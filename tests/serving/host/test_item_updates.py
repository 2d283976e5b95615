"""Items that come and go while an index is served: in answers at once, after a restart, and of no other version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from publishing import Published

from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.release.runtime.query_encoder import load_known_items
from recsys.release.runtime.shard import Shard
from recsys.release.store import ReleaseStore
from recsys.serving.host.additions import Additions, load_additions, save_additions, to_table
from recsys.serving.host.host import Host
from recsys.serving.host.item_updates import ChangedItems, Changes
from recsys.serving.host.releases import Releases
from recsys.serving.http.messages import SearchRequest
from recsys.serving.observability.recall_monitor import RecallMonitor


def opened(published: Published, path: Path, number: int = 0) -> tuple[Changes, ChangedItems]:
    changes = Changes(path)
    folder, manifest = ReleaseStore(published.store).open(published.versions[number])
    return changes, changes.open(folder, manifest, load_known_items(folder))


@pytest.fixture
def users() -> Float32Array:
    users = np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32)
    return users / np.linalg.norm(users, axis=1, keepdims=True)


def ids_of(items: ChangedItems, users: Float32Array, k: int = 1000, **options: Any) -> list[list[Any]]:
    return [hits.item_ids for hits in items.search(users, k, **options)]


def additions(items: ChangedItems, users: Float32Array) -> Additions:
    """`near` is what user 0 likes best, `far` what it likes least."""
    described = [
        {"item_id": "near", "title": "Near", "category": "x", "tags": ["a"], "price": 3.5},
        {"item_id": "far", "category": "new"},
    ]
    return Additions(items.version, described, np.stack([users[0], -users[0]]))


def test_without_changes_nothing_changes(published: Published, tmp_path: Path, users: Float32Array) -> None:
    _, items = opened(published, tmp_path / "journal")
    for options in ({}, {"filter": {"category": "x"}}, {"exclude": [["i001", "none"]] * 5}):
        assert ids_of(items, users, 7, **options) == [h.item_ids for h in items.base.search(users, 7, **options)]


def test_a_takedown_holds_at_once_for_all_versions_and_after_a_restart(
    published: Published, tmp_path: Path, users: Float32Array
) -> None:
    changes, items = opened(published, tmp_path / "journal")
    before = ids_of(items, users)
    gone = before[0][:3]
    assert changes.take_down([*gone, "never seen"]) == 4
    expected = [[item for item in row if item not in gone] for row in before]
    assert ids_of(items, users) == expected
    # Full answers, although the best were taken away.
    assert ids_of(items, users, 5) == [row[:5] for row in expected]
    assert ids_of(items, users, exclude=[["i001"]] * 5) == [[i for i in row if i != "i001"] for row in expected]
    assert not {*gone} & {*ids_of(items, users, filter={"category": ["x", "y", "z"]})[0]}
    assert changes.take_down(gone) == 0
    other = changes.open(*_release(published, 1))
    assert not {*gone} & {*ids_of(other, users)[0]}
    _, again = opened(published, tmp_path / "journal")
    assert ids_of(again, users) == expected


def _release(published: Published, number: int) -> tuple[Any, ...]:
    folder, manifest = ReleaseStore(published.store).open(published.versions[number])
    return folder, manifest, load_known_items(folder)


def test_new_items_are_ranked_among_the_others(published: Published, tmp_path: Path, users: Float32Array) -> None:
    changes, items = opened(published, tmp_path / "journal")
    before = items.search(users, 1000)
    assert changes.add(additions(items, users), items) == 2
    for user, (old, new) in enumerate(zip(before, items.search(users, 1000), strict=True)):
        scores = dict(zip(old.item_ids, old.scores, strict=True))
        scores |= {"near": users[user] @ users[0], "far": -(users[user] @ users[0])}
        assert new.item_ids == sorted(scores, key=lambda item: -scores[item])
        np.testing.assert_allclose(new.scores, sorted(scores.values(), reverse=True), atol=1e-6)
    assert ids_of(items, users, 1)[0] == ["near"]
    _, again = opened(published, tmp_path / "journal")
    assert ids_of(again, users) == ids_of(items, users)


def test_new_items_are_filtered_excluded_and_taken_down(
    published: Published, tmp_path: Path, users: Float32Array
) -> None:
    changes, items = opened(published, tmp_path / "journal")
    with_x = ids_of(items, users, filter={"category": "x"})
    changes.add(additions(items, users), items)
    found = ids_of(items, users, filter={"category": "x"})
    assert [sorted(row) for row in found] == [sorted([*row, "near"]) for row in with_x]
    assert ids_of(items, users, filter={"category": "new"}) == [["far"]] * 5
    assert "near" in ids_of(items, users, filter={"tags": "a"})[0]
    exclude = [["near", "i001"], ["far"], [], ["near"], []]
    for row, left_out in zip(ids_of(items, users, exclude=exclude), exclude, strict=True):
        assert {"near", "far", "i001"} - {*left_out} <= {*row}
        assert not {*left_out} & {*row}
    changes.take_down(["near"])
    assert ids_of(items, users, 1)[0] != ["near"]
    with pytest.raises(UserError, match=r"items\[0\].item_id: 'near' was taken down"):
        changes.add(additions(items, users), items)


def test_an_item_that_is_added_again_is_replaced(published: Published, tmp_path: Path, users: Float32Array) -> None:
    changes, items = opened(published, tmp_path / "journal")
    changes.add(additions(items, users), items)
    turned = Additions(items.version, [{"item_id": "near"}], -users[:1])
    changes.add(turned, items)
    found = items.search(users, 1000)[0]
    assert found.item_ids.count("near") == 1
    assert found.scores[found.item_ids.index("near")] == pytest.approx(-1)


def test_another_version_never_gets_them(published: Published, tmp_path: Path, users: Float32Array) -> None:
    changes, items = opened(published, tmp_path / "journal")
    other = changes.open(*_release(published, 1))
    before = ids_of(other, users)
    given = additions(items, users)
    with pytest.raises(UserError, match=f"version: found embeddings of {items.version}, expected {other.version}"):
        changes.add(given, other)
    changes.add(given, items)
    assert ids_of(other, users) == before


def test_other_processes_of_the_host_see_changes_with_their_next_search(
    published: Published, tmp_path: Path, users: Float32Array
) -> None:
    changes, items = opened(published, tmp_path / "journal")
    _, elsewhere = opened(published, tmp_path / "journal")
    changes.add(additions(items, users), items)
    assert ids_of(elsewhere, users, 1)[0] == ["near"]
    changes.take_down(["near"])
    assert ids_of(elsewhere, users, 1)[0] != ["near"]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"item_id": "i001"}], r"items\[0\].item_id: 'i001' is in the index"),
        ([{"item_id": "new"}, {"item_id": "new"}], r"items\[1\].item_id: 'new' is there twice"),
        ([{"title": "nameless"}], r"items\[0\].item_id: missing"),
        ([{"item_id": 5}], "items.item_id: found a value that is no string"),
        ([{"item_id": "new", "categry": "x"}], r"items\[0\].categry: .*'category'"),
        ([{"item_id": "new", "price": "cheap"}], "items.price: found a value that is no double"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_kept(
    published: Published, tmp_path: Path, items: list[dict[str, Any]], message: str
) -> None:
    changes, held = opened(published, tmp_path / "journal")
    with pytest.raises(UserError, match=message):
        changes.add(Additions(held.version, items, np.ones((len(items), 16), np.float32)), held)
    assert not (tmp_path / "journal").exists()


@pytest.mark.parametrize("embeddings", [np.ones((1, 15), np.float32), np.full((1, 16), np.nan, np.float32)])
def test_embeddings_that_do_not_fit_are_refused(published: Published, tmp_path: Path, embeddings: Float32Array) -> None:
    changes, items = opened(published, tmp_path / "journal")
    with pytest.raises(UserError, match="embeddings: found"):
        changes.add(Additions(items.version, [{"item_id": "new"}], embeddings), items)


def test_files_of_new_items(published: Published, tmp_path: Path, users: Float32Array) -> None:
    _, items = opened(published, tmp_path / "journal")
    given = additions(items, users)
    save_additions(to_table(given.items, items.base.items.schema), given.embeddings, given.version, tmp_path / "f")
    loaded = load_additions(tmp_path / "f")
    assert loaded.version == given.version
    np.testing.assert_array_equal(loaded.embeddings, given.embeddings)
    assert [{k: v for k, v in item.items() if v is not None} for item in loaded.items] == list(given.items)
    with pytest.raises(UserError, match="not a file of embedded items"):
        load_additions(published.root / "items.parquet")


def test_each_new_item_has_one_shard(published: Published, tmp_path: Path, users: Float32Array) -> None:
    changes, whole = opened(published, tmp_path / "journal")
    named = [{"item_id": f"new{number}"} for number in range(20)]
    vectors = np.random.default_rng(1).standard_normal((20, 16)).astype(np.float32)
    changes.add(Additions(whole.version, named, vectors), whole)
    changes.take_down(["i001", "new3"])
    parts = [Changes(tmp_path / "journal", Shard(number, 2)).open(*_release(published, 0)) for number in (0, 1)]
    first, second = ({*ids_of(part, users)[0]} for part in parts)
    assert not first & second
    assert first | second == {*ids_of(whole, users)[0]}
    assert 0 < len([item for item in first if item.startswith("new")]) < 19


def test_nothing_is_told_of_the_recall_of_a_version_that_was_unloaded(
    published: Published, tmp_path: Path, users: Float32Array
) -> None:
    monitor = RecallMonitor(1.0)
    host = Host(Releases(published.store), "here", Changes(tmp_path / "journal", None, monitor).open)
    old, new = (host.load(version) for version in published.versions)
    host.serve(new)
    host.search(SearchRequest(old, users, 5))
    monitor.drain()
    assert monitor.recalls().keys() == {(old,)}
    host.unload(old)
    assert not monitor.recalls()
    monitor.close()
