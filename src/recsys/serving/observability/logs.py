"""Logs as JSON, one object a line, each with the id of the request that it is about. Imports no torch."""

from __future__ import annotations

import json
import logging
import re
import sys
import uuid
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

from recsys.core.errors import UserError, nearest

# Of the request that the current task or thread answers; None outside of requests.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

LEVELS = ("debug", "info", "warning", "error")
# What a caller may call its request: it goes into logs and back into a header as it is.
_GIVEN = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Attributes that every record has; what a caller adds by `extra=` is the rest.
_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


def new_request_id(given: str | None = None) -> str:
    """The id that the caller gave in `X-Request-Id`, if it is one of plain characters, else a fresh one."""
    return given if given is not None and _GIVEN.fullmatch(given) else uuid.uuid4().hex


class JSONFormatter(logging.Formatter):
    """Time (UTC), level, logger, message, request id, what `extra=` holds, and the traceback of an error."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (of_request := request_id.get()) is not None:
            line["request_id"] = of_request
        # What a record says of itself cannot hide the fields above.
        line |= {name: value for name, value in vars(record).items() if name not in _USUAL and name not in line}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_as_json(level: str = "info", stream: TextIO | None = None) -> None:
    """Send all logs of the process to `stream` (default: stderr) as JSON, from `level` on.

    Raises:
        UserError: no such level.
    """
    if level not in LEVELS:
        raise UserError(f"log_level: found '{level}'{nearest(level, LEVELS)}")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JSONFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The server's own loggers would print a second time, in another form.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
