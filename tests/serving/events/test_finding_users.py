"""Users by the beginning of their id, in both stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import needs_server

from recsys.serving.events import Event, EventStore, open_store
from recsys.serving.events.sqlite_files import number_ranges

USERS = [0, 1, -1, 12, 120, 1299, 13, -12, 2**63 - 1, -(2**63), "1", "12", "a", "ab", "a*b", "b", '"', "\\x", "ä", "-1"]


@pytest.fixture(
    scope="module", params=["sqlite", *(pytest.param(name, marks=needs_server) for name in ("server", "cluster"))]
)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EventStore]:
    if request.param == "sqlite":
        opened: EventStore = open_store(str(tmp_path_factory.mktemp("users") / "events.db"), 5)
    else:
        from recsys.serving.events.valkey import ValkeyEvents

        opened = ValkeyEvents(request.getfixturevalue(request.param).url, 5, prefix="users[1]")
    opened.append([(user, Event("i", 1)) for user in USERS])
    yield opened
    opened.close()


def expected(prefix: str) -> list[int | str]:
    found = [user for user in USERS if str(user).startswith(prefix)]
    return sorted(u for u in found if isinstance(u, int)) + sorted(u for u in found if isinstance(u, str))


@pytest.mark.parametrize(
    "prefix", ["", "1", "12", "-", "-1", "0", "01", "a", "a*", "*", '"', "\\", "ä", "x", "9223372036854775807"]
)
def test_users_by_prefix_of_the_id(store: EventStore, prefix: str) -> None:
    found = store.users(prefix, 100)
    assert sorted(map(repr, found)) == sorted(map(repr, expected(prefix)))
    assert [isinstance(user, str) for user in found] == sorted(isinstance(user, str) for user in found)
    assert len(store.users(prefix, 2)) == min(2, len(found))


def test_a_user_who_is_forgotten_is_not_found(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "events.db"), 5)
    store.append([("a", Event(1, 1)), ("ab", Event(1, 1))])
    store.forget(["a"])
    assert store.users("a", 10) == ["ab"]
    store.close()


@given(st.integers(-(2**63), 2**63 - 1), st.text("-0123456789", max_size=6))
def test_ranges_hold_the_numbers_that_begin_so(number: int, prefix: str) -> None:
    inside = [first <= number <= last for first, last in number_ranges(prefix)]
    assert any(inside) == str(number).startswith(prefix)
    assert sum(inside) <= 1
