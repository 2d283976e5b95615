"""What a rollout is about, in a file that survives whoever runs it. Imports no torch."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Literal

import msgspec

from recsys.core.errors import UserError

Goal = Literal["canary", "all", "back"]


class Rollout(msgspec.Struct, forbid_unknown_fields=True):
    """One change of version. What is done of it, the servers themselves know.

    Attributes:
        version: that is to be served.
        previous: that hosts served before, and serve again after a rollback.
        goal: `canary`: loaded everywhere, and given to a share; `all`: served by every host; `back`: rolled back.
        share: of the users, of the canary.
        hosts: `HOST:PORT`, in the order in which they are switched.
        gateways: `HOST:PORT`.
        model: None where hosts have one.
        store: whose alias `production` moves; None: it is left alone.
        alias_before: what `production` pointed to.
        is_finished: the goal was reached.
    """

    version: str
    previous: str
    goal: Goal
    share: float
    hosts: list[str]
    gateways: list[str]
    model: str | None
    store: str | None
    alias_before: str | None
    is_finished: bool = False


class StateFile:
    """The rollout, and the wish that it should pause, which another process may have.

    Args:
        path: of the file; what belongs to it lies beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, Path(f"{path}.lock")
        self._pause = Path(f"{path}.pause")

    def read(self) -> Rollout | None:
        """The rollout; None: there was none.

        Raises:
            UserError: the file is something else.
        """
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=Rollout)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise UserError(f"{self.path}: not the state of a rollout ({error})") from error

    def write(self, rollout: Rollout) -> None:
        """Replace the file by one that is on disk; a reader finds the old one or the new one."""
        aside = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(rollout), indent=2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self.path)

    @property
    def is_paused(self) -> bool:
        """Whether it should not go on."""
        return self._pause.exists()

    def pause(self) -> None:
        """Stop before the next step."""
        self._pause.touch()

    def unpause(self) -> None:
        """Go on when asked to."""
        self._pause.unlink(missing_ok=True)
