"""An index on disk: `item_index.json` says what it is, `item_index.faiss` holds the structure, if there is one.

The JSON names a class of the fixed list in `recsys.index.loading`; nothing in the files can choose other code. The
digest is checked because faiss notices some truncated files but not all, and no changed bytes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.core.errors import UserError
from recsys.core.io import atomic_file, atomic_write
from recsys.index.engine import faiss

if TYPE_CHECKING:
    from recsys.index.ann_index import Index

FORMAT = 1
DESCRIPTION, STRUCTURE = "item_index.json", "item_index.faiss"


def save_index(index: Index, folder: Path, ann: Any) -> list[str]:
    """Write `index` and its faiss structure `ann` (None: none), each aside and then renamed; the names of the files."""
    files: dict[str, dict[str, Any]] = {}
    if ann is not None:
        with atomic_file(folder / STRUCTURE) as aside:
            faiss.write_index(ann, str(aside))
            files[STRUCTURE] = {"bytes": aside.stat().st_size, "sha256": _digest(aside)}
    content = {
        "format": FORMAT,
        "class": type(index).__name__,
        "parameters": index.parameters(),
        "num_items": index.num_items,
        "dim": index.dim,
        "effort": index.effort._asdict(),
        "files": files,
    }
    atomic_write(folder / DESCRIPTION, json.dumps(content, indent=2) + "\n")
    return [DESCRIPTION, *files]


def read_description(folder: Path) -> dict[str, Any]:
    """Content of `item_index.json`.

    Raises:
        UserError: it is missing, not JSON, or of another format.
    """
    path = folder / DESCRIPTION
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a description of an index ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path}: format {found}, expected {FORMAT}; build the index again")
    return content


def read_structure(folder: Path, expected: dict[str, Any], verify: bool) -> Any:
    """Memory-map `item_index.faiss`.

    Raises:
        UserError: it is missing, of another size or digest than `expected`, or faiss cannot read it.
    """
    path = folder / STRUCTURE
    if not path.is_file():
        raise UserError(f"{path}: missing; {folder / DESCRIPTION} expects it")
    if path.stat().st_size != expected["bytes"]:
        raise UserError(f"{path}: damaged, found {path.stat().st_size} bytes, expected {expected['bytes']}")
    if verify and _digest(path) != expected["sha256"]:
        raise UserError(f"{path}: damaged, its sha256 is not the one that {folder / DESCRIPTION} records")
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise UserError(f"{path}: faiss cannot read it ({str(error).splitlines()[0]})") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
