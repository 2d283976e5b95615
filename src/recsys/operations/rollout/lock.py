"""Lock of a rollout at the hosts that it changes, so that two rollouts know of each other. Imports no torch."""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from recsys.core.errors import UserError
from recsys.operations.rollout.admin import AdminClient, RefusedError, UnreachableError

# A lock ends so many seconds after its process has ended; it is renewed every few seconds.
LOCK_SECONDS, RENEW_SECONDS = 30.0, 5.0
_HELP = "wait until it has ended; `unlock` takes its lock, and it stops at its next step"


def owner() -> str:
    """Return the name of the person and process that runs a rollout."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}, process {os.getpid()}"


class HostLocks:
    """Context in which one rollout has the lock of all hosts.

    Hosts that share a place for their state have one lock together. A host that does not answer is left out: it cannot
    be changed either.

    Args:
        token: random name of the rollout, the same when it is resumed.
        force: take the lock from another rollout.
    """

    def __init__(self, hosts: Sequence[AdminClient], token: str, *, force: bool = False) -> None:
        self._hosts, self._token, self._force = hosts, token, force
        self._ended = threading.Event()
        self._lost: str | None = None
        self._thread = threading.Thread(target=self._keep_renewing, name="rollout lock", daemon=True)

    def __enter__(self) -> Self:
        """Take the lock; raise `UserError` if another rollout has it."""
        try:
            self._hold(force=self._force)
        except UserError:
            self._give_back()
            raise
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lock back."""
        self._ended.set()
        self._thread.join()
        self._give_back()

    def _hold(self, *, force: bool = False, once: bool = False) -> None:
        for host in self._hosts:
            try:
                host.lock(self._token, owner(), seconds=LOCK_SECONDS, force=force, once=once)
            except UnreachableError:
                continue
            except RefusedError as error:
                if error.status == 409:
                    raise UserError(f"{error}; {_HELP}") from error
                # A server of an earlier version has no locks. A renewal may wait until the state can be read again.
                if error.status != 404 and not (once and error.status == 503):
                    raise

    def check(self) -> None:
        """Raise `UserError` if the lock was lost."""
        if self._lost is not None:
            raise UserError(self._lost)

    def _keep_renewing(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            try:
                self._hold(once=True)
            except UserError as error:
                self._lost = str(error)
                return

    def _give_back(self) -> None:
        for host in self._hosts:
            with contextlib.suppress(UnreachableError, RefusedError):
                # It ends by itself, so nobody waits for a host that does not answer.
                host.lock(self._token, owner(), seconds=0, once=True)
