"""Desired state of a fleet in its shared place: the served versions, and the lock of the rollout that changes them.

Imports no torch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from urllib.parse import quote

import msgspec

from recsys.release.store import ReleaseStore
from recsys.serving.http.admin_messages import RolloutLock
from recsys.serving.http.problems import Problem
from recsys.serving.shared_state import SharedState

log = logging.getLogger("recsys")

# Header with the token of the rollout that an admin call belongs to.
ROLLOUT_HEADER = "x-recsys-rollout"
LOCK = "rollout-lock"

# Token of the rollout that the present admin call belongs to; None for a call by hand.
rollout_token: ContextVar[str | None] = ContextVar("rollout_token", default=None)


class _Served(msgspec.Struct):
    """Version that was served by an admin call when the alias had moved so many times."""

    version: str
    moves: int


class _Held(msgspec.Struct):
    token: str
    owner: str
    since: float
    until: float


class ServedVersions:
    """Versions that the hosts of a fleet serve, so that a host that starts serves what the others do.

    A version that an admin call served holds until the alias moves, as on a running host. A host that was started with
    a version instead of an alias serves that version.
    """

    def __init__(self, state: SharedState, store: ReleaseStore, release: str) -> None:
        self._state, self._store, self._release = state, store, release

    def at_start(self, model: str) -> str:
        """Return the version to serve: that of the fleet, or that of the alias."""
        target = self._store.resolve(self._release)
        served = None if target == self._release else self._read(model)
        return target if served is None or served.moves != self._moves() else served.version

    def serve(self, model: str, version: str) -> None:
        """Record a version that an admin call serves."""
        served = _Served(version, self._moves())
        try:
            self._state.change(_name(model), lambda _: msgspec.json.encode(served))
        except OSError as error:
            log.warning("the served version is not known to servers that start later: %s", error)

    def _moves(self) -> int:
        return sum(change["alias"] == self._release for change in self._store.history())

    def _read(self, model: str) -> _Served | None:
        try:
            return _served(self._state.read(_name(model)))
        except OSError as error:
            log.warning("the served version of the fleet is unknown: %s", error)
            return None


def _name(model: str) -> str:
    return f"served-{quote(model, safe='')}"


def _served(content: bytes | None) -> _Served | None:
    try:
        return None if content is None else msgspec.json.decode(content, type=_Served)
    except msgspec.DecodeError:
        return None


class RolloutLocks:
    """Lock that one rollout at a time holds. It ends by itself if the rollout does not renew it.

    The clocks of servers that share the place must agree within some seconds. If they do not, a lock is lost at worst:
    its rollout stops at its next step, because a host refuses the calls of a rollout while another one has the lock.
    """

    def __init__(self, state: SharedState, clock: Callable[[], float] = time.time) -> None:
        self._state, self._clock = state, clock

    def hold(self, wanted: RolloutLock) -> None:
        """Take or renew the lock for some seconds; 0 seconds give it back.

        Raises:
            Problem: 409 if another rollout has it.
        """

        def change(content: bytes | None) -> bytes | None:
            held, now = self._held(content), self._clock()
            if held is not None and held.token != wanted.token and not wanted.force:
                raise _refusal(held)
            if not wanted.seconds:
                return None
            is_mine = held is not None and held.token == wanted.token
            since = held.since if held is not None and is_mine else now
            return msgspec.json.encode(_Held(wanted.token, wanted.owner, since, now + wanted.seconds))

        self._state.change(LOCK, change)

    def require(self) -> None:
        """Refuse the present call if it belongs to a rollout, and another rollout has the lock."""
        token = rollout_token.get()
        if token is not None:
            held = self._held(self._state.read(LOCK))
            if held is not None and held.token != token:
                raise _refusal(held)

    def _held(self, content: bytes | None) -> _Held | None:
        try:
            held = None if content is None else msgspec.json.decode(content, type=_Held)
        except msgspec.DecodeError:
            return None
        return held if held is not None and held.until > self._clock() else None


def _refusal(held: _Held) -> Problem:
    since = datetime.fromtimestamp(held.since, UTC).isoformat(" ", "seconds")
    return Problem(409, "rollout_under_way", message=f"{held.owner} has changed the versions since {since}")
