"""Both stores of impressions keep what they acknowledge, once, until it expires."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import needs_server

from recsys.serving.impressions.impression_store import ImpressionStore, StoredOutcome
from recsys.serving.impressions.records import Batch, Impression, OpenBatch, decode_batch, encode_batch, parse_id
from recsys.serving.impressions.sqlite import SQLiteImpressions

NOW = int(time.time())
_numbers = itertools.count()
Open = Callable[..., ImpressionStore]


@pytest.fixture(params=["sqlite", *(pytest.param(name, marks=needs_server) for name in ("server", "cluster"))])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Open the same store again and again."""
    opened: list[ImpressionStore] = []
    name = f"test{next(_numbers)}"

    def open_one(keep_seconds: int = 3600, max_bytes: int = 10 << 20) -> ImpressionStore:
        if request.param == "sqlite":
            store: ImpressionStore = SQLiteImpressions(tmp_path / name, keep_seconds=keep_seconds, max_bytes=max_bytes)
        else:
            from recsys.serving.impressions.valkey import ValkeyImpressions

            url = request.getfixturevalue(request.param).url
            store = ValkeyImpressions(url, prefix=name, keep_seconds=keep_seconds, max_bytes=max_bytes)
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        store.close()


def batch_of(*users: int | str | None, at: int = NOW, items: int = 3) -> tuple[bytes, Batch, list[str]]:
    made = OpenBatch(10)
    ids = [made.add(Impression(at, user, "v1", "two_tower", list(range(items)))) for user in users]
    return made.name, Batch(made.batch.impressions, made.batch.checks[: 4 * len(users)]), ids


def test_ids_name_their_impression_and_no_other() -> None:
    name, batch, ids = batch_of("a", 5, None)
    assert [batch.find(key).user_id for key in map(parse_id, ids)] == ["a", 5, None]  # type: ignore[union-attr, arg-type]
    key = parse_id(ids[0])
    assert key is not None
    assert key.batch == name
    assert batch.find(key._replace(place=1)) is None
    assert batch.find(key._replace(place=900)) is None
    assert decode_batch(encode_batch(batch)) == batch
    for wrong in ("", "x", ids[0][:-4], ids[0] + "AAAA", "é" * 20, "=" * 20, ids[0].replace(ids[0][3], "!")):
        assert parse_id(wrong) is None
    for damaged in (b"", b"x", encode_batch(batch)[:-3]):
        assert decode_batch(damaged) is None


def test_batches_and_outcomes_are_shared(open_store: Open) -> None:
    one, other = open_store(), open_store()
    name, batch, _ = batch_of("a", "b")
    one.add(name, encode_batch(batch), NOW)
    assert other.get([name, b"x" * 9]) == {name: batch}
    assert list(other.batches(NOW)) == [(name, batch)]
    assert list(other.batches(NOW + 1)) == []
    saved = [StoredOutcome(name, 0, item, "save", NOW) for item in (1, "1")]
    assert one.add_outcomes([*saved, saved[0]]) == [True, True, False]
    clicked = saved[0]._replace(action="click")
    assert other.add_outcomes([saved[1], clicked]) == [False, True]
    assert one.add_outcomes([]) == []
    assert set(one.outcomes()) == {*saved, clicked}
    # Outside of the process nobody sees more than what was acknowledged.
    assert sorted(map(str, open_store().outcomes())) == sorted(map(str, [*saved, clicked]))


def test_what_is_old_expires(open_store: Open) -> None:
    # Valkey compares with its clock.
    store, now = open_store(keep_seconds=100), int(time.time())
    kept = [batch_of("a", at=now - age) for age in (300, 250, 20, 0)]
    for number, (name, batch, _) in enumerate(kept):
        store.add(name, encode_batch(batch), now - (300, 250, 20, 0)[number])
        store.add_outcomes([StoredOutcome(name, 0, 1, "save", now)])
    assert [name for name, _ in store.batches(0)] == [kept[2][0], kept[3][0]]
    assert {one.batch for one in store.outcomes()} == {kept[2][0], kept[3][0]}


def test_old_ones_are_removed_without_new_ones(open_store: Open) -> None:
    store = open_store(max_bytes=1)
    store.expire()
    young = batch_of("stays")
    store.add(young[0], encode_batch(young[1]), NOW)
    # The limit of bytes leaves the newest one.
    store.expire()
    assert [name for name, _ in store.batches(0)] == [young[0]]


def test_records_of_a_server_that_kept_them_for_longer_expire(open_store: Open) -> None:
    longer, shorter, now = open_store(keep_seconds=3600), open_store(keep_seconds=100), int(time.time())
    kept = [batch_of("a", at=now - age) for age in (300, 250, 0)]
    for number, (name, batch, _) in enumerate(kept):
        longer.add(name, encode_batch(batch), now - (300, 250, 0)[number])
        longer.add_outcomes([StoredOutcome(name, 0, 1, "save", now)])
    assert len(list(longer.batches(0))) == 3
    shorter.expire()
    assert [name for name, _ in longer.batches(0)] == [kept[2][0]]
    assert {one.batch for one in longer.outcomes()} == {kept[2][0]}
    assert set(longer.get([name for name, _, _ in kept])) == {kept[2][0]}


def test_the_size_is_bounded(open_store: Open) -> None:
    store = open_store(max_bytes=1 << 20)
    names = []
    for _ in range(60):
        name, batch, _ = batch_of("a", items=20_000)
        names.append(name)
        store.add(name, encode_batch(batch), time.time())
    left = [name for name, _ in store.batches(0)]
    # The newest stay, and the bound is used.
    assert left == names[-len(left) :]
    assert 10 < len(left) < 25
    assert sum(len(encode_batch(batch)) for _, batch in store.batches(0)) <= (1 << 20) + len(encode_batch(batch))


def test_a_user_is_forgotten(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    name, batch, ids = batch_of("secret-user", 5, "5", "secret-user")
    store.add(name, encode_batch(batch), NOW)
    store.add_outcomes([StoredOutcome(name, place, 1, "save", NOW) for place in range(4)])
    for user in ("secret-user", 5):
        store.forget([user])
    ((_, left),) = store.batches(0)
    assert [one.user_id for one in left.impressions] == [None, None, "5", None]
    assert [one.item_ids for one in left.impressions] == [[], [], [0, 1, 2], []]
    assert [left.find(key) for key in map(parse_id, ids[2:3]) if key] == [batch.impressions[2]]
    assert {one.place for one in store.outcomes()} == {2}
    for path in tmp_path.iterdir():
        assert b"secret-user" not in path.read_bytes()
        assert os.stat(path).st_mode & 0o077 == 0
