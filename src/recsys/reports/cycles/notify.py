"""Notifies a command or a webhook when a cycle was stopped, released, rolled back or failed.

A hook that fails never fails the cycle. Addresses and arguments may hold secrets and are not logged.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import shlex
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from omegaconf import DictConfig, ListConfig

from recsys.core.errors import UserError
from recsys.operations.cycle.plan import CyclePlan
from recsys.operations.cycle.state import Cycle, now
from recsys.reports.cycles.stop_advice import advise

log = logging.getLogger("recsys")

# Outcome of a cycle -> event of the payload.
EVENTS = {"kept": "release", "stopped": "stop", "rolled_back": "rollback", "failed": "failure"}
_ROW = ("gate", "check", "value", "threshold", "reason")


class Notifier:
    """Sends payloads to the hook of a configuration, if it has one.

    Args:
        config: configuration of `conf/retrain.yaml`, with `notify` and `notify_seconds`.

    Raises:
        UserError: If `notify` is neither a string nor a list of words.
    """

    def __init__(self, config: DictConfig) -> None:
        self._model, self._seconds = str(config.model), float(config.notify_seconds)
        self._url, self._command = "", list[str]()
        # A failure that a cycle ended with is not sent again as a failure of the command.
        self._last_event, self._has_failed = "", False
        given = config.notify
        try:
            if isinstance(given, str) and given.startswith(("http://", "https://")):
                self._url = given
            elif isinstance(given, str | ListConfig):
                self._command = shlex.split(given) if isinstance(given, str) else [str(word) for word in given]
            elif given is not None:
                raise ValueError(f"a {type(given).__name__}")
        except ValueError as error:
            raise UserError(f"notify: found {error}, expected a command, a list of words, or an http(s) URL") from error

    def ended(self, plan: CyclePlan, cycle: Cycle) -> None:
        """Notify of the end of a cycle."""
        event = EVENTS.get(str(cycle.outcome))
        if event is not None:
            self._send(event, cycle_payload(plan, cycle))

    def failed(self, error: Exception) -> None:
        """Notify of an error that ended the command, unless its cycle has ended with it."""
        if self._last_event != "failure":
            self._send("failure", {"why": f"{type(error).__name__}: {error}"})

    def _send(self, event: str, values: Mapping[str, Any]) -> None:
        self._last_event = event
        cycle = f" cycle {values['cycle']}" if "cycle" in values else ""
        text = f"recsys retrain {self._model}{cycle}: {event}, {values['why']}"
        payload = {"event": event, "model": self._model, "when": now(), "text": text, "cycle": None, **values}
        content = json.dumps(payload).encode()
        try:
            if self._command:
                _run(self._command, content, seconds=self._seconds)
            elif self._url:
                _post(self._url, content, seconds=self._seconds)
        except Exception as error:
            if not self._has_failed:
                log.warning("notify: %s failed at '%s': %s", self._name, event, _safe(error))
            self._has_failed = True

    @property
    def _name(self) -> str:
        if not self._url:
            return f"command {self._command[0]}"
        try:
            return f"webhook at {urlsplit(self._url).hostname}"
        except ValueError:
            return "webhook"


def cycle_payload(plan: CyclePlan, cycle: Cycle) -> dict[str, Any]:
    """Return what a payload says about a cycle that has ended."""
    advice, run = advise(plan, cycle), plan.run_folder(cycle)
    verdict = advice.verdict
    rows = {"failures": verdict.failed if verdict else [], "warnings": verdict.warnings if verdict else []}
    accepted = cycle.accepted
    return {
        "cycle": cycle.number,
        "outcome": cycle.outcome,
        "why": cycle.why,
        "new_events": cycle.new_events,
        "version": cycle.version,
        "served_before": cycle.served,
        "serving": plan.served(),
        "accepted": None if accepted is None else {"who": accepted.who, "when": accepted.when, "why": accepted.why},
        **{name: [{key: getattr(row, key) for key in _ROW} for row in found] for name, found in rows.items()},
        "verdict": None if verdict is None else str(run / "verdict.json"),
        "page": None if verdict is None else str(run / "verdict.html"),
        "commands": {"accept": advice.accept, "fits": advice.fits} if cycle.outcome == "stopped" else {},
    }


class _HookError(Exception):
    """The hook answered, but not with success."""


def _run(command: Sequence[str], content: bytes, *, seconds: float) -> None:
    # In a session of its own the command can be ended with its children. Its output goes to standard error, because
    # the last line of standard output is the result of the cycle.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2, start_new_session=True) as child:
        try:
            child.communicate(content, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise _HookError(f"did not end within {seconds:g} s") from None
        finally:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
    if child.returncode:
        raise _HookError(f"exit code {child.returncode}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirections, which would turn the POST into a GET without the payload."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _post(url: str, content: bytes, *, seconds: float) -> None:
    errors: list[Exception] = []

    def post() -> None:
        try:
            opener = urllib.request.build_opener(_NoRedirect)
            with opener.open(_request(url, content), timeout=seconds):
                pass
        except Exception as error:
            errors.append(error)

    # The timeout of a socket counts from byte to byte; this one covers the whole exchange.
    thread = threading.Thread(target=post, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive() or (errors and isinstance(errors[0], TimeoutError)):
        raise _HookError(f"no answer within {seconds:g} s")
    if errors:
        raise errors[0]


def _request(url: str, content: bytes) -> urllib.request.Request:
    headers, parts = {"Content-Type": "application/json", "User-Agent": "recsys"}, urlsplit(url)
    user, at, place = parts.netloc.rpartition("@")
    if at:
        # urllib reads no user and password from an address.
        headers["Authorization"] = f"Basic {base64.b64encode(unquote(user).encode()).decode()}"
    return urllib.request.Request(parts._replace(netloc=place).geturl(), content, headers, method="POST")


def _safe(error: Exception) -> str:
    """Return an error message without address and arguments."""
    if isinstance(error, urllib.error.HTTPError):
        return f"status {error.code}"
    if isinstance(error, _HookError):
        return str(error)
    reason = getattr(error, "reason", error)
    return f"{type(reason).__name__} {getattr(reason, 'strerror', None) or ''}".strip()
