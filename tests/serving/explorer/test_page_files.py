"""The page and its files: content types, security headers, revalidation, and when the page is served at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from asking import Answer, call, living, settings
from publishing import Published

from recsys.core.errors import UserError
from recsys.serving.explorer.page_files import PAGE
from recsys.serving.http.app import App

EXPLORER = ("/v1/items?q=i0", "/v1/users")


def get(published: Published, folder: Path, paths: Mapping[str, Mapping[str, str]], **changes: Any) -> list[Answer]:
    """Answers to GET of each path with these headers."""

    async def use(app: App) -> list[Answer]:
        return [await call(app, "GET", path, None, headers, as_json=False) for path, headers in paths.items()]

    answers: list[Answer] = living(settings(published, folder / "events.sqlite", **changes), use)
    return answers


def test_files_have_their_types_and_security_headers(published: Published, tmp_path: Path) -> None:
    paths = ["/", *(f"/page/{file.name}" for file in PAGE.iterdir() if file.is_file())]
    assert {"/page/page.js", "/page/page.css", "/page/icon.svg", "/page/index.html"} <= {*paths}
    types = {
        ".js": "text/javascript",
        ".css": "text/css",
        ".svg": "image/svg+xml",
        ".html": "text/html",
        "": "text/html",
    }
    for path, answer in zip(paths, get(published, tmp_path, dict.fromkeys(paths, {})), strict=True):
        assert answer.status == 200
        assert answer.headers[b"content-type"].decode().startswith(types.get(Path(path).suffix, "text/html"))
        assert answer.body == (PAGE / (path.removeprefix("/page/").strip("/") or "index.html")).read_text()
        assert b"default-src 'none'" in answer.headers[b"content-security-policy"]
        assert b"unsafe" not in answer.headers[b"content-security-policy"]
        assert answer.headers[b"x-content-type-options"] == b"nosniff"
        assert answer.headers[b"cache-control"] == b"no-cache"
        assert b"x-request-id" in answer.headers
        assert "innerHTML" not in answer.body


def test_a_file_that_the_browser_has_is_not_sent_again(published: Published, tmp_path: Path) -> None:
    (first,) = get(published, tmp_path, {"/": {}})
    etag = first.headers[b"etag"].decode()
    same, other = get(
        published, tmp_path, {"/": {"if-none-match": etag}, "/page/index.html": {"if-none-match": '"another"'}}
    )
    assert (same.status, same.body) == (304, "")
    assert b"default-src 'none'" in same.headers[b"content-security-policy"]
    assert other.status == 200


def test_nothing_but_the_files_of_the_page(published: Published, tmp_path: Path) -> None:
    paths = ["/page/", "/page", "/page/none.js", "/page/../page_files.py", "/page/../../settings.py", "/page/\0"]
    for answer in get(published, tmp_path, dict.fromkeys(paths, {})):
        assert answer.status == 404
        assert '"not_found"' in answer.body


@pytest.mark.parametrize("page", [True, None])
def test_a_process_that_does_everything_has_the_page(published: Published, tmp_path: Path, page: bool | None) -> None:
    for answer in get(published, tmp_path, dict.fromkeys(("/", *EXPLORER), {}), page=page):
        assert answer.status == 200


def test_without_the_page_nothing_lists_users(published: Published, tmp_path: Path) -> None:
    answers = get(published, tmp_path, dict.fromkeys(("/", "/page/page.js", *EXPLORER), {}), page=False)
    assert [answer.status for answer in answers] == [404] * 4
    (schema,) = get(published, tmp_path, {"/schema": {}}, page=False)
    assert "/v1/retrieve" in schema.body
    assert "/v1/users" not in schema.body


@pytest.mark.parametrize(("page", "status"), [(None, 404), (False, 404), (True, 200)])
def test_a_gateway_has_the_page_only_if_asked_for(
    published: Published, tmp_path: Path, page: bool | None, status: int
) -> None:
    changes = {"role": "gateway", "release": None, "hosts": ["http://127.0.0.1:9"], "page": page}
    answers = get(published, tmp_path, dict.fromkeys(("/", "/v1/users"), {}), **changes)
    assert [answer.status for answer in answers] == [status] * 2


def test_a_host_has_no_page(published: Published, tmp_path: Path) -> None:
    (answer,) = get(published, tmp_path, {"/": {}}, role="host")
    assert answer.status == 404
    with pytest.raises(UserError, match="page: found true, expected false or null"):
        settings(published, tmp_path / "events.sqlite", role="host", page=True)
