"""The OpenAPI document says what the server does: no more, no less."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from asking import call, living, queries_of, settings, store_users
from jsonschema import Draft202012Validator
from publishing import Published
from running import running

from recsys.serving.http.app import App
from recsys.serving.http.openapi import OPERATIONS, openapi

CONFIG = Path(__file__).parent / "schemathesis.toml"


def test_every_address_of_a_server_is_described(published: Published, tmp_path: Path) -> None:
    async def use(app: App) -> None:
        answer = await call(app, "GET", "/schema")
        described = {(method.upper(), path) for path, methods in answer.body["paths"].items() for method in methods}
        served = {(method, path) for path, methods in app.routes.items() for method in methods}
        assert described == {address for address in served if not address[1].startswith("/page/")}

    living(settings(published, tmp_path / "events.sqlite"), use)


def test_an_address_without_a_description_is_a_mistake() -> None:
    with pytest.raises(KeyError, match="/v1/new"):
        openapi([("GET", "/v1/new")])


def test_messages_are_schemas_and_references_lead_somewhere() -> None:
    document = openapi(list(OPERATIONS))
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)

    def references(part: object) -> list[str]:
        if isinstance(part, dict):
            own = [part["$ref"]] if "$ref" in part else []
            return own + [found for value in part.values() for found in references(value)]
        return [found for value in part for found in references(value)] if isinstance(part, list) else []

    names = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) <= names


def test_admin_calls_are_marked() -> None:
    paths = openapi(list(OPERATIONS))["paths"]
    marked = {path for path, methods in paths.items() for one in methods.values() if "security" in one}
    assert marked == {path for path in paths if path.startswith("/v1/admin/")}


@pytest.mark.slow
def test_schemathesis_finds_nothing(published: Published, tmp_path: Path) -> None:
    """Valid and invalid requests of every address, with what `schemathesis.toml` says of them."""
    pytest.importorskip("schemathesis", reason="needs the extra `dev`: schemathesis")
    events = tmp_path / "events.sqlite"
    store_users(events, queries_of(published))
    # By version: what an alias names would come back after it was unloaded.
    with running(settings(published, events, release=published.versions[0])) as url:
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "--no-color", "run"]
        options = ["--phases", "coverage,fuzzing", "--max-examples", "40", "--seed", "1"]
        token = ["--header", "Authorization: Bearer secret"]
        done = subprocess.run(
            [*command, f"{url}/schema", *options, *token],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            errors="replace",
        )
    assert done.returncode == 0, "\n".join(line[:400] for line in done.stdout.splitlines())
