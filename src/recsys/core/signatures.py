"""Arguments of the class or function that a `_target_` names, read from its source: nothing is imported.

Configurations are checked before torch is loaded, and an import of Lightning alone takes seconds.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from recsys.core.errors import nearest

# Annotation -> kinds of values of a configuration that suit it.
_KINDS = {
    "int": {"integer"},
    "float": {"integer", "number"},
    "bool": {"true or false"},
    "str": {"string"},
    "None": {"null"},
    **dict.fromkeys(("list", "tuple", "Sequence", "List", "Tuple"), {"list"}),
    **dict.fromkeys(("dict", "Mapping", "Dict"), {"mapping"}),
}


@dataclass(frozen=True)
class Signature:
    """Arguments that a class or function takes.

    Attributes:
        kinds: argument -> kinds of values that suit it; None if its annotation says nothing that is understood.
        takes_any: whether it also takes arguments of any other name (`**kwargs`).
    """

    kinds: dict[str, frozenset[str] | None]
    takes_any: bool = False


class TargetNotFoundError(Exception):
    """The path of a class does not lead to one."""


@functools.cache
def signature_of(target: str) -> Signature:
    """Return the arguments of a class or function.

    Args:
        target: dotted path, such as `lightning.Trainer`.

    Raises:
        TargetNotFoundError: If there is no such class or function.
    """
    parts = target.split(".")
    found = _read(parts)
    if found is not None:
        return found
    spec, rest = _module(parts)
    if spec is None and parts[0] not in sys.modules:
        raise TargetNotFoundError(f"no module named '{parts[0]}'")
    names = _names(spec) if spec is not None and rest else None
    if spec is not None and names is not None and rest[0] not in names:
        raise TargetNotFoundError(f"{spec.name} has no '{rest[0]}'{nearest(rest[0], names)}")
    return _imported(target)


def _read(parts: Sequence[str], depth: int = 0) -> Signature | None:
    """Return the signature as the source has it; None if the source does not show it."""
    spec, rest = _module(parts)
    if spec is None or not rest or depth > 20 or not str(spec.origin).endswith(".py"):
        return None
    tree = _tree(str(spec.origin))
    definition = tree and _definition(tree.body, rest[0])
    if isinstance(definition, ast.ImportFrom):
        name = next(alias.name for alias in definition.names if rest[0] in (alias.asname, alias.name))
        return _read([*_imported_from(spec, definition), name, *rest[1:]], depth + 1)
    if tree and definition is None:
        stars = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"]
        found = (_read([*_imported_from(spec, star), *rest], depth + 1) for star in stars)
        return next((signature for signature in found if signature is not None), None)
    if isinstance(definition, ast.FunctionDef) and len(rest) == 1:
        return _signature(definition.args)
    if not isinstance(definition, ast.ClassDef):
        return None
    if len(rest) == 1:
        return _of_class(definition, spec.name, depth)
    method = _definition(definition.body, rest[1])
    is_bound = isinstance(method, ast.FunctionDef) and "classmethod" in map(_name, method.decorator_list)
    return _signature(method.args, skip=1) if is_bound and len(rest) == 2 else None  # type: ignore[union-attr]


def _imported_from(spec: ModuleSpec, node: ast.ImportFrom) -> list[str]:
    package = spec.name.split(".") if spec.submodule_search_locations else spec.name.split(".")[:-1]
    base = package[: len(package) - node.level + 1] if node.level else []
    return [*base, *filter(None, (node.module or "").split("."))]


def _module(parts: Sequence[str]) -> tuple[ModuleSpec | None, Sequence[str]]:
    """Return the longest part of a path that is a module, and the rest of the path."""
    try:
        found = importlib.util.find_spec(parts[0]) if parts[0] else None
    except ValueError:
        # A module without a file.
        return None, parts
    for number, part in enumerate(parts[1:], 1):
        if found is None or found.submodule_search_locations is None:
            return found, parts[number:]
        inner = PathFinder.find_spec(f"{found.name}.{part}", found.submodule_search_locations)
        if inner is None:
            return found, parts[number:]
        found = inner
    return found, []


@functools.cache
def _tree(file: str) -> ast.Module | None:
    try:
        return ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None


def _names(spec: ModuleSpec) -> set[str] | None:
    """Return the names that a module defines; None if its source does not show all of them."""
    tree = _tree(str(spec.origin)) if str(spec.origin).endswith(".py") else None
    if tree is None:
        return None
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        elif not isinstance(node, ast.Expr):
            return None
    return None if names & {"*", "__getattr__"} else names


def _definition(body: Sequence[ast.stmt], name: str) -> ast.stmt | None:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and any(name == (alias.asname or alias.name) for alias in node.names):
            return node
    return None


def _of_class(node: ast.ClassDef, module: str, depth: int) -> Signature | None:
    own = _definition(node.body, "__init__")
    if isinstance(own, ast.FunctionDef):
        return _signature(own.args, skip=1)
    if _definition(node.body, "__new__") or node.keywords:
        return None
    kinds: dict[str, frozenset[str] | None] = {}
    for base in node.bases:
        if _name(base).rpartition(".")[2] in ("Protocol", "Generic", "ABC", "object"):
            continue
        inherited = _read([*module.split("."), *_name(base).split(".")], depth + 1)
        if inherited is None or inherited.takes_any:
            return inherited
        kinds |= inherited.kinds
    if "dataclass" in map(_name, node.decorator_list):
        for part in node.body:
            if not isinstance(part, ast.AnnAssign) or not isinstance(part.target, ast.Name):
                continue
            if _name(part.annotation).rpartition(".")[2] != "ClassVar":
                kinds[part.target.id] = _kinds(part.annotation)
    return Signature(kinds)


def _signature(arguments: ast.arguments, skip: int = 0) -> Signature:
    named = [*arguments.posonlyargs, *arguments.args][skip:] + arguments.kwonlyargs
    kinds = {argument.arg: _kinds(argument.annotation) for argument in named}
    return Signature(kinds, takes_any=arguments.kwarg is not None)


def _kinds(annotation: ast.expr | None) -> frozenset[str] | None:
    """Return the kinds of values that suit an annotation; None if any may."""
    if isinstance(annotation, ast.Constant):
        if isinstance(annotation.value, str):
            return _kinds_of_text(annotation.value)
        return frozenset({"null"}) if annotation.value is None else None
    if isinstance(annotation, ast.BinOp):
        return _united([annotation.left, annotation.right])
    if isinstance(annotation, ast.Subscript):
        name, inner = _name(annotation.value).rpartition(".")[2], annotation.slice
        if name == "Optional":
            return _united([inner, ast.Constant(None)])
        if name == "Union":
            return _united(inner.elts if isinstance(inner, ast.Tuple) else [inner])
        annotation = annotation.value
    kinds = _KINDS.get(_name(annotation).rpartition(".")[2])
    return None if kinds is None else frozenset(kinds)


def _united(annotations: Sequence[ast.expr]) -> frozenset[str] | None:
    united: frozenset[str] = frozenset()
    for annotation in annotations:
        kinds = _kinds(annotation)
        if kinds is None:
            return None
        united |= kinds
    return united


def _kinds_of_text(text: str) -> frozenset[str] | None:
    try:
        return _kinds(ast.parse(text, mode="eval").body)
    except SyntaxError:
        return None


def _name(node: ast.expr | None) -> str:
    if isinstance(node, ast.Call):
        return _name(node.func)
    if isinstance(node, ast.Subscript):
        return _name(node.value)
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _imported(target: str) -> Signature:
    try:
        parameters = inspect.signature(pkgutil.resolve_name(target)).parameters.values()
    except (ImportError, AttributeError) as error:
        raise TargetNotFoundError(str(error)) from error
    except (ValueError, TypeError):
        # A class of C or one without a signature.
        return Signature({}, takes_any=True)
    named: dict[str, frozenset[str] | None] = {
        p.name: _kinds_of(p.annotation) for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    return Signature(named, takes_any=any(p.kind is p.VAR_KEYWORD for p in parameters))


def _kinds_of(annotation: Any) -> frozenset[str] | None:
    if annotation is inspect.Parameter.empty:
        return None
    return _kinds_of_text(annotation if isinstance(annotation, str) else inspect.formatannotation(annotation))
