"""The users of the small world, and a event store that holds them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import queries_of, store_users
from publishing import Published
from servers import FAST, Cluster, Server, running

from recsys.release.runtime.retriever import Query


@pytest.fixture(scope="session")
def queries(published: Published) -> dict[str, Query]:
    return queries_of(published)


@pytest.fixture
def stored(queries: dict[str, Query], tmp_path: Path) -> Path:
    """The file of the store."""
    store_users(tmp_path / "events.sqlite", queries)
    return tmp_path / "events.sqlite"


@pytest.fixture
def fast_folder() -> Iterator[Path]:
    # Paths of sockets are short.
    with tempfile.TemporaryDirectory(dir=FAST, prefix="events-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with running(Server) as started:
        yield started


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with running(Cluster) as started:
        yield started


@pytest.fixture(scope="session")
def broker() -> Any:
    # Of the extra `kafka`.
    from brokers import Broker

    return Broker()
