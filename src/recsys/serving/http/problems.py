"""Errors of the API: an HTTP status, a code for programs, a message for people, and the field of the request."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from recsys.core.errors import UserError

# Messages of UserError begin with `TABLE.NAME: `.
_FIELD = re.compile(r"([^\s:]+): ")
_FIELD_OF_TABLE = {"users": "user", "interactions": "history"}


class Problem(UserError):  # noqa: N818 (the word of RFC 9457)
    """Refusal of one request: HTTP status, code for programs, found and expected value, and path of the field."""

    def __init__(self, status: int, code: str, *, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.field = status, code, message, field


class VersionNotHeld(Problem):
    """Search for a version that the host does not hold (409); the answer lists the versions that it holds."""

    def __init__(self, version: str, *, serving: str | None, loaded: Sequence[str]) -> None:
        held = ", ".join(loaded) or "none"
        message = f"version: found {version}, held are {held}"
        super().__init__(409, "version_not_held", message=message, field="version")
        self.version, self.serving, self.loaded = version, serving, list(loaded)


class ServerFault(Problem):
    """Fault of a server and of no request (503): another server may answer the same request. Its log has the reason."""

    def __init__(self, message: str) -> None:
        super().__init__(503, "unavailable", message=message)


def _kind(status: int, code: str) -> Callable[..., Problem]:
    def problem(message: str, field: str | None = None) -> Problem:
        return Problem(status, code, message=message, field=field)

    return problem


bad_request = _kind(400, "bad_request")
# An admin call without the right token, and one to a server that takes none.
unauthorized, forbidden = _kind(401, "unauthorized"), _kind(403, "forbidden")
# There is no such address, release or item.
not_found = _kind(404, "not_found")
# The request exceeds a limit of this server.
too_large = _kind(413, "too_large")
# Nothing that could answer is available; the request can be repeated.
unavailable = _kind(503, "unavailable")


def from_user_error(error: UserError) -> Problem:
    """Return the 400 of an error whose message begins with the field."""
    if isinstance(error, Problem):
        return error
    message = str(error)
    found = _FIELD.match(message)
    if found is None:
        return bad_request(message)
    head, dot, rest = found[1].partition(".")
    return bad_request(message, _FIELD_OF_TABLE.get(head, head) + dot + rest)
