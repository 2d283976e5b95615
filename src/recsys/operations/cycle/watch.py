"""Looks at servers over HTTP after a release went out: readiness, the version they serve, and failed requests."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from recsys.core.errors import UserError
from recsys.serving.gateway.remote_host import Address

_ASK_SECONDS = 5.0
_ANSWERS = re.compile(r"^recsys_requests_total\{([^}]*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
# What a server is asked by those who look after it is no request of a user.
_OWN = ("/healthz", "/readyz", "/metrics")


@dataclass(frozen=True)
class Watch:
    """How long, and what is too much.

    Attributes:
        seconds: to watch for.
        every: seconds between two looks.
        most_errors: share of the answers since the watch began that may have a status of 500 or above.
        fewest_answers: below so many the share is not judged.
        unready: looks in a row at which a server may not be ready, or not serve the release.
        switch_seconds: that servers which follow the alias have to serve the release.
    """

    seconds: float
    every: float
    most_errors: float
    fewest_answers: int
    unready: int
    switch_seconds: float

    def __post_init__(self) -> None:
        for name, least in (
            ("seconds", 0),
            ("every", 0.001),
            ("most_errors", 0),
            ("unready", 1),
            ("switch_seconds", 0),
        ):
            if getattr(self, name) < least:
                raise UserError(f"watch.{name}: found {getattr(self, name)}, expected {least} or more")


class Counts(NamedTuple):
    """Answers that a server has given since it was started."""

    answers: float
    errors: float


@dataclass(frozen=True)
class Server:
    """One that is watched.

    Attributes:
        address: host and port.
        version: that it should serve; None for a gateway, which has none of its own.
    """

    address: Address
    version: str | None

    @property
    def name(self) -> str:
        """As it is named in messages."""
        return f"{self.address[0]}:{self.address[1]}"

    def problem(self) -> str | None:
        """Why it is not ready for users; None: it is."""
        try:
            status, _ = self._get("/readyz")
            if status != 200:
                return f"{self.name}: /readyz answers {status}"
            if self.version is None:
                return None
            serving = [held["serving"] for held in json.loads(self._get("/v1/version")[1]).values()]
        except (OSError, http.client.HTTPException, ValueError, TypeError, KeyError, AttributeError) as error:
            return f"{self.name}: does not answer ({str(error) or type(error).__name__})"
        if self.version not in serving:
            return f"{self.name}: serves {', '.join(map(str, serving)) or 'nothing'}, expected {self.version}"
        return None

    def counts(self) -> Counts | None:
        """What it has answered; None: it does not say."""
        try:
            status, body = self._get("/metrics")
        except (OSError, http.client.HTTPException):
            return None
        if status != 200:
            return None
        answers = errors = 0.0
        for labels, value in _ANSWERS.findall(body.decode(errors="replace")):
            said = dict(_LABEL.findall(labels))
            if said.get("route") not in _OWN:
                answers += float(value)
                errors += float(value) if said.get("status", "").startswith("5") else 0.0
        return Counts(answers, errors)

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(*self.address, timeout=_ASK_SECONDS)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def watch_servers(servers: Sequence[Server], followers: Sequence[Server], watch: Watch) -> str | None:
    """Why the release should not stay; None: nothing was found.

    Args:
        servers: hosts that serve it already, and gateways.
        followers: servers that look at the alias, and switch by themselves.
        watch: how long, and what is too much.
    """
    give_up = time.monotonic() + watch.switch_seconds
    while problems := [problem for server in followers if (problem := server.problem())]:
        if time.monotonic() >= give_up:
            return f"{problems[0]} after {watch.switch_seconds:g} s"
        time.sleep(min(watch.every, 1.0))
    everyone = [*servers, *followers]
    seen = {server: server.counts() or Counts(0.0, 0.0) for server in everyone}
    total = Counts(0.0, 0.0)
    in_a_row = dict.fromkeys(everyone, 0)
    end = time.monotonic() + watch.seconds
    while True:
        for server in everyone:
            problem = server.problem()
            in_a_row[server] = 0 if problem is None else in_a_row[server] + 1
            if in_a_row[server] >= watch.unready:
                return f"{problem}, at {watch.unready} looks in a row"
            total, seen[server] = _add(total, seen[server], server.counts())
        if total.answers >= watch.fewest_answers and total.errors > watch.most_errors * total.answers:
            return f"{total.errors:.0f} of {total.answers:.0f} answers failed, expected at most {watch.most_errors:.2%}"
        if time.monotonic() >= end:
            return None
        time.sleep(min(watch.every, max(0.0, end - time.monotonic())))


def _add(total: Counts, before: Counts, now: Counts | None) -> tuple[Counts, Counts]:
    """The total with what was answered since; a server that was started again counts from zero."""
    if now is None:
        return total, before
    if now.answers < before.answers:
        before = Counts(0.0, 0.0)
    return Counts(total.answers + now.answers - before.answers, total.errors + now.errors - before.errors), now
