from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import FAST, Server


@pytest.fixture
def fast_folder() -> Iterator[Path]:
    # Paths of sockets are short.
    with tempfile.TemporaryDirectory(dir=FAST, prefix="events-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(dir=FAST, prefix="events-") as folder:
        running = Server(Path(folder))
        yield running
        running.kill()
