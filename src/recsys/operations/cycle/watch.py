"""Checks servers over HTTP after a rollout: readiness, the version that they serve, and failed requests."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from recsys.core.errors import UserError
from recsys.operations.rollout.admin import call
from recsys.serving.gateway.remote_host import Address

_TIMEOUT_SECONDS = 5.0
_REQUESTS = "recsys_requests_total"
# Routes for operators, whose answers do not count as answers to users.
_OPERATOR_ROUTES = ("/healthz", "/readyz", "/metrics")

# (route, status) -> answers.
_Counters = Mapping[tuple[str, str], float]


@dataclass(frozen=True, kw_only=True)
class WatchSettings:
    """Duration of a watch, and limits that bring the old release back, as in `conf/retrain.yaml`."""

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


class _Answers(NamedTuple):
    """Answers to users, and those among them with a status of 500 or above."""

    all: float = 0.0
    errors: float = 0.0


@dataclass(frozen=True)
class WatchedServer:
    """A server that is watched.

    Attributes:
        address: host and port of one server. The processes of a server with `workers>1` share the port and answer
            `/metrics` with their sum; several servers behind a load balancer would answer with counters of their own.
        version: version that it should serve; None for a gateway, which serves the versions of its hosts.
    """

    address: Address
    version: str | None

    @property
    def name(self) -> str:
        """Name in messages, `HOST:PORT`."""
        return f"{self.address[0]}:{self.address[1]}"

    def problem(self) -> str | None:
        """Return the reason why the server cannot serve the release; None if it can."""
        try:
            status, _ = call(self.address, "GET", "/readyz", seconds=_TIMEOUT_SECONDS)
            if status != 200:
                return f"{self.name}: /readyz answers {status}"
            if self.version is None:
                return None
            _, held = call(self.address, "GET", "/v1/version", seconds=_TIMEOUT_SECONDS)
            serving = [model["serving"] for model in json.loads(held).values()]
        except (OSError, http.client.HTTPException, ValueError, TypeError, KeyError, AttributeError) as error:
            return f"{self.name}: does not answer ({str(error) or type(error).__name__})"
        if self.version not in serving:
            return f"{self.name}: serves {', '.join(map(str, serving)) or 'nothing'}, expected {self.version}"
        return None

    def counters(self) -> _Counters | None:
        """Return the server's counters of answers to users since it started; None if they cannot be read."""
        try:
            status, body = call(self.address, "GET", "/metrics", seconds=_TIMEOUT_SECONDS)
            if status != 200:
                return None
            return {
                (sample.labels["route"], sample.labels["status"]): sample.value
                for family in text_string_to_metric_families(body.decode())
                for sample in family.samples
                if sample.name == _REQUESTS and sample.labels["route"] not in _OPERATOR_ROUTES
            }
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            return None


def watch_servers(
    servers: Sequence[WatchedServer], followers: Sequence[WatchedServer], *, settings: WatchSettings
) -> str | None:
    """Watch servers and return the reason to roll the release back; None if there is no reason.

    Args:
        servers: hosts that serve the release already, and gateways.
        followers: servers that follow the alias and switch by themselves.
        settings: duration and limits.
    """
    give_up = time.monotonic() + settings.switch_seconds
    while problems := [problem for server in followers if (problem := server.problem())]:
        if time.monotonic() >= give_up:
            return f"{problems[0]} after {settings.switch_seconds:g} s"
        time.sleep(min(settings.every, 1.0))
    everyone = [*servers, *followers]
    seen = {server: server.counters() for server in everyone}
    total = _Answers()
    in_a_row = dict.fromkeys(everyone, 0)
    end = time.monotonic() + settings.seconds
    while True:
        for server in everyone:
            problem = server.problem()
            in_a_row[server] = 0 if problem is None else in_a_row[server] + 1
            if in_a_row[server] >= settings.unready:
                return f"{problem}, at {settings.unready} checks in a row"
            now, before = server.counters(), seen[server]
            if now is not None:
                # Answers before the first reading came from the previous release.
                total = total if before is None else _add(total, _increase(before, now))
                seen[server] = now
        if total.all >= settings.fewest_answers and total.errors > settings.most_errors * total.all:
            return f"{total.errors:.0f} of {total.all:.0f} answers failed, expected at most {settings.most_errors:.2%}"
        if time.monotonic() >= end:
            return None
        time.sleep(min(settings.every, max(0.0, end - time.monotonic())))


def _add(total: _Answers, more: _Answers) -> _Answers:
    return _Answers(total.all + more.all, total.errors + more.errors)


def _increase(before: _Counters, now: _Counters) -> _Answers:
    """Return the answers between two readings of one server.

    A counter that fell or vanished means that the server, with all its processes, started again from zero. Then all
    counters count from zero, those that have outgrown their former value too.
    """
    if any(now.get(series, 0.0) < value for series, value in before.items()):
        before = {}
    growth = {series: value - before.get(series, 0.0) for series, value in now.items()}
    return _Answers(sum(growth.values()), sum(value for (_, status), value in growth.items() if status.startswith("5")))
