"""The OpenAPI document, made from the messages that the server reads and writes. Imports no torch."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np

from recsys.serving.explorer import messages as cards
from recsys.serving.http import messages as m

# (method, path); what GET gives, HEAD gives without a body.
Address = tuple[str, str]
Schema = dict[str, Any]

_WRONG, _DOWN = 400, 503
_ID: Schema = {"anyOf": [{"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, {"type": "string"}]}
_PLAIN: Schema = {"type": ["number", "string", "boolean", "null"]}
_SECONDS: Schema = {
    "description": "UTC seconds, or a date or time as ISO 8601",
    "type": ["number", "string", "null"],
}
_NUMBERS: Schema = {"type": "array", "items": {"type": "number"}}
# What messages leave open, because its names are those of a release's columns.
_HISTORY_EVENT: Schema = {
    "type": "object",
    "description": "An item, perhaps a time, and values of the release's event and request features by name.",
    "properties": {"item_id": _ID, "timestamp": _SECONDS},
    "required": ["item_id"],
}
_EVENT: Schema = {
    "type": "object",
    "description": "Who, which item, perhaps when (else now), and values of the release's features of events by name.",
    "properties": {"user_id": _ID, "item_id": _ID, "timestamp": _SECONDS},
    "required": ["user_id", "item_id"],
    "additionalProperties": {"anyOf": [_PLAIN, {"type": "array", "items": _PLAIN}]},
}


class Operation(NamedTuple):
    """What one address takes and gives.

    Attributes:
        summary: in a few words.
        answer: type of the message, or a media type.
        errors: statuses, besides 405 and 500.
        body: type of the message.
        query: type of the parameters.
        is_admin: whether it needs the token.
    """

    summary: str
    answer: Any
    errors: tuple[int, ...] = ()
    body: Any = None
    query: type[msgspec.Struct] | None = None
    is_admin: bool = False


_RETRIEVE, _ANSWERS = m.RetrieveRequest, m.RetrieveResponse
_ADMIN = (_WRONG, 401, 403, 409, 413)
_LOOKING = (_WRONG, 409, _DOWN)
OPERATIONS: Mapping[Address, Operation] = {
    ("POST", "/v1/retrieve"): Operation(
        "Ranked items for a user, or for each of several",
        _ANSWERS | list[_ANSWERS],  # type: ignore[valid-type]
        (_WRONG, 409, 413, _DOWN),
        _RETRIEVE | list[_RETRIEVE],  # type: ignore[valid-type]
    ),
    ("POST", "/v1/events"): Operation(
        "Store an event, or several; durable when acknowledged, and used by the next retrieve",
        m.EventsResponse,
        (_WRONG, 413, _DOWN),
        "events",
    ),
    ("GET", "/v1/hosts"): Operation("Host -> model -> versions; null for a host that does not answer", m.Hosts),
    ("GET", "/v1/version"): Operation("Model -> versions of this host", m.Versions),
    ("POST", "/v1/search"): Operation(
        "Items nearest to user embeddings, from one version of the index and no other",
        m.SearchResponse,
        (_WRONG, 409, 413, _DOWN),
        m.SearchRequest,
    ),
    ("POST", "/v1/admin/load"): Operation("Load a version or alias", m.Versions, _ADMIN, m.VersionRequest, None, True),
    ("POST", "/v1/admin/serve"): Operation("Serve a loaded version", m.Versions, _ADMIN, m.VersionRequest, None, True),
    ("POST", "/v1/admin/unload"): Operation("Let a version go", m.Versions, _ADMIN, m.VersionRequest, None, True),
    ("POST", "/v1/admin/tower"): Operation(
        "Load the user tower of a version", m.GatewayState, (*_ADMIN, 404, _DOWN), m.VersionRequest, None, True
    ),
    ("POST", "/v1/admin/canary"): Operation(
        "Give a version to a share of the users", m.GatewayState, (*_ADMIN, 404, _DOWN), m.CanaryRequest, None, True
    ),
    ("POST", "/v1/admin/items"): Operation(
        "Add items to the index of one version; durable when acknowledged, and in the next answer",
        m.ChangesResponse,
        _ADMIN,
        m.ItemsRequest,
        None,
        True,
    ),
    ("POST", "/v1/admin/takedown"): Operation(
        "Never show these items again, in any version; durable when acknowledged",
        m.ChangesResponse,
        _ADMIN,
        m.TakedownRequest,
        None,
        True,
    ),
    ("GET", "/v1/items"): Operation(
        "Items by the beginning of an id, or words of a title", cards.ItemsResponse, _LOOKING, query=cards.ItemsQuery
    ),
    ("POST", "/v1/items/find"): Operation(
        "The items that names mean: ids or titles, as people paste them",
        cards.FindResponse,
        (*_LOOKING, 413),
        cards.FindRequest,
    ),
    ("POST", "/v1/explain"): Operation(
        "Recommended items, with the items of the history that are nearest to each",
        cards.ExplainResponse,
        (*_LOOKING, 413),
        cards.ExplainRequest,
    ),
    ("GET", "/v1/users"): Operation(
        "Users with stored events, by the beginning of an id",
        cards.UsersResponse,
        (_WRONG, _DOWN),
        query=cards.UsersQuery,
    ),
    ("GET", "/healthz"): Operation("Is the process up?", m.Status),
    ("GET", "/readyz"): Operation("Would it answer?", m.Status, (_DOWN,)),
    ("GET", "/metrics"): Operation("Measurements, for Prometheus", "text/plain"),
    ("GET", "/schema"): Operation("This document", dict[str, Any]),
    ("GET", "/"): Operation("The page", "text/html"),
}


def openapi(addresses: Collection[Address]) -> Schema:
    """The document of a server that answers these addresses.

    Raises:
        KeyError: one that `OPERATIONS` does not describe; files of the page need no description.
    """
    served = [address for address in OPERATIONS if address in addresses]
    missing = [address for address in addresses if address not in OPERATIONS and not address[1].startswith("/page/")]
    if missing:
        raise KeyError(f"{missing} are served, and not described in OPERATIONS")
    kinds = [kind for a in served for kind in _types(OPERATIONS[a])]
    schemas, components = msgspec.json.schema_components(
        [*kinds, m.ErrorResponse], schema_hook=_array, ref_template="#/components/schemas/{name}"
    )
    of_type = dict(zip([*map(repr, kinds), "error"], schemas, strict=True))
    _complete(components)
    paths: dict[str, dict[str, Any]] = {}
    for method, path in served:
        described = _described((method, path), OPERATIONS[method, path], of_type)
        paths.setdefault(path, {})[method.lower()] = described
    security = {"token": {"type": "http", "scheme": "bearer", "description": "admin_token= of the server"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "recsys", "version": "1", "description": "Retrieval from paired, versioned releases."},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": security},
    }


def _types(operation: Operation) -> list[Any]:
    return [kind for kind in (operation.answer, operation.body) if kind is not None and not isinstance(kind, str)]


def _array(kind: type) -> Schema:
    if kind is np.ndarray:
        return dict(_NUMBERS)
    raise NotImplementedError(f"{kind.__name__} is not part of a message")


def _complete(components: dict[str, Any]) -> None:
    """Say what types of Python cannot."""
    for component in components.values():
        component["description"] = inspect.cleandoc(component["description"])
    matrix = {"type": "array", "items": _NUMBERS}
    if "ItemsRequest" in components:
        components["ItemsRequest"]["properties"]["embeddings"] = matrix
    if "SearchRequest" in components:
        several = {"type": "array", "items": matrix}
        components["SearchRequest"]["properties"]["embeddings"] = {"anyOf": [matrix, several]}
    if "RetrieveRequest" in components:
        history = {"type": "array", "items": {"$ref": "#/components/schemas/HistoryEvent"}}
        components["RetrieveRequest"]["properties"]["history"] = {"anyOf": [history, {"type": "null"}], "default": None}
        components["HistoryEvent"] = _HISTORY_EVENT
    components["Event"] = _EVENT


def _described(address: Address, operation: Operation, of_type: Mapping[str, Schema]) -> Schema:
    method, path = address
    described: Schema = {"summary": operation.summary, "operationId": _name(method, path), "responses": {}}
    if operation.is_admin:
        described["security"] = [{"token": []}]
    if isinstance(operation.body, str):
        event = {"$ref": "#/components/schemas/Event"}
        body: Schema | None = {"anyOf": [event, {"type": "array", "items": event}]}
    else:
        body = None if operation.body is None else of_type[repr(operation.body)]
    if body is not None:
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    if operation.query is not None:
        described["parameters"] = _parameters(operation.query)
    is_text = isinstance(operation.answer, str)
    answer = {"type": "string"} if is_text else of_type[repr(operation.answer)]
    media = operation.answer if is_text else "application/json"
    responses = described["responses"]
    responses["200"] = {"description": "The answer", "content": {media: {"schema": answer}}}
    for status in sorted({*operation.errors, 500}):
        responses[str(status)] = {
            "description": _MEANINGS[status],
            "content": {"application/json": {"schema": of_type["error"]}},
        }
    return described


_MEANINGS = {
    400: "The request is not what it should be; `field` says where",
    401: "The token is missing, or another one",
    403: "This server has no token, so it takes no such call",
    404: "The store has no such release",
    409: "The version is not held; `serving` and `loaded` say which are",
    413: "A limit of this server is exceeded",
    500: "A mistake of the server; its log has it under the request's id",
    503: "Nothing that could answer is up; ask again",
}


def _parameters(query: type[msgspec.Struct]) -> list[Schema]:
    (schema,), components = msgspec.json.schema_components([query], ref_template="{name}")
    described = components[schema["$ref"]]
    required = described.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": _of_text(given)}
        for name, given in described["properties"].items()
    ]


def _of_text(schema: Schema) -> Schema:
    """A parameter is left out where a message would say null."""
    options = [option for option in schema.get("anyOf", []) if option != {"type": "null"}]
    return options[0] if options else schema


def _name(method: str, path: str) -> str:
    parts = [part for part in path.replace("v1", "").split("/") if part] or ["page"]
    return "_".join([method.lower(), *parts])
