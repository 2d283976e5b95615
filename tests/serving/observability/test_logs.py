"""Every line is JSON, says when and what, and names its request."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import pytest

from recsys.core.errors import UserError
from recsys.serving.observability.logs import log_as_json, new_request_id, request_id


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    own = logging.getLogger("recsys").level
    stream = io.StringIO()
    log_as_json("info", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("recsys").setLevel(own)


def test_a_line_contains_all_fields(lines: io.StringIO) -> None:
    log = logging.getLogger("recsys.test")
    log.info("served %d", 3, extra={"host": "a:1", "level": "not the level"})
    try:
        raise ValueError("broken\nin two lines")
    except ValueError:
        log.exception("failed")
    log.debug("not told")
    first, second = map(json.loads, lines.getvalue().splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {"level": "info", "logger": "recsys.test", "message": "served 3", "host": "a:1"}
    assert second["level"] == "error"
    assert second["traceback"].endswith("ValueError: broken\nin two lines")


def test_requests_at_the_same_time_keep_their_ids(lines: io.StringIO) -> None:
    async def answer(name: str) -> None:
        request_id.set(name)
        await asyncio.sleep(0)
        logging.getLogger("recsys").info("by %s", name)

    async def both() -> None:
        await asyncio.gather(answer("a"), answer("b"))

    asyncio.run(both())
    told = [json.loads(line) for line in lines.getvalue().splitlines() if "by " in line]
    assert sorted((line["message"], line["request_id"]) for line in told) == [("by a", "a"), ("by b", "b")]


def test_audit_lines_are_written_at_every_level(lines: io.StringIO) -> None:
    # As every command does before it reads its configuration.
    logging.getLogger("recsys").setLevel(logging.INFO)
    log_as_json("error", lines)
    logging.getLogger("recsys.audit").info("asked\nfor this")
    logging.getLogger("recsys").info("not told")
    (line,) = lines.getvalue().splitlines()
    assert json.loads(line)["message"] == "asked\nfor this"


def test_ids_of_callers_are_kept_where_they_are_harmless() -> None:
    assert new_request_id("abc-1.2:3_4") == "abc-1.2:3_4"
    for bad in ("a b", "a\nb", "x" * 129, "", 'a"'):
        assert new_request_id(bad) != bad
    assert new_request_id() != new_request_id()


def test_no_such_level() -> None:
    with pytest.raises(UserError, match="log_level: found 'inform'; did you mean 'info'"):
        log_as_json("inform")
