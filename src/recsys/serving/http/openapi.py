"""The OpenAPI document, made from the route table. Imports no torch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from recsys.serving.http.endpoint import JSON, Endpoint
from recsys.serving.http.messages import ErrorResponse

Schema = dict[str, Any]
_REFERENCE = "#/components/schemas/{name}"
_MEANINGS = {
    400: "The request is invalid; `field` names the invalid field",
    401: "The token is missing or wrong",
    403: "This server has no admin token and refuses all admin calls",
    404: "The store does not contain the release",
    409: "The host does not hold the version; `serving` and `loaded` list what it holds",
    413: "The request exceeds a limit of this server",
    415: "The content type is not application/json",
    500: "Internal error; the server's log has the traceback under the request id",
    503: "No host that could answer is available; the request can be repeated",
}


def openapi(endpoints: Sequence[Endpoint]) -> Schema:
    """Return the document of a server with these endpoints."""
    types = list(dict.fromkeys([kind for one in endpoints for kind in _types(one)] + [ErrorResponse]))
    schemas, components = msgspec.json.schema_components(types, schema_hook=_schema, ref_template=_REFERENCE)
    schema_of = dict(zip(types, schemas, strict=True))
    for component in components.values():
        component["description"] = inspect.cleandoc(component["description"])
    paths: dict[str, Any] = {}
    for one in endpoints:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, schema_of)
    token = {"type": "http", "scheme": "bearer", "description": "admin_token= of the server"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "recsys", "version": "1", "description": "Retrieval from paired, versioned releases."},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"token": token}},
    }


def _types(endpoint: Endpoint) -> list[Any]:
    """Return the types of the document: bodies and JSON responses."""
    body = [endpoint.request] if endpoint.method == "POST" and endpoint.request is not None else []
    return [*body, endpoint.response] if endpoint.media_type == JSON else body


def _schema(kind: type) -> Schema:
    """Return the schema of a type that msgspec does not support; annotations add the shape."""
    if kind is np.ndarray:
        return {}
    raise NotImplementedError(f"{kind.__name__} is not part of a message")


def _operation(endpoint: Endpoint, schema_of: Mapping[Any, Schema]) -> Schema:
    media = endpoint.media_type.partition(";")[0]
    content = schema_of[endpoint.response] if media == JSON else {"type": "string"}
    responses: Schema = {"200": {"description": "The answer", "content": {media: {"schema": content}}}}
    for status in sorted({*endpoint.errors, 500}):
        error = {"content": {JSON: {"schema": schema_of[ErrorResponse]}}}
        responses[str(status)] = {"description": _MEANINGS[status], **error}
    operation: Schema = {"summary": endpoint.summary, "operationId": _name(endpoint), "responses": responses}
    if endpoint.is_admin:
        operation["security"] = [{"token": []}]
    if endpoint.request is None:
        return operation
    if endpoint.method == "GET":
        return operation | {"parameters": _parameters(endpoint.request)}
    return operation | {"requestBody": {"required": True, "content": {JSON: {"schema": schema_of[endpoint.request]}}}}


def _parameters(query: type[msgspec.Struct]) -> list[Schema]:
    (reference,), components = msgspec.json.schema_components([query], ref_template="{name}")
    described = components[reference["$ref"]]
    required = described.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": _without_null(given)}
        for name, given in described["properties"].items()
    ]


def _without_null(schema: Schema) -> Schema:
    """Return the schema of a query parameter, which is left out instead of null."""
    options = [option for option in schema.get("anyOf", []) if option != {"type": "null"}]
    return options[0] if options else schema


def _name(endpoint: Endpoint) -> str:
    parts = [part for part in endpoint.path.replace("v1", "").split("/") if part]
    return "_".join([endpoint.method.lower(), *parts])
