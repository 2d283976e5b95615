"""Hooks: payloads by command and by webhook, and hooks that fail."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from recsys.core.errors import UserError
from recsys.operations.cycle.arrivals import FolderListing
from recsys.operations.cycle.plan import CyclePlan
from recsys.operations.cycle.state import Cycle
from recsys.operations.gates.verdict import Acceptance, Verdict, at_most
from recsys.reports.cycles.notify import Notifier

SECRET = "T0KEN"


class Hook:
    """A webhook on the loopback that keeps what was posted, and answers as it is told."""

    def __init__(self) -> None:
        self.posted: list[tuple[str, Any]] = []
        self.users: set[str | None] = set()
        self.status, self.seconds = 200, 0.0
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.users.add(self.headers["Authorization"])
                hook.posted.append((self.headers["Content-Type"], json.loads(body)))
                time.sleep(hook.seconds)
                self.send_response(hook.status)
                self.send_header("Location", f"/{SECRET}/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://user:{SECRET}@127.0.0.1:{self._http.server_port}/{SECRET}?key={SECRET}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.stop()


def notifier(notify: Any, seconds: float = 60.0) -> Notifier:
    return Notifier(OmegaConf.create({"notify": notify, "notify_seconds": seconds, "model": "pins"}))


@pytest.fixture
def plan(tmp_path: Path) -> CyclePlan:
    source = {"source": {"_target_": "recsys.data.sources.ParquetFolder"}}
    training = {"data": source, "trainer": {"devices": 1}, "test": True, "warm_start": None}
    config = {"model": "pins", "folder": str(tmp_path / "loop"), "store": str(tmp_path / "store"), "keep": None}
    return CyclePlan(
        OmegaConf.create(config), OmegaConf.create(training), variants={}, command=["data.root=DIR", "keep=3"]
    )


def stopped(plan: CyclePlan) -> Cycle:
    cycle = Cycle(3, "then", settings="", listing=FolderListing(), new_events=7, version="c" * 16, served="5" * 16)
    run = plan.run_folder(cycle)
    run.mkdir(parents=True)
    row = at_most("largest day", 3.2, threshold=1.67, reason="2026-11-20", fits={"max_ratio": 3.2}).of("volume")
    given: dict[str, Any] = {"run": str(run), "candidate": cycle.version, "against": cycle.served}
    Verdict(**given, dataset_fingerprint="", created="", outcomes=(row,)).save(run)
    cycle.end("stopped", "stopped by volume")
    return cycle


def test_a_webhook_gets_what_a_person_needs(plan: CyclePlan, hook: Hook) -> None:
    cycle = stopped(plan)
    notifier(hook.url).ended(plan, cycle)
    ((kind, payload),) = hook.posted
    run = plan.run_folder(cycle)
    assert kind == "application/json"
    assert hook.users == {"Basic dXNlcjpUMEtFTg=="}
    assert payload.pop("when").startswith("20")
    assert payload == {
        "event": "stop",
        "model": "pins",
        "text": "recsys retrain pins cycle 3: stop, stopped by volume",
        "cycle": 3,
        "outcome": "stopped",
        "why": "stopped by volume",
        "new_events": 7,
        "version": "c" * 16,
        "served_before": "5" * 16,
        "serving": None,
        "accepted": None,
        "failures": [
            {"gate": "volume", "check": "largest day", "value": 3.2, "threshold": 1.67, "reason": "2026-11-20"}
        ],
        "warnings": [],
        "verdict": str(run / "verdict.json"),
        "page": str(run / "verdict.html"),
        "commands": {
            "accept": "recsys retrain keep=3 accept=3 why=REASON",
            "fits": "recsys retrain data.root=DIR keep=3 gates.volume.max_ratio=3.21",
        },
    }


def test_each_outcome_has_an_event(plan: CyclePlan, hook: Hook) -> None:
    cycle, told = stopped(plan), notifier(hook.url)
    cycle.accepted = Acceptance.of([], who="ann", when="now", why="the sale")
    for outcome in ("kept", "rolled_back", "abandoned", "failed"):
        cycle.outcome = outcome  # type: ignore[assignment]
        told.ended(plan, cycle)
    # The command ends with the error that its cycle has ended with.
    told.failed(UserError("again"))
    assert [payload["event"] for _, payload in hook.posted] == ["release", "rollback", "failure"]
    assert hook.posted[0][1]["accepted"] == {"who": "ann", "when": "now", "why": "the sale"}
    assert hook.posted[0][1]["commands"] == {}
    notifier(hook.url).failed(UserError("data.root: no such folder"))
    payload = hook.posted[-1][1]
    assert (payload["event"], payload["cycle"]) == ("failure", None)
    assert payload["why"] == "UserError: data.root: no such folder"


@pytest.mark.parametrize("is_list", [True, False])
def test_a_command_reads_the_payload_without_a_shell(plan: CyclePlan, tmp_path: Path, is_list: bool) -> None:
    script = tmp_path / "hook it.py"
    script.write_text("import sys\nopen(sys.argv[1], 'w').write(sys.stdin.read() + sys.argv[2])\nprint('noise')\n")
    words = [sys.executable, str(script), str(tmp_path / "told"), "$HOME; *"]
    text = " ".join(f"'{word}'" for word in words)
    notifier(words if is_list else text).ended(plan, stopped(plan))
    told = (tmp_path / "told").read_text()
    assert told.endswith("$HOME; *")
    assert json.loads(told.removesuffix("$HOME; *"))["cycle"] == 3


FAILURES = {
    "status": ([204, 500], "status 500"),
    "redirection": ([302], "status 302"),
    "slow": ([200], "no answer within 0.2 s"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_webhook_that_fails_is_logged_once_without_its_secrets(
    plan: CyclePlan, hook: Hook, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    statuses, why = FAILURES[kind]
    told, cycle = notifier(hook.url, 0.2 if kind == "slow" else 60.0), stopped(plan)
    hook.seconds = 0.6 if kind == "slow" else 0.0
    with caplog.at_level(logging.DEBUG):
        for hook.status in [*statuses, statuses[-1]]:
            told.ended(plan, cycle)
    (record,) = caplog.records
    assert record.getMessage() == f"notify: webhook at 127.0.0.1 failed at 'stop': {why}"


@pytest.mark.parametrize(
    ("notify", "why"),
    [
        (f"http://127.0.0.1:1/{SECRET}", "webhook at 127.0.0.1 failed at 'stop': ConnectionRefusedError"),
        (f"http://127.0.0.1:99999/{SECRET}", "webhook at 127.0.0.1 failed at 'stop': "),
        (f"http://127.0.0.1/ {SECRET}", "webhook at 127.0.0.1 failed at 'stop': InvalidURL"),
        (f"http://[{SECRET}/", "webhook failed at 'stop': ValueError"),
        (f"/no/such/hook {SECRET}", "command /no/such/hook failed at 'stop': FileNotFoundError No such file"),
        ([sys.executable, "-c", "raise SystemExit(7)", SECRET], "failed at 'stop': exit code 7"),
    ],
)
def test_a_hook_that_cannot_work_fails_nothing(
    plan: CyclePlan, notify: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        notifier(notify).ended(plan, stopped(plan))
    (record,) = caplog.records
    assert why in record.getMessage()
    assert SECRET not in caplog.text


def test_a_command_that_hangs_is_ended_with_its_children(
    plan: CyclePlan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = tmp_path / "hang"
    script.write_text(f"#!/bin/sh\nsleep 600 &\necho $! > {tmp_path}/child\nwait\n")
    script.chmod(0o755)
    # A busy machine may need longer to start the command.
    for seconds in (0.5, 4.0, 32.0):
        with caplog.at_level(logging.WARNING, "recsys"):
            notifier(str(script), seconds).ended(plan, stopped(plan))
        assert f"did not end within {seconds:g} s" in caplog.text
        if (tmp_path / "child").exists():
            break
    child = int((tmp_path / "child").read_text())
    for _ in range(3000):
        if not _is_running(child):
            return
        time.sleep(0.02)
    pytest.fail("the child still runs")


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.parametrize("wrong", [3, {"url": "x"}, "'unclosed"])
def test_a_hook_that_is_no_command_is_refused(wrong: Any) -> None:
    with pytest.raises(UserError, match="notify: found .*expected"):
        notifier(wrong)


def test_without_a_hook_nothing_is_sent(plan: CyclePlan) -> None:
    for nothing in (None, "", []):
        notifier(nothing).ended(plan, stopped(plan))
        (plan.run_folder(stopped_cycle()) / "verdict.json").unlink()
        plan.run_folder(stopped_cycle()).rmdir()


def stopped_cycle() -> Cycle:
    return Cycle(3, "then", settings="", listing=FolderListing(), new_events=7)
