"""Models that turn texts into vectors: a local folder of sentence-transformers or transformers, or a package with one.

Nothing is downloaded. Shapes: R texts, W width.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_128_hexdigest

from recsys.core.errors import UserError
from recsys.core.io import atomic_file
from recsys.core.types import Float32Array
from recsys.data.sources.files import digest, fingerprint

# The encoder of text that needs no model: the hashed words, weighed by the item tower (`item_tower=content`).
TFIDF = "tfidf"


class TextEncoder:
    """A sentence-transformers model on the local disk.

    Attributes:
        digest: name of the model by the content of its files.
        cache: folder in which vectors are kept by the digests of model and text; None for none.

    Args:
        name: folder of the model, or package that holds one.

    Raises:
        UserError: If there is no such model, or sentence-transformers is not installed.
    """

    def __init__(self, name: str) -> None:
        self.name, self.folder = name, _folder(name)
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        self.digest = fingerprint([(str(path.relative_to(self.folder)), digest(str(path))) for path in files])
        self.cache: Path | None = None
        self._known: dict[str, Float32Array] | None = None

    @functools.cached_property
    def _model(self) -> Any:
        try:
            from sentence_transformers import SentenceTransformer  # noqa: PLC0415  (optional, and slow to import)
        except ImportError as error:
            raise UserError(f"encoder={self.name}: needs sentence-transformers: pip install 'recsys[text]'") from error
        try:
            return SentenceTransformer(str(self.folder), device="cpu", local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(f"encoder={self.name}: {self.folder} cannot be loaded ({error})") from error

    @property
    def width(self) -> int:
        """Width of the vectors, W."""
        return int(self.encode(["width"]).shape[1])

    def encode(self, texts: Sequence[str]) -> Float32Array:
        """Return the vectors [R, W] of texts. Only texts that the cache does not hold are computed."""
        if self._known is None:
            self._known = self._read()
        new = {key: text for text in texts if (key := xxh3_128_hexdigest(text.encode())) not in self._known}
        if new:
            found = np.asarray(self._model.encode(list(new.values()), show_progress_bar=False), np.float32)
            self._known |= dict(zip(new, found, strict=True))
            if self.cache is not None:
                folder = self.cache / self.digest
                folder.mkdir(parents=True, exist_ok=True)
                with atomic_file(folder / f"{fingerprint(new)}.npz") as aside, aside.open("wb") as file:
                    np.savez(file, keys=np.array(list(new)), vectors=found)
        return np.stack([self._known[xxh3_128_hexdigest(text.encode())] for text in texts])

    def _read(self) -> dict[str, Float32Array]:
        known: dict[str, Float32Array] = {}
        for path in sorted((self.cache / self.digest).glob("*.npz")) if self.cache is not None else ():
            with np.load(path, allow_pickle=False) as part:
                known |= dict(zip(part["keys"].tolist(), part["vectors"], strict=True))
        return known


def open_text_encoder(name: str, expected_digest: str = "") -> TextEncoder:
    """Return an encoder, once in a process.

    Args:
        name: folder of the model, or package that holds one.
        expected_digest: digest of the model that made the vectors to compare with; empty for any.

    Raises:
        UserError: If there is no such model, or it is another one.
    """
    encoder = _open(name)
    if expected_digest not in ("", encoder.digest):
        raise UserError(
            f"encoder={name}: {encoder.folder} has changed since the data was prepared "
            f"(digest {encoder.digest}, expected {expected_digest})"
        )
    return encoder


@functools.cache
def _open(name: str) -> TextEncoder:
    return TextEncoder(name)


def _folder(name: str) -> Path:
    """Return the folder of a model: `name`, or the one inside the package `name`."""
    roots = [Path(name)]
    if not roots[0].is_dir():
        package = name.replace("-", "_")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        roots = [Path(place) for place in (spec.submodule_search_locations or ())] if spec is not None else []
    for root in roots:
        for file in ("modules.json", "config.json"):
            if found := sorted(root.rglob(file), key=lambda path: len(path.parts)):
                return found[0].parent
    raise UserError(
        f"encoder={name}: found no folder or installed package with a model (modules.json or config.json); "
        f"expected one, or {TFIDF}"
    )
