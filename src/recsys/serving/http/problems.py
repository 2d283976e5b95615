"""What goes wrong with a request: an HTTP status, a code for programs, a message for people, the field it is about."""

from __future__ import annotations

import re
from collections.abc import Sequence

from recsys.core.errors import UserError

# `place.name: what was found and expected`, as the messages of UserError begin.
_FIELD = re.compile(r"([^\s:]+): ")
_OUTSIDE = {"users": "user", "interactions": "history"}


class Problem(UserError):  # noqa: N818 (the word of RFC 9457)
    """One request cannot be answered.

    Args:
        status: of HTTP.
        code: stable, for programs.
        message: what was found and what was expected.
        field: of the request, such as `history[3].item_id`; None where it is about no one field.
    """

    def __init__(self, status: int, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.field = status, code, message, field


class VersionNotHeld(Problem):
    """A search names a version that the host does not hold (409); what it does hold is part of the answer.

    Args:
        version: that was asked for.
        serving: version that the host serves; None before it serves any.
        loaded: versions that it would answer for.
    """

    def __init__(self, version: str, serving: str | None, loaded: Sequence[str]) -> None:
        held = ", ".join(loaded) or "none"
        super().__init__(409, "version_not_held", f"version: found {version}, held are {held}", "version")
        self.version, self.serving, self.loaded = version, serving, list(loaded)


def bad_request(message: str, field: str | None = None) -> Problem:
    """400: the request is not what it should be."""
    return Problem(400, "bad_request", message, field)


def too_large(message: str, field: str | None = None) -> Problem:
    """413: a limit of this server is exceeded."""
    return Problem(413, "too_large", message, field)


def unauthorized(message: str) -> Problem:
    """401: an admin call without the token."""
    return Problem(401, "unauthorized", message)


def forbidden(message: str) -> Problem:
    """403: this server takes no such call."""
    return Problem(403, "forbidden", message)


def not_found(message: str, field: str | None = None) -> Problem:
    """404: no such address, release or item."""
    return Problem(404, "not_found", message, field)


def unavailable(message: str) -> Problem:
    """503: nothing that could answer is up; the same request may be asked again."""
    return Problem(503, "unavailable", message)


def from_user_error(error: UserError) -> Problem:
    """The 400 of a message that begins with its field."""
    if isinstance(error, Problem):
        return error
    message = str(error)
    found = _FIELD.match(message)
    if found is None:
        return bad_request(message)
    head, dot, rest = found[1].partition(".")
    return bad_request(message, _OUTSIDE.get(head, head) + dot + rest)
