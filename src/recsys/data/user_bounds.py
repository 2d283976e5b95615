"""Bounds of the rows of each user in a prepared data set, checked when they are opened.

Shapes: U users.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from recsys.core.columns import load_array
from recsys.core.errors import UserError
from recsys.core.types import Int64Array

# Users whose bounds are compared at once, and most of such blocks that are compared.
_BLOCK, _MOST_BLOCKS = 1 << 16, 64


class UserBounds(NamedTuple):
    """Positions of the events of each user, memory-mapped.

    Attributes:
        offsets: int64 [U + 1], bounds of each user's events.
        train_end: int64 [U], end of each user's training part.
        val_end: int64 [U], end of each user's validation part.
    """

    offsets: Int64Array
    train_end: Int64Array
    val_end: Int64Array

    @classmethod
    def load(cls, folder: Path, *, num_users: int, num_events: int) -> UserBounds:
        """Memory-map the three files of the folder `users`.

        The order of the positions is checked for at most 4 million users, in blocks that are spread over all of them,
        because all bounds of 100 million users are 2.4 GB, which each start of a process would read. A file of other
        data differs in its length, its ends or nearly every block.

        Raises:
            UserError: If a file is missing, is damaged, or holds positions of other users or events.
        """
        offsets = load_offsets(folder / "offsets.npy", num_users)
        ends = (load_positions(folder / f"{name}.npy", num_users, num_users) for name in ("train_end", "val_end"))
        bounds = cls(offsets, *ends)
        if (found := (int(offsets[0]), int(offsets[-1]))) != (0, num_events):
            raise _refused(folder / "offsets.npy", f"events {found[0]}..{found[1]}", f"0..{num_events} of meta.json")
        num_blocks = min(_MOST_BLOCKS, num_users // _BLOCK + 1)
        for first in np.linspace(0, max(num_users - _BLOCK, 0), num_blocks, dtype=np.int64).tolist():
            bounds._check_order(folder, first)
        return bounds

    def _check_order(self, folder: Path, first: int) -> None:
        """Check the users of the block that begins at the user `first`."""
        offsets = self.offsets[first : first + _BLOCK + 1]
        train_end, val_end = (ends[first : first + _BLOCK] for ends in (self.train_end, self.val_end))
        begin, end = offsets[:-1], offsets[1:]
        wrong = {
            "offsets": begin > end,
            "train_end": (train_end < begin) | (train_end > end),
            "val_end": (val_end < train_end) | (val_end > end),
        }
        for name, is_wrong in wrong.items():
            if is_wrong.any():
                at = int(is_wrong.argmax())
                raise _refused(
                    folder / f"{name}.npy",
                    f"offsets {begin[at]}..{end[at]}, train_end {train_end[at]}, val_end {val_end[at]} of user_idx "
                    f"{first + at}",
                    "offsets[user_idx] <= train_end <= val_end <= offsets[user_idx + 1]",
                )


def load_offsets(file: Path, num_users: int) -> Int64Array:
    """Memory-map the bounds of the rows of all users, int64 [U + 1].

    Raises:
        UserError: If the file is missing, is damaged or has the bounds of other users.
    """
    return load_positions(file, num_users + 1, num_users)


def load_positions(file: Path, length: int, num_users: int) -> Int64Array:
    """Memory-map `length` positions, int64 [length].

    Raises:
        UserError: If the file is missing, is damaged or has another shape or type.
    """
    expected = f"int64 [{length}] for the {num_users} users of meta.json"
    try:
        found = np.asarray(load_array(file))
    except (OSError, ValueError, EOFError) as error:
        raise _refused(file, f"no array that can be read ({error})", expected) from error
    if found.shape != (length,) or found.dtype != np.int64:
        raise _refused(file, f"{found.dtype} {list(found.shape)}", expected)
    return found


def _refused(file: Path, found: str, expected: str) -> UserError:
    return UserError(f"{file}: found {found}, expected {expected}; delete {file.parent.parent} and prepare again")
