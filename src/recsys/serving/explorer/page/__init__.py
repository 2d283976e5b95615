"""The page at `/`: files that are served as they lie here. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import NamedTuple

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Own files alone, nothing inline; pictures of items come from where the data says.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' https: http:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class StaticFile(NamedTuple):
    """Content and headers of a file."""

    content: bytes
    headers: Mapping[str, str]


def static_files() -> dict[str, StaticFile]:
    """Path -> file: `/`, and `/page/NAME` for everything that the page loads."""
    found = {}
    for file in files(__name__).iterdir():
        suffix = "." + file.name.rpartition(".")[2]
        if suffix not in _TYPES:
            continue
        content = file.read_bytes()
        headers = {
            "content-type": _TYPES[suffix],
            "content-length": str(len(content)),
            # Asked for again each time, and answered with 304 while it is the same.
            "cache-control": "no-cache",
            "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
            "content-security-policy": _POLICY,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cross-origin-opener-policy": "same-origin",
        }
        found["/" if file.name == "index.html" else f"/page/{file.name}"] = StaticFile(content, headers)
    return found
