"""Documents of a fleet: one change after the other, in a folder, on a server and on a cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from servers import needs_server

from recsys.core.errors import UserError
from recsys.serving.shared_state import SharedState, ValkeyState, open_state

Open = Callable[[], SharedState]


@pytest.fixture(params=["folder", *(pytest.param(name, marks=needs_server) for name in ("server", "cluster"))])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    if request.param == "folder":
        return lambda: open_state(str(tmp_path / "state/changes.journal"))
    url = request.getfixturevalue(request.param).url
    return lambda: ValkeyState(url, prefix=tmp_path.name)


def test_a_document_is_what_the_last_change_made_it(opened: Open) -> None:
    first, second = opened(), opened()
    assert first.read("canary") is None
    assert first.change("canary", lambda before: b"1" if before is None else b"?") == b"1"
    assert second.read("canary") == b"1"
    assert second.change("canary", lambda _: None) is None
    assert first.read("canary") is None


def test_no_change_is_lost(opened: Open) -> None:
    def count() -> None:
        state = opened()
        for _ in range(20):
            state.change("number", lambda before: b"%d" % (int(before or 0) + 1))

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened().read("number") == b"60"


def test_a_place_that_fails_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        open_state(str(tmp_path / "file/changes.journal")).change("canary", lambda _: b"")
    with pytest.raises(OSError, match=r"changes: .*nothing"):
        open_state(f"unix://{tmp_path}/nothing")
    with pytest.raises(UserError, match="changes: mysql://"):
        open_state("mysql://a")
