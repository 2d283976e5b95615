"""The OpenAPI document and the handlers agree, because both come from one route table."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import numpy as np
import pytest
from asking import call, living, queries_of, settings, store_users
from jsonschema import Draft202012Validator
from publishing import Published
from running import running

from recsys.serving.http.app import App
from recsys.serving.http.endpoint import JSON, Endpoint
from recsys.serving.http.openapi import openapi

CONFIG = Path(__file__).parent / "schemathesis.toml"
GATEWAY = {"role": "gateway", "release": None, "hosts": ["http://127.0.0.1:9"], "page": True}
ROLES: dict[str, dict[str, Any]] = {"all": {}, "host": {"role": "host"}, "gateway": GATEWAY}


@pytest.fixture(scope="module", params=ROLES)
def served(request: pytest.FixtureRequest, published: Published, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The route table of a role, and the document that its server answers with."""

    async def use(app: App) -> tuple[Any, ...]:
        return app.endpoints, (await call(app, "GET", "/schema")).body

    place = tmp_path_factory.mktemp("schema") / "events.sqlite"
    return living(settings(published, place, **ROLES[request.param]), use)


def schema_of(kind: Any, document: dict[str, Any]) -> Any:
    """Schema of a type; its components must be those of the document."""
    (schema,), components = msgspec.json.schema_components(
        [kind], ref_template="#/components/schemas/{name}", schema_hook=lambda _: {}
    )
    for name, component in components.items():
        described = document["components"]["schemas"][name]
        assert {**component, "description": None} == {**described, "description": None}
    return schema


def test_the_document_has_every_route_and_no_other(served: Any) -> None:
    endpoints, document = served
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(one.method, one.path) for one in endpoints}
    assert len(described) == len(endpoints)


def test_each_handler_takes_and_returns_what_the_document_says(served: Any) -> None:
    endpoints, document = served
    for one in endpoints:
        operation = document["paths"][one.path][one.method.lower()]
        hints = get_type_hints(one.handler, include_extras=True)
        response = hints.pop("return")
        assert len(inspect.signature(one.handler).parameters) == len(hints) <= 1
        content = operation["responses"]["200"]["content"]
        if one.media_type == JSON:
            assert content == {JSON: {"schema": schema_of(response, document)}}
        else:
            assert response is bytes
            assert list(content) == [one.media_type.partition(";")[0]]
        (request,) = hints.values() or (None,)
        if one.method == "POST":
            assert operation["requestBody"]["content"] == {JSON: {"schema": schema_of(request, document)}}
        elif request is not None:
            assert {parameter["name"] for parameter in operation["parameters"]} == {*request.__struct_fields__}
        errors = {int(status) for status in operation["responses"]} - {200}
        assert errors == {*one.errors, 500}


def test_a_change_of_a_handler_changes_the_document() -> None:
    async def before(request: list[int]) -> str:
        return str(request)

    async def after(request: list[str]) -> int:
        return len(request)

    one, other = (
        openapi([Endpoint(method="POST", path="/new", handler=handler)])["paths"]["/new"]["post"]
        for handler in (before, after)
    )
    assert one["requestBody"] != other["requestBody"]
    assert one["responses"]["200"] != other["responses"]["200"]


def test_messages_are_schemas_and_references_lead_somewhere(served: Any) -> None:
    _, document = served
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)

    def references(part: object) -> list[str]:
        if isinstance(part, dict):
            own = [part["$ref"]] if "$ref" in part else []
            return own + [found for value in part.values() for found in references(value)]
        return [found for value in part for found in references(value)] if isinstance(part, list) else []

    names = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert {*references(document)} <= names


def test_admin_calls_are_marked(served: Any) -> None:
    _, document = served
    marked = {path for path, methods in document["paths"].items() for one in methods.values() if "security" in one}
    assert marked == {path for path in document["paths"] if path.startswith("/v1/admin/")} != set()


def test_columns_of_a_release_are_described(served: Any) -> None:
    """Schemas that Python's types do not contain: events, histories and embeddings."""
    endpoints, document = served
    paths = document["paths"]
    if "/v1/search" in paths:
        schema = document["components"]["schemas"]["SearchRequest"]["properties"]["embeddings"]
        for shape, is_valid in (((2, 3), True), ((2, 3, 4), True), ((2,), False)):
            assert Draft202012Validator(schema).is_valid(np.zeros(shape).tolist()) == is_valid
    if "/v1/events" in paths:
        schema = paths["/v1/events"]["post"]["requestBody"]["content"][JSON]["schema"]
        event = {"user_id": 1, "item_id": "a", "action": "save", "labels": [1, 2]}
        for posted, is_valid in ((event, True), ([event], True), ({"user_id": 1}, False), ([[event]], False)):
            assert Draft202012Validator(schema).is_valid(posted) == is_valid
    assert endpoints


@pytest.mark.slow
def test_schemathesis_finds_nothing(published: Published, tmp_path: Path) -> None:
    """Valid and invalid requests of every address, with what `schemathesis.toml` says of them."""
    pytest.importorskip("schemathesis", reason="needs the extra `dev`: schemathesis")
    events = tmp_path / "events.sqlite"
    store_users(events, queries_of(published))
    # By version: what an alias names would come back after it was unloaded.
    with running(settings(published, events, release=published.versions[0])) as url:
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "--no-color", "run"]
        options = ["--phases", "coverage,fuzzing", "--max-examples", "25", "--seed", "1"]
        token = ["--header", "Authorization: Bearer secret-of-the-tests"]
        done = subprocess.run(
            [*command, f"{url}/schema", *options, *token],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            errors="replace",
        )
    assert done.returncode == 0, "\n".join(line[:400] for line in done.stdout.splitlines())
