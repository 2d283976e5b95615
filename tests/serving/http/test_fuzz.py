"""The fuzzing of `benchmarks/serving_fuzz.py`, for a short while, and whether it would find what it looks for."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from publishing import Published

from recsys.core.errors import UserError
from recsys.serving.events import parse_events

ROOT = Path(__file__).parents[3]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("fuzz_parts")


@pytest.fixture
def fuzzing(parts: Any) -> Any:  # noqa: ARG001
    return importlib.import_module("serving_fuzz")


def test_the_judge_finds_faults(fuzzing: Any, parts: Any) -> None:
    told = json.dumps({"error": {"code": "bad_request", "message": "k: found 0"}}).encode()

    def judged(must: str, status: int, body: bytes = b"") -> str | None:
        found = fuzzing.judge(parts.Sent("", b"POST", must), fuzzing.Answer(status, body, True))
        assert found is None or isinstance(found, str)
        return found

    assert judged(parts.REFUSED, 400, told) is None
    assert judged(parts.REFUSED, 400, b"Invalid HTTP request received.") is None
    assert judged(parts.REFUSED, 400, b'{"detail": "no"}') == "4xx without a reason"
    assert judged(parts.REFUSED, 200, b'{"stored":1}') == "taken"
    assert judged(parts.ANSWERED, 200) is None
    for must in (parts.REFUSED, parts.ANSWERED):
        assert judged(must, 0) == "closed"
        assert judged(must, -1) == "no answer"
    for must in (parts.REFUSED, parts.ANSWERED, parts.ANY):
        assert judged(must, 500, told) == "5xx"
        assert judged(must, 400, told * 10_000) == "long refusal"
    assert judged(parts.ANY, 0) is judged(parts.ANY, -1) is None
    assert judged(parts.ANY, 200, b'{"stored":3}') == "taken"


def test_every_kind_is_drawn_and_a_seed_draws_the_same(fuzzing: Any, parts: Any) -> None:
    world = parts.World("a" * 16, 4, [1, "2"], "category", "secret", k=10, batch=5, history=5, body_bytes=1000, cost=50)
    drawn = [
        [messages.draw() for _ in range(400)] for messages in (fuzzing.Messages(world, 7), fuzzing.Messages(world, 7))
    ]
    assert drawn[0] == drawn[1] != [fuzzing.Messages(world, 8).draw() for _ in range(400)]
    kinds = Counter(sent.kind for sent in drawn[0])
    assert len(kinds) == 16
    # None of the events is one that a store might rightly take.
    for sent in drawn[0]:
        if sent.kind == "events: changed bytes and values":
            assert not parts.may_be_events(sent.data.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize(
    ("body", "may_be"),
    [
        (b'{"user_id": 1, "item_id": "a"}', True),
        (b'[{"user_id": 1, "item_id": 2}, {"user_id": "", "item_id": 2}]', True),
        (b"[]", True),
        (b'{"user_id": true, "item_id": 2}', False),
        (b'{"user_id": 1, "item_id": 2.5}', False),
        (b'{"user_id": 1}', False),
        (b'[{"user_id": 1, "item_id": 2}, 5]', False),
        (b'{"user_id": 1, "item_id": 2', False),
        (b'{"user_id": "\xff", "item_id": 2}', False),
    ],
)
def test_every_valid_event_may_be_an_event(parts: Any, body: bytes, may_be: bool) -> None:
    assert parts.may_be_events(body) == may_be
    # It never calls malformed what the server takes.
    try:
        parse_events(json.loads(body.decode()), {}, now=0)
    except (UserError, ValueError):
        return
    assert may_be


def test_large_messages_are_drawn_and_blocks_are_reported(fuzzing: Any, parts: Any, tmp_path: Path) -> None:
    large = importlib.import_module("fuzz_large")
    world = parts.World(
        "a" * 16, 4, [1, "2"], "category", "secret", k=10, batch=8, history=5, body_bytes=10_000, cost=50
    )
    drawn = [large.LargeMessages(world, 3).draw() for _ in range(2)]
    assert drawn[0] == drawn[1]
    lines = [
        {"at": 7.5, "computed": 20, "blocked": 70, "stack": "f"},
        {"at": 9, "computed": 80, "blocked": 1, "stack": ""},
    ]
    (tmp_path / "blocks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = fuzzing.blocks(tmp_path / "blocks.jsonl", [(7.0, 8.0, "a kind")])
    assert found == [(70, 20, "a kind in f"), (1, 80, "malformed messages, or the start in ")]
    console = fuzzing.Console(file=(tmp_path / "out").open("w"))
    for blocks, memory, is_right in (
        ([], (1, 1), True),
        (found[:1], (1, 1), False),
        (found[1:], (1, 1), False),
        ([], (1, 3), False),
    ):
        record = fuzzing.Record(blocks=blocks, memory=memory)
        assert fuzzing.report(record, [("alive", True)], seconds=1, console=console) == is_right


@pytest.mark.slow
def test_nothing_breaks_a_server_or_is_stored(published: Published, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "benchmarks/serving_fuzz.py"),
        "--requests",
        "1000",
        "--large",
        "50",
        "--seed",
        "1",
    ]
    command += ["--store", str(published.store), "--release", published.versions[0]]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1,058 malformed messages" in done.stdout
    assert "NO " not in done.stdout
