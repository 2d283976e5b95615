"""Saves an index of any class and opens it again.

`item_index.json` describes the index: its class, the arguments of the constructor, the search effort, and the size and
digest of each file that the index itself wrote (`item_index.*`, such as `item_index.faiss`).
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recsys.core.errors import UserError, nearest
from recsys.core.io import atomic_write
from recsys.core.strict_json import read_json
from recsys.core.trust import TRUST, is_trusted
from recsys.core.types import Float32Array
from recsys.index.ann_index import Effort, Index
from recsys.index.auto import Auto
from recsys.index.backends import HNSW, FaissFlat
from recsys.index.exact import Exact
from recsys.index.files import StoredFile
from recsys.index.inverted_file import IVFSQ8, IVFFlat, IVFPQFastScan
from recsys.index.vector_database import InDatabase

FORMAT = 1
# Largest effort of a stored index. faiss reserves memory for each of these candidates.
MAX_BREADTH, MAX_REFINE = 1 << 20, 1 << 10
DESCRIPTION = "item_index.json"
# A description names these classes without a module, and all others by their import path.
CLASSES: dict[str, Callable[..., Index]] = {
    "Exact": Exact,
    "FaissFlat": FaissFlat,
    "HNSW": HNSW,
    "IVFFlat": IVFFlat,
    "IVFSQ8": IVFSQ8,
    "IVFPQFastScan": IVFPQFastScan,
}
METHODS = ("build", "search", "save", "load", "parameters", "least_breadth")


def save_index(index: Index, folder: Path) -> list[str]:
    """Write an index that has been built, and its description, into an existing folder; return the names of the files.

    Of an `Auto` the chosen index is saved, of an `InDatabase` the local one. The caller saves the embeddings.

    Raises:
        UserError: If `load_index` could not open the result: the class cannot be imported by its name, a constructor
            argument does not fit into JSON, or a file is not called `item_index.*`.
    """
    beside: list[str] = []
    if isinstance(index, InDatabase):
        beside, index = index.describe(folder), index.local
    if isinstance(index, Auto):
        index = index.chosen
    name, path = _class_name(type(index)), folder / DESCRIPTION
    if "." in type(index).__qualname__ or backend_class(name, path) is not type(index):
        raise UserError(f"index: class {name} cannot be imported by this name; define it at the top level of a module")
    names = index.save(folder)
    for file in names:
        if not file.startswith("item_index.") or file == DESCRIPTION:
            raise UserError(f"index: {name}.save wrote '{file}', expected names that begin with 'item_index.'")
    content = {
        "format": FORMAT,
        "class": name,
        "parameters": index.parameters(),
        "num_items": index.num_items,
        "dim": index.dim,
        "effort": index.effort._asdict(),
        "files": {file: StoredFile.describe(folder / file)._asdict() for file in names},
    }
    try:
        text = json.dumps(content, indent=2)
    except TypeError as error:
        raise UserError(f"index: {name}.parameters() does not fit into JSON ({error})") from error
    atomic_write(path, text + "\n")
    return [DESCRIPTION, *names, *beside]


def load_index(folder: Path, embeddings: Float32Array, *, verify: bool = True) -> Index:
    """Open the index that `save_index` wrote, with the embeddings [N, D] that it was built from, best memory-mapped.

    A caller that has just verified the release need not compare digests, which reads all files again.

    Raises:
        UserError: If a file is missing or damaged, the class cannot be used (see `backend_class`), or the embeddings
            do not belong to this index.
    """
    path = folder / DESCRIPTION
    content = _read_description(path)
    name = content.get("class")
    make = backend_class(name, path)
    try:
        index = make(**content["parameters"])
        shape = (int(content["num_items"]), int(content["dim"]))
        effort = Effort(**{key: int(value) for key, value in content["effort"].items()})
        files = {
            str(file): StoredFile(int(entry["bytes"]), str(entry["sha256"])) for file, entry in content["files"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged description of a {name} index ({error})") from error
    bounds = (("breadth", 0, MAX_BREADTH), ("refine", 1, MAX_REFINE), ("k", 1, MAX_BREADTH))
    for key, least, most in bounds:
        if not least <= (found := getattr(effort, key)) <= most:
            raise UserError(f"{path}: effort.{key}: found {found}, expected {least} to {most}")
    if embeddings.shape != shape or embeddings.dtype != "float32":
        found = f"{embeddings.dtype} {list(embeddings.shape)}"
        raise UserError(f"{path}: the item embeddings are {found}, but the index holds float32 {list(shape)}")
    for file, stored in files.items():
        if Path(file).name != file:
            raise UserError(f"{path}: damaged, found a file '{file}' outside its folder")
        stored.check(folder / file, digest=verify)
    index.load(folder, embeddings, names=tuple(files))
    index.effort = effort
    return index


def backend_class(name: object, path: Path) -> Callable[..., Index]:
    """Return the class that a description names.

    This function alone decides which code a stored index may run. Classes of this package are always accepted. A class
    of another package is accepted if it has the methods of `recsys.index.Index` and its module is imported already, or
    its package is trusted (`recsys.core.trust`). Without that rule, a stranger's
    release could import any installed module.

    Raises:
        UserError: If the name is unknown, its package is not trusted or not installed, or the class does not implement
            the protocol.
    """
    if isinstance(name, str) and name in CLASSES:
        return CLASSES[name]
    if not isinstance(name, str) or "." not in name:
        raise UserError(f"{path}: unknown class {name!r} of index{nearest(str(name), CLASSES)}")
    module, _, attribute = name.rpartition(".")
    package = module.partition(".")[0]
    if module not in sys.modules and not is_trusted(module):
        raise UserError(
            f"{path}: the index is a {name}, which would run code of '{package}'; "
            f"if you trust that package, type 'trust=[{package}]' or set the environment variable {TRUST}={package}"
        )
    try:
        kind = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path}: the index is a {name}, but package '{error.name}' is not installed; "
            "expected it to be importable wherever this index is opened"
        ) from error
    except ImportError as error:
        raise UserError(f"{path}: the index is a {name}, but '{module}' cannot be imported ({error})") from error
    if not isinstance(kind, type):
        raise UserError(f"{path}: unknown class '{name}' of index; '{module}' has no such class")
    if lacking := [method for method in METHODS if not callable(getattr(kind, method, None))]:
        raise UserError(f"{path}: class {name} does not implement recsys.index.Index; it lacks {', '.join(lacking)}")
    return kind


def _class_name(kind: type) -> str:
    if kind in CLASSES.values():
        return kind.__name__
    return f"{kind.__module__}.{kind.__qualname__}"


def _read_description(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path}: format {found}, expected {FORMAT}; build the index again")
    return content
