"""Reading of JSON that somebody else wrote: of limited size, and without keys that stand twice. Imports no torch."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from recsys.core.errors import UserError
from recsys.core.io import open_plain

# A text of this size can become some hundred megabytes of small lists.
MAX_BYTES = 8 << 20


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, which must be a plain file; raise `UserError` if it cannot be read."""
    return parse_json(read_bounded(path), path)


def read_bounded(path: Path) -> bytes:
    """Return the bytes of a plain file, and no more than `parse_json` refuses."""
    try:
        with open_plain(path) as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def parse_json(content: bytes, place: object) -> Any:
    """Return the content of a JSON text; `place` is named in errors.

    Raises:
        UserError: If the text is too large or too deep, is not JSON, or an object has a key twice.
    """
    if len(content) > MAX_BYTES:
        raise UserError(f"{place}: found more than {MAX_BYTES} bytes, expected at most so many")
    try:
        return json.loads(content, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{place}: found no valid JSON ({reason:.200})") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"found the key {name!r:.60} twice")
    return found
