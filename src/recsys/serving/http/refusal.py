"""Refusals of requests that were not read: whole answers, and the recognition of plain requests. Imports no torch."""

from __future__ import annotations

import re

from recsys.serving.http.admission import overloaded
from recsys.serving.http.codec import encode
from recsys.serving.http.messages import error_response
from recsys.serving.http.problems import Problem

# A refused connection is not read for a while, because refusals to clients that repeat at once would cost as much as
# answers: so long that there are at most so many refusals a second, within bounds in seconds.
REFUSALS_PER_SECOND, LEAST_PAUSE, MOST_PAUSE = 500, 0.05, 0.5
# A request that was sent during a longer pause is old: an answer would come late, and its client did not wait as told.
# It is refused, and if there is room, the next request of the connection is read at once.
FRESH_SECONDS = 0.01
_LENGTH = re.compile(
    rb"HTTP/1\.1\r\n(?:.*\r\n)?content-length:[ \t]*(\d{1,9})[ \t]*(?:\r\n|$)", re.IGNORECASE | re.DOTALL
)
_UNUSUAL = re.compile(rb"\r\n(?:connection|transfer-encoding|expect|upgrade)[ \t]*:", re.IGNORECASE)
# Requests whose end is known from their first bytes, and the longest of them that is awaited unread.
_METHOD = re.compile(rb"[A-Z]+(?: |$)")
_ANY_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*(?:\r\n|$)", re.IGNORECASE)
_UNKNOWN_END = re.compile(rb"\r\n(?:transfer-encoding|expect|upgrade)[ \t]*:", re.IGNORECASE)
PLAIN_BYTES = 1 << 16


def pause_of(num_paused: int) -> float:
    """Return the seconds in which a refused connection is not read, if so many are not read already."""
    return min(MOST_PAUSE, max(LEAST_PAUSE, num_paused / REFUSALS_PER_SECOND))


def path_of_post(data: bytes, max_head: int) -> str | None:
    """Return the path if `data` is one whole plain POST, and None for anything that must be parsed."""
    if not data.startswith(b"POST "):
        return None
    head, _, body = data.partition(b"\r\n\r\n")
    length = _LENGTH.search(head)
    if length is None or int(length[1]) != len(body) or _UNUSUAL.search(head) or len(head) > max_head:
        return None
    return data[5 : data.find(b" ", 5)].partition(b"?")[0].decode("latin-1")


def missing_bytes(data: bytes, max_head: int) -> int | None:
    """Return how many bytes a request lacks at least: 0 if it is whole, None if it must be parsed to know."""
    head, blank, body = data.partition(b"\r\n\r\n")
    if not blank:
        return 1 if _METHOD.match(data) and b"\n\n" not in data and len(data) <= max_head else None
    if _UNKNOWN_END.search(head):
        return None
    length = _ANY_LENGTH.search(head)
    missing = max(0, int(length[1]) - len(body)) if length is not None else 0
    return missing if len(data) + missing <= PLAIN_BYTES else None


def raw_answer(problem: Problem, status_line: bytes, *headers: bytes) -> bytes:
    """Return an answer with its status line and headers."""
    body = encode(error_response(problem))
    lines = [status_line, b"content-type: application/json", b"content-length: %d" % len(body), *headers]
    return b"HTTP/1.1 " + b"\r\n".join([*lines, b"", body])


OVERLOADED_ANSWER = raw_answer(overloaded(), b"503 Service Unavailable", b"retry-after: 1")
