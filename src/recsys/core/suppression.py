"""List of forgotten users, whose data must not come back: event stores, backfills and preparations leave them out.

    HASH TIME      one line for each user; lines are only added

The list holds hashes, so that nobody can read from it who was forgotten: BLAKE2b of the id as text, 16 bytes. 5 and "5"
are one user here. A salt beside the hashes would not keep a reader of the list from trying ids, so the list is private.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from recsys.core.errors import UserError
from recsys.core.io import PRIVATE_FILE, atomic_write, private_folder

# Name of the list in the folder `state` of a folder of releases.
NAME = "suppressed"
_LINE = re.compile(r"([0-9a-f]{32})(?: \S+)?")
_PERSON = b"recsys.forgotten"
# `FILE@17` is the list as it was when it had 17 lines.
_REFERENCE = re.compile(r"(.*)@([0-9]+)", re.DOTALL)


def hash_of(user_id: object) -> str:
    """Return the hash of a user."""
    return hashlib.blake2b(str(user_id).encode("utf-8", "surrogatepass"), digest_size=16, person=_PERSON).hexdigest()


class SuppressionList:
    """The list in a file; a file that does not exist is an empty list."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def lines(self) -> list[str]:
        """Return the hashes in the order in which they were added.

        Raises:
            UserError: If a line is no hash.
        """
        try:
            content = self.path.read_text("utf-8", "replace")
        except FileNotFoundError:
            return []
        found = []
        for number, line in enumerate(content.splitlines(), 1):
            if (match := _LINE.fullmatch(line)) is None:
                raise UserError(f"{self.path}: line {number}: found {line[:40]!r}, expected a hash and a time")
            found.append(match[1])
        return found

    def add(self, hashes: Iterable[str]) -> int:
        """Add hashes that are not listed yet, and return their number once the list is durable."""
        private_folder(self.path.parent)
        with FileLock(f"{self.path}.lock", mode=PRIVATE_FILE):
            listed = set(self.lines())
            new = [one for one in dict.fromkeys(hashes) if one not in listed]
            if new:
                now = datetime.now(UTC).isoformat(timespec="seconds")
                before = self.path.read_bytes() if self.path.exists() else b""
                lines = "".join(f"{one} {now}\n" for one in new)
                atomic_write(self.path, before + lines.encode(), is_private=True)
            return len(new)


def frozen(reference: str | None, *, store: str | Path = "releases") -> str | None:
    """Return `FILE@LINES`, which means the same list for ever; None if no user is suppressed.

    Args:
        reference: FILE or FILE@LINES; None for the list beside a folder of releases, if there is one.
        store: folder of releases.

    Raises:
        UserError: If there is no such file.
    """
    if reference is None:
        path = Path(store) / "state" / NAME
    elif _REFERENCE.fullmatch(reference):
        return reference
    else:
        path = Path(reference)
        if not path.is_file():
            raise UserError(f"data.suppressed: {path}: no such file; expected the list of `recsys forget`")
    lines = len(SuppressionList(path).lines())
    return f"{path.absolute()}@{lines}" if lines else None


def frozen_now(reference: str | None, *, store: str | Path = "releases") -> str | None:
    """Return the present list of a reference that was frozen before, or else the one beside a folder of releases."""
    match = _REFERENCE.fullmatch(reference or "")
    return frozen(match[1] if match and Path(match[1]).is_file() else None, store=store)


def read_suppressed(reference: str) -> frozenset[str]:
    """Return the hashes of FILE or FILE@LINES.

    Raises:
        UserError: If there is no such file, or it has lost lines.
    """
    match = _REFERENCE.fullmatch(reference)
    path, wanted = (Path(match[1]), int(match[2])) if match else (Path(reference), None)
    if not path.is_file():
        raise UserError(f"data.suppressed: {path}: no such file; expected the list of `recsys forget`")
    lines = SuppressionList(path).lines()
    if wanted is not None and len(lines) < wanted:
        raise UserError(f"data.suppressed: {path}: found {len(lines)} lines, expected {wanted}: the list has lost some")
    return frozenset(lines[:wanted])
