"""Rows of the route table: one row decodes requests, encodes responses and is the source of the OpenAPI document."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, get_type_hints

JSON = "application/json"
# Beginning of the addresses of admin calls.
ADMIN = "/v1/admin/"
# Statuses of every admin call.
ADMIN_ERRORS = (400, 401, 403, 409, 413, 415)

Handler = Callable[..., Awaitable[Any]]
H = TypeVar("H", bound=Handler)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One address of the API.

    The types of request and response are written once, in the annotations of the handler. They decode the request, and
    the OpenAPI document describes them. The first line of the handler's docstring is the summary in the document.

    Attributes:
        method: GET or POST. An address that answers GET also answers HEAD.
        path: exact path.
        handler: coroutine function with at most one argument: the query parameters of a GET, or the body of a POST.
        errors: HTTP statuses besides 405 and 500.
        is_admin: require the token of the server.
        is_private: the body is personal, so the audit line has only its size.
        writes: change something, so a request must be declared as JSON.
        media_type: media type of the response. A response that is not JSON is returned as bytes.
        stage: stage of a retrieval that encoding the response belongs to, in the metrics.
    """

    method: str
    path: str
    handler: Handler
    errors: tuple[int, ...] = ()
    is_admin: bool = False
    is_private: bool = False
    writes: bool = False
    media_type: str = JSON
    stage: str | None = None

    @property
    def summary(self) -> str:
        """Summary for the OpenAPI document."""
        return (inspect.getdoc(self.handler) or "").partition("\n")[0].rstrip(".")

    @cached_property
    def request(self) -> Any:
        """Type of the query parameters or of the body; None if the handler takes no argument."""
        types = [kind for name, kind in self._types.items() if name != "return"]
        if len(types) > 1:
            raise TypeError(f"{self.path}: found a handler of {len(types)} arguments, expected at most one")
        return types[0] if types else None

    @cached_property
    def response(self) -> Any:
        """Type of the response."""
        return self._types["return"]

    @cached_property
    def _types(self) -> dict[str, Any]:
        return get_type_hints(self.handler, include_extras=True)


def route(method: str, path: str, **row: Any) -> Callable[[H], H]:
    """Mark a method as the handler of an address; `row` are further fields of its `Endpoint`."""

    def mark(handler: H) -> H:
        handler.__dict__["route"] = {"method": method, "path": path, **row}
        return handler

    return mark


def admin(name: str, *errors: int, **row: Any) -> Callable[[H], H]:
    """Mark a method as the handler of `/v1/admin/NAME`, with statuses besides those of every admin call."""
    return route("POST", f"{ADMIN}{name}", errors=(*ADMIN_ERRORS, *errors), is_admin=True, writes=True, **row)


def endpoints_of(*objects: object) -> list[Endpoint]:
    """Return the rows of all marked methods of these objects."""
    return [
        Endpoint(handler=getattr(one, name), **member.route)
        for one in objects
        for name, member in vars(type(one)).items()
        if hasattr(member, "route")
    ]
