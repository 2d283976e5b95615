"""Types and ranges of the fields of a manifest. Imports no torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeGuard
from unicodedata import category

if TYPE_CHECKING:
    from recsys.release.manifest import Manifest, TensorSpec

# A search works for each embedding of a user.
MAX_EMBEDDINGS = 1024
MAX_TEXT = 4096
_TEXTS = ("version", "model", "created", "run", "pair", "similarity", "dataset_fingerprint")
_MAPPINGS = ("metrics", "index", "data", "corpus", "index_time", "refreshed", "files")


def check_fields(manifest: Manifest) -> None:
    """Refuse values of other types or ranges than the fields have.

    Raises:
        ValueError: If there is one.
    """
    for name in _MAPPINGS:
        _expect(isinstance(getattr(manifest, name), dict), name, getattr(manifest, name), "a mapping")
    for name in ("dim", "num_embeddings", "max_history"):
        _expect(_is_count(getattr(manifest, name), least=1), name, getattr(manifest, name), "a number of at least 1")
    for name, value in {"num_items": manifest.num_items, "num_trained": manifest.num_trained or 0}.items():
        _expect(_is_count(value), name, value, "a number of at least 0")
    for name, value in manifest.data.items():
        _expect(_is_count(value, least=-(2**48)), f"data.{name}", value, "seconds")
    most = f"at most {MAX_EMBEDDINGS}"
    _expect(manifest.num_embeddings <= MAX_EMBEDDINGS, "num_embeddings", manifest.num_embeddings, most)
    for name, value in {name: getattr(manifest, name) for name in _TEXTS}.items():
        _expect(_is_text(value), name, value, "a text")
    _expect(manifest.git_commit is None or _is_text(manifest.git_commit), "git_commit", manifest.git_commit, "a text")
    _expect(manifest.similarity in ("cosine", "dot"), "similarity", manifest.similarity, "cosine or dot")
    for name, entry in manifest.files.items():
        _expect(_is_text(name) and bool(name), "files", name, "the name of a file")
        _expect(_is_count(entry.bytes), f"files.{name}.bytes", entry.bytes, "a number of at least 0")
        _expect(_is_text(entry.sha256), f"files.{name}.sha256", entry.sha256, "a text")
    for spec in (*manifest.inputs, manifest.output):
        _check_spec(spec)
    _check_numbers(manifest)


def _check_spec(spec: TensorSpec) -> None:
    _expect(_is_text(spec.name) and _is_text(spec.type), "inputs", spec, "names and types")
    sizes = all(_is_text(size) or _is_count(size, least=1) for size in spec.shape)
    _expect(sizes, f"inputs.{spec.name}", spec.shape, "sizes and names")


def _check_numbers(manifest: Manifest) -> None:
    for name, value in manifest.metrics.items():
        _expect(_is_number(value), f"metrics.{name}", value, "a number")
    for name, value in manifest.index_time.items():
        _expect(_is_finite(value), f"index_time.{name}", value, "a finite number")
    factors = {"temperature": manifest.temperature}
    factors |= {f"temperatures.{number}": value for number, value in enumerate(manifest.temperatures)}
    for name, value in factors.items():
        _expect(_is_finite(value) and value > 0, name, value, "a number above 0")
    for number, bias in enumerate(manifest.new_item_biases):
        _expect(bias is None or _is_finite(bias), f"new_item_biases.{number}", bias, "a finite number or null")
    if manifest.corpus:
        for name in ("num_items", "of"):
            _expect(_is_count(manifest.corpus.get(name)), f"corpus.{name}", manifest.corpus.get(name), "a number")
        test = manifest.corpus.get("test", {})
        _expect(isinstance(test, dict) and isinstance(test.get("chosen", {}), dict), "corpus.test", test, "metrics")
    if manifest.refreshed:
        known = manifest.refreshed.get("known")
        named = isinstance(known, dict) and {"items", "users"} <= known.keys() and all(map(_is_count, known.values()))
        _expect(named, "refreshed.known", known, "numbers of items and users")


def _expect(condition: bool, name: str, found: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name}: found {found!r:.60}, expected {expected}")


def _is_text(value: object) -> TypeGuard[str]:
    """Return True for a text that can be a line of a message, a file name and part of JSON."""
    return isinstance(value, str) and len(value) <= MAX_TEXT and not any(category(c) in ("Cc", "Cs") for c in value)


def _is_count(value: object, *, least: int = 0) -> TypeGuard[int]:
    return type(value) is int and least <= value < 2**48


def _is_number(value: object) -> TypeGuard[float]:
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _is_finite(value: object) -> TypeGuard[float]:
    return _is_number(value) and math.isfinite(value)
