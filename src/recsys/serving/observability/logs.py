"""Logs as JSON, one object per line, each with the id of its request. Imports no torch."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

from recsys.core.errors import UserError, nearest

# Id of the request that the current task or thread answers; None outside of requests.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

LEVELS = ("debug", "info", "warning", "error")
# Request ids that a caller may choose, since they go into logs and into a header unchanged.
_PLAIN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Attributes of every record; the others were added with `extra=`.
_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


def new_request_id(header: str | None = None) -> str:
    """Return the id of the header `X-Request-Id` if it has plain characters only, else a new one."""
    return header if header is not None and _PLAIN_ID.fullmatch(header) else os.urandom(16).hex()


class JSONFormatter(logging.Formatter):
    """Formatter of JSON lines: time (UTC), level, logger, message, request id, fields of `extra=`, and traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (of_request := request_id.get()) is not None:
            line["request_id"] = of_request
        # Fields of `extra=` cannot replace the fields above.
        line |= {name: value for name, value in vars(record).items() if name not in _USUAL and name not in line}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_as_json(level: str = "info", stream: TextIO | None = None) -> None:
    """Write all logs of the process to `stream` (default: stderr) as JSON, from `level` on."""
    if level not in LEVELS:
        raise UserError(f"log_level: found '{level}'{nearest(level, LEVELS)}")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JSONFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Commands set a level of their own, which would outrank that of the root.
    logging.getLogger("recsys").setLevel(logging.NOTSET)
    # Who changed a server must be known at every level.
    logging.getLogger("recsys.audit").setLevel("INFO")
    # The handlers of uvicorn would write every line twice.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
