"""The page at `/docs`: every call of the OpenAPI document, with a form to send it. Imports no torch."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route


def docs_routes() -> list[BaseRoute]:
    """Return `/docs`. The browser runs only the script and style of the file, and calls only this server."""
    page = Path(__file__).with_name("docs.html").read_text()
    script, style = (_digest(page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"content-security-policy": policy, "x-content-type-options": "nosniff", "cache-control": "no-cache"}

    async def docs(request: Request) -> Response:  # noqa: ARG001
        return HTMLResponse(page, headers=headers)

    return [Route("/docs", docs)]


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
