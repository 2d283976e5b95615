"""Items that come and go while an index is served: in answers at once, after a restart, and of no other version."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from publishing import Published

from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.release.runtime.item_search import ItemSearch
from recsys.release.runtime.query_encoder import load_known_items
from recsys.release.runtime.shard import CorpusShard
from recsys.release.store import ReleaseStore
from recsys.serving.host.additions import Additions, load_additions, save_additions, to_table
from recsys.serving.host.host import Host
from recsys.serving.host.item_updates import ItemUpdates
from recsys.serving.host.releases import ReleaseCache
from recsys.serving.host.updated_index import UpdatedIndex
from recsys.serving.http.messages import SearchRequest
from recsys.serving.observability.background import BackgroundThread
from recsys.serving.observability.metrics import Metrics
from recsys.serving.observability.recall_monitor import RecallMonitor


def opened(published: Published, path: Path, number: int = 0) -> tuple[ItemUpdates, UpdatedIndex]:
    updates = ItemUpdates(path)
    return updates, open_index(published, number, updates)


def open_index(published: Published, number: int, updates: ItemUpdates) -> UpdatedIndex:
    folder, manifest = ReleaseStore(published.store).open(published.versions[number])
    return UpdatedIndex(folder, manifest, known_items=load_known_items(folder, manifest), updates=updates)


@pytest.fixture
def users() -> Float32Array:
    users = np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32)
    return users / np.linalg.norm(users, axis=1, keepdims=True)


def ids_of(items: UpdatedIndex, users: Float32Array, k: int = 1000, **options: Any) -> list[list[Any]]:
    return [hits.item_ids for hits in items.search(users, k, **options)]


def additions(items: UpdatedIndex, users: Float32Array) -> Additions:
    """Return two items: `near` has the embedding of user 0, `far` its opposite."""
    described = [
        {"item_id": "near", "title": "Near", "category": "x", "tags": ["a"], "price": 3.5},
        {"item_id": "far", "category": "new"},
    ]
    return Additions(items.version, described, np.stack([users[0], -users[0]]))


def test_a_number_and_its_digits_are_one_item_that_was_taken_down(tmp_path: Path) -> None:
    updates = ItemUpdates(tmp_path / "journal")
    assert (updates.take_down([5, "7"]), updates.take_down(["5", 7])) == (2, 0)
    for one in (updates, ItemUpdates(tmp_path / "journal")):
        assert one.removed_of([5, "5", 7, "7", "05", 6]) == [5, "5", 7, "7"]


def test_without_changes_nothing_changes(published: Published, tmp_path: Path, users: Float32Array) -> None:
    _, items = opened(published, tmp_path / "journal")
    for options in ({}, {"filter": {"category": "x"}}, {"exclude": [["i001", "none"]] * 5}):
        assert ids_of(items, users, 7, **options) == [h.item_ids for h in ItemSearch.search(items, users, 7, **options)]


def test_a_takedown_holds_at_once_for_all_versions_and_after_a_restart(
    published: Published, tmp_path: Path, users: Float32Array
) -> None:
    updates, items = opened(published, tmp_path / "journal")
    before = ids_of(items, users)
    gone = before[0][:3]
    assert updates.take_down([*gone, "never seen"]) == 4
    expected = [[item for item in row if item not in gone] for row in before]
    assert ids_of(items, users) == expected
    # Full answers, although the best were taken away.
    assert ids_of(items, users, 5) == [row[:5] for row in expected]
    assert ids_of(items, users, exclude=[["i001"]] * 5) == [[i for i in row if i != "i001"] for row in expected]
    assert not {*gone} & {*ids_of(items, users, filter={"category": ["x", "y", "z"]})[0]}
    assert updates.take_down(gone) == 0
    other = open_index(published, 1, updates)
    assert not {*gone} & {*ids_of(other, users)[0]}
    _, again = opened(published, tmp_path / "journal")
    assert ids_of(again, users) == expected


def test_new_items_are_ranked_among_the_others(published: Published, tmp_path: Path, users: Float32Array) -> None:
    updates, items = opened(published, tmp_path / "journal")
    before = items.search(users, 1000)
    assert updates.add(additions(items, users), items) == 2
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
    updates, items = opened(published, tmp_path / "journal")
    with_x = ids_of(items, users, filter={"category": "x"})
    updates.add(additions(items, users), items)
    found = ids_of(items, users, filter={"category": "x"})
    assert [sorted(row) for row in found] == [sorted([*row, "near"]) for row in with_x]
    assert ids_of(items, users, filter={"category": "new"}) == [["far"]] * 5
    assert "near" in ids_of(items, users, filter={"tags": "a"})[0]
    exclude = [["near", "i001"], ["far"], [], ["near"], []]
    for row, left_out in zip(ids_of(items, users, exclude=exclude), exclude, strict=True):
        assert {"near", "far", "i001"} - {*left_out} <= {*row}
        assert not {*left_out} & {*row}
    updates.take_down(["near"])
    assert ids_of(items, users, 1)[0] != ["near"]
    with pytest.raises(UserError, match=r"items\[0\].item_id: 'near' was taken down"):
        updates.add(additions(items, users), items)


def test_an_item_that_is_added_again_is_replaced(published: Published, tmp_path: Path, users: Float32Array) -> None:
    updates, items = opened(published, tmp_path / "journal")
    updates.add(additions(items, users), items)
    turned = Additions(items.version, [{"item_id": "near"}], -users[:1])
    updates.add(turned, items)
    found = items.search(users, 1000)[0]
    assert found.item_ids.count("near") == 1
    assert found.scores[found.item_ids.index("near")] == pytest.approx(-1)


def test_new_items_are_not_lost_when_their_first_reading_fails(
    published: Published, tmp_path: Path, users: Float32Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates, items = opened(published, tmp_path / "journal")
    updates.add(additions(items, users), items)
    later = ItemUpdates(tmp_path / "journal")
    with monkeypatch.context() as patched:
        patched.setattr(later._log, "decode", Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):
            later.of(items.version)
    assert [one.item["item_id"] for one in later.of(items.version)[2]] == ["near", "far"]


def test_another_version_never_gets_them(published: Published, tmp_path: Path, users: Float32Array) -> None:
    updates, items = opened(published, tmp_path / "journal")
    other = open_index(published, 1, updates)
    before = ids_of(other, users)
    given = additions(items, users)
    with pytest.raises(UserError, match=f"version: found embeddings of {items.version}, expected {other.version}"):
        updates.add(given, other)
    updates.add(given, items)
    assert ids_of(other, users) == before


def test_other_processes_of_the_host_see_changes_with_their_next_search(
    published: Published, tmp_path: Path, users: Float32Array
) -> None:
    updates, items = opened(published, tmp_path / "journal")
    _, elsewhere = opened(published, tmp_path / "journal")
    updates.add(additions(items, users), items)
    assert ids_of(elsewhere, users, 1)[0] == ["near"]
    updates.take_down(["near"])
    assert ids_of(elsewhere, users, 1)[0] != ["near"]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"item_id": "i001"}], r"items\[0\].item_id: 'i001' is in the index"),
        ([{"item_id": "new"}, {"item_id": "new"}], r"items\[1\].item_id: 'new' is there twice"),
        ([{"title": "nameless"}], r"items\[0\].item_id: missing"),
        ([{"item_id": 5}], "items.item_id: found a value that is not of type string"),
        ([{"item_id": "new", "categry": "x"}], r"items\[0\].categry: .*'category'"),
        ([{"item_id": "new", "price": "cheap"}], "items.price: found a value that is not of type double"),
    ],
)
def test_items_that_do_not_fit_are_refused_and_not_stored(
    published: Published, tmp_path: Path, items: list[dict[str, Any]], message: str
) -> None:
    updates, held = opened(published, tmp_path / "journal")
    with pytest.raises(UserError, match=message):
        updates.add(Additions(held.version, items, np.ones((len(items), 16), np.float32)), held)
    assert not (tmp_path / "journal").exists()


@pytest.mark.parametrize("embeddings", [np.ones((1, 15), np.float32), np.full((1, 16), np.nan, np.float32)])
def test_embeddings_that_do_not_fit_are_refused(published: Published, tmp_path: Path, embeddings: Float32Array) -> None:
    updates, items = opened(published, tmp_path / "journal")
    with pytest.raises(UserError, match="embeddings: found"):
        updates.add(Additions(items.version, [{"item_id": "new"}], embeddings), items)


def test_files_of_new_items(published: Published, tmp_path: Path, users: Float32Array) -> None:
    _, items = opened(published, tmp_path / "journal")
    given = additions(items, users)
    save_additions(
        to_table(given.items, items.items.schema), given.embeddings, version=given.version, path=tmp_path / "f"
    )
    loaded = load_additions(tmp_path / "f")
    assert loaded.version == given.version
    np.testing.assert_array_equal(loaded.embeddings, given.embeddings)
    assert [{k: v for k, v in item.items() if v is not None} for item in loaded.items] == list(given.items)
    with pytest.raises(UserError, match="not a file of embedded items"):
        load_additions(published.root / "items.parquet")


def test_each_new_item_has_one_shard(published: Published, tmp_path: Path, users: Float32Array) -> None:
    updates, whole = opened(published, tmp_path / "journal")
    named = [{"item_id": f"new{number}"} for number in range(20)]
    vectors = np.random.default_rng(1).standard_normal((20, 16)).astype(np.float32)
    updates.add(Additions(whole.version, named, vectors), whole)
    updates.take_down(["i001", "new3"])
    parts = [open_index(published, 0, ItemUpdates(tmp_path / "journal", CorpusShard(number, 2))) for number in (0, 1)]
    first, second = ({*ids_of(part, users)[0]} for part in parts)
    assert not first & second
    assert first | second == {*ids_of(whole, users)[0]}
    assert 0 < len([item for item in first if item.startswith("new")]) < 19


def test_the_recall_of_a_version_that_was_unloaded_is_not_shown(
    published: Published, tmp_path: Path, users: Float32Array
) -> None:
    metrics = Metrics()
    background = BackgroundThread(metrics)
    monitor = RecallMonitor(1.0, background, metrics=metrics)
    opener = functools.partial(UpdatedIndex, updates=ItemUpdates(tmp_path / "journal"), monitor=monitor)
    host = Host(ReleaseCache(published.store), "here", open_index=opener)
    old, new = (host.load(version) for version in published.versions)
    host.serve(new)
    host.search(SearchRequest(old, users, 5))
    background.close()
    assert metrics.value("recsys_index_recall_samples", version=old) == 1
    host.unload(old)
    assert metrics.value("recsys_index_recall_samples", version=old) == 0
