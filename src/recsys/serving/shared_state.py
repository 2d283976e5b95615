"""Small documents that all servers of a fleet share: in a folder, or in Valkey. Imports no torch."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from recsys.core.io import PRIVATE_FILE, atomic_write, private_folder
from recsys.serving.valkey import DurableServer, is_server
from recsys.serving.valkey_edits import DONE, Edit

# Returns the new content of a document from the present one; None is no document.
Change = Callable[[bytes | None], bytes | None]

_ATTEMPTS = 200


class SharedState(Protocol):
    """Documents by name. Methods raise `OSError` if the place cannot be read or written now."""

    place: str

    def read(self, name: str) -> bytes | None:
        """Return a document, or None if there is none."""

    def change(self, name: str, change: Change) -> bytes | None:
        """Replace a document by what `change` returns, and return that; durable, and one change after the other."""


class FolderState:
    """`SharedState` in the files of a folder, which the first change makes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, str(folder)

    def read(self, name: str) -> bytes | None:
        """Return a document."""
        try:
            return (self.folder / f"{name}.json").read_bytes()
        except FileNotFoundError:
            return None

    def change(self, name: str, change: Change) -> bytes | None:
        """Replace a document."""
        private_folder(self.folder)
        with FileLock(self.folder / f".{name}.lock", mode=PRIVATE_FILE):
            content = change(self.read(name))
            if content is None:
                (self.folder / f"{name}.json").unlink(missing_ok=True)
            else:
                atomic_write(self.folder / f"{name}.json", content, is_private=True)
        return content


class ValkeyState:
    """`SharedState` in the keys of a server."""

    def __init__(self, url: str, *, key: str = "changes", prefix: str = "recsys") -> None:
        self._server = DurableServer(url, key=key, what="the state of the fleet", failed=OSError)
        self.place, self._prefix = self._server.place, prefix

    def read(self, name: str) -> bytes | None:
        """Return a document."""
        with self._server.answers():
            content: Any = self._server.client.get(self._key(name))
        return None if content is None else bytes(content)

    def change(self, name: str, change: Change) -> bytes | None:
        """Replace a document; repeat while others change it."""
        key = self._key(name)
        with self._server.answers():
            for _ in range(_ATTEMPTS):
                before: Any = self._server.client.get(key)
                content = change(before)
                edit = Edit(key, before, "delete") if content is None else Edit(key, before, "set", content)
                if self._server.swap([edit]) == [DONE]:
                    return content
                time.sleep(random.uniform(0, 0.005))
        raise OSError(f"{self.place}: others keep changing {name}")

    def _key(self, name: str) -> str:
        return f"{self._prefix}:fleet:{name}"


def open_state(changes: str) -> SharedState:
    """Return the state beside the log of item updates: on the same server, or in the same folder."""
    return ValkeyState(changes) if is_server(changes) else FolderState(Path(changes).parent)
