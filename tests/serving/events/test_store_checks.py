"""A store that lost its events, or may lose them, is noticed while it is open and at the next start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from recsys.core.errors import UserError
from recsys.serving.events import Event, SQLiteEvents, StoreError


@pytest.mark.parametrize("damage", ["emptied", "removed", "replaced"])
def test_a_file_that_lost_its_events_is_noticed(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "events.sqlite"
    store = SQLiteEvents(path)
    store.append([(1, Event(2, 3))])
    store.check()
    if damage == "emptied":
        os.truncate(path, 0)
    else:
        path.rename(tmp_path / "away")
        if damage == "replaced":
            path.write_bytes((tmp_path / "away").read_bytes())
    with pytest.raises(StoreError, match="events.sqlite"):
        store.check()


def test_an_emptied_file_is_no_new_store(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    # A file that another process is about to fill.
    path.touch()
    SQLiteEvents(path).close()
    for name in ("events.sqlite-wal", "events.sqlite-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    os.truncate(path, 0)
    with pytest.raises(UserError, match="was emptied; restore it"):
        SQLiteEvents(path)
    path.unlink()
    SQLiteEvents(path).close()
