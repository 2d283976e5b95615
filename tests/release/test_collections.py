"""The collection of a release is dropped with it, at the address that the store has recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys.core.errors import UserError
from recsys.index.vector_database import DatabaseError
from recsys.release import collections
from recsys.release.collections import drop_collections, move_record, record_collection
from recsys.release.store import ReleaseStore

ADDRESS, VERSION = "milvus://10.0.0.5:19530", "0123456789abcdef"


class Server:
    def __init__(self) -> None:
        self.dropped: list[tuple[str, str]] = []
        self.fault: str | None = None

    def open(self, address: str) -> Server:
        self.address = address
        return self

    def drop(self, version: str) -> None:
        if self.fault is not None:
            raise DatabaseError(self.fault)
        self.dropped.append((self.address, version))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(collections, "open_database", server.open)
    return server


@pytest.fixture
def store(tmp_path: Path) -> ReleaseStore:
    (tmp_path / VERSION).mkdir()
    record_collection(tmp_path, VERSION, ADDRESS)
    return ReleaseStore(tmp_path)


def test_a_release_is_deleted_with_its_collection(store: ReleaseStore, server: Server) -> None:
    store.delete(VERSION)
    assert server.dropped == [(ADDRESS, VERSION)]
    assert not [*store.root.glob("collections/*"), *store.root.glob(VERSION)]
    (store.root / VERSION).mkdir()
    store.delete(VERSION)
    assert len(server.dropped) == 1


def test_without_the_database_the_release_stays_unless_forced(store: ReleaseStore, server: Server) -> None:
    server.fault = f"{ADDRESS}: does not answer"
    with pytest.raises(UserError, match="does not answer; the release stays, and force=true deletes it"):
        store.delete(VERSION)
    assert store.versions() == [VERSION]
    store.delete(VERSION, force=True)
    assert not [*store.root.glob("collections/*"), *store.root.glob(VERSION)]


def test_a_record_of_something_else_calls_nobody(store: ReleaseStore, server: Server) -> None:
    record_collection(store.root, VERSION, "http://elsewhere:1")
    with pytest.raises(UserError, match="found 'http://elsewhere:1', expected an address such as milvus://HOST:PORT"):
        store.delete(VERSION)
    assert server.dropped == []


def test_the_store_that_takes_a_release_over_drops_its_collection(
    store: ReleaseStore, server: Server, tmp_path: Path
) -> None:
    move_record(store.root, tmp_path / "other", VERSION)
    drop_collections(store.root)
    assert server.dropped == []
    drop_collections(tmp_path / "other")
    assert server.dropped == [(ADDRESS, VERSION)]
