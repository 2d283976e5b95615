"""Rows of the route table: one row decodes requests, encodes responses and is the source of the OpenAPI document."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_type_hints

JSON = "application/json"


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One address of the API.

    The types of request and response are written once, in the annotations of the handler. They decode the request, and
    the OpenAPI document describes them.

    Attributes:
        method: GET or POST. An address that answers GET also answers HEAD.
        path: exact path.
        handler: coroutine function with at most one argument: the query parameters of a GET, or the body of a POST.
        summary: description for the OpenAPI document, a few words.
        errors: HTTP statuses besides 405 and 500.
        is_admin: require the token of the server.
        media_type: media type of the response. A response that is not JSON is returned as bytes.
        timed: context in which the response is encoded; measures it.
    """

    method: str
    path: str
    handler: Callable[..., Awaitable[Any]]
    summary: str
    errors: tuple[int, ...] = ()
    is_admin: bool = False
    media_type: str = JSON
    timed: Callable[[], AbstractContextManager[object]] = nullcontext

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
