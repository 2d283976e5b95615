"""The rollout and its state file, which survives a crash of the command. Imports no torch."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Literal

import msgspec

from recsys.core.errors import UserError
from recsys.core.io import atomic_write, private_folder

Goal = Literal["canary", "all", "back"]


class Rollout(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One change of the served version. It does not record progress, because the servers report what they serve.

    Attributes:
        version: version to serve.
        previous: version that hosts served before, and serve again after a rollback.
        goal: `canary`: every host loads the version and a share of the users gets it; `all`: every host serves it;
            `back`: every host serves the previous version again.
        share: share of the users that get the canary.
        hosts: `HOST:PORT` of each host, in the order of switching.
        gateways: `HOST:PORT` of each gateway.
        model: name of the model; None if hosts have only one.
        store: folder of releases whose alias `production` moves; None to leave the alias alone.
        alias_before: version that `production` pointed to.
        is_finished: the goal was reached.
        token: random name, by which hosts tell this rollout from others.
        since: UTC seconds at which the canary began to be judged; 0 before.
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
    token: str = msgspec.field(default_factory=lambda: uuid.uuid4().hex)
    since: int = 0


class RolloutStateFile:
    """File of a rollout, and a second file by which another process can pause the rollout."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, Path(f"{path}.lock")
        self._pause = Path(f"{path}.pause")

    def read(self) -> Rollout | None:
        """Return the rollout; None if there is no file.

        Raises:
            UserError: If the file is not the state of a rollout.
        """
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=Rollout)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise UserError(f"{self.path}: not the state of a rollout ({error})") from error

    def write(self, rollout: Rollout) -> None:
        """Replace the file."""
        private_folder(self.path.parent)
        content = msgspec.json.format(msgspec.json.encode(rollout), indent=2) + b"\n"
        atomic_write(self.path, content, is_private=True)

    @property
    def is_paused(self) -> bool:
        """True if the rollout must stop before its next step."""
        return self._pause.exists()

    def pause(self) -> None:
        """Make the rollout stop before its next step."""
        self._pause.touch()

    def unpause(self) -> None:
        """Remove the pause file."""
        self._pause.unlink(missing_ok=True)
