"""The users of the small world, and a event store that holds them."""

from __future__ import annotations

from pathlib import Path

import pytest
from asking import queries_of, store_users
from publishing import Published

from recsys.release.runtime.retriever import Query


@pytest.fixture(scope="session")
def queries(published: Published) -> dict[str, Query]:
    return queries_of(published)


@pytest.fixture
def stored(queries: dict[str, Query], tmp_path: Path) -> Path:
    """The file of the store."""
    store_users(tmp_path / "events.sqlite", queries)
    return tmp_path / "events.sqlite"
