"""A vector database fails as a host only if it does not answer at all."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from recsys.index.vector_database import DatabaseError
from recsys.serving.gateway.database_host import DatabaseHost
from recsys.serving.gateway.remote_host import HostFailed
from recsys.serving.http.messages import ModelVersions
from recsys.serving.http.problems import ServerFault


@pytest.mark.parametrize(("is_down", "expected"), [(False, ServerFault), (True, HostFailed)])
def test_a_search_that_is_refused_alone_does_not_fail_the_host(is_down: bool, expected: type[Exception]) -> None:
    async def search(_: Any) -> Any:
        raise ServerFault("no such expression")

    async def version() -> Any:
        return {"m": ModelVersions("v", ["v"])}

    def versions() -> list[str]:
        if is_down:
            raise DatabaseError("does not answer")
        return ["v"]

    local: Any = SimpleNamespace(name="db", search=search, version=version)
    host = DatabaseHost(local, SimpleNamespace(versions=versions))  # type: ignore[arg-type]  # what it calls
    with pytest.raises(expected) as caught:
        asyncio.run(host.search(None))  # type: ignore[arg-type]  # not read
    assert type(caught.value) is expected
