"""Models that turn texts or images into vectors: a local folder of sentence-transformers or transformers, or a package.

Nothing is downloaded. Shapes: R texts or images, W width.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_128_hexdigest

from recsys.core.errors import UserError
from recsys.core.schema import EncoderKind
from recsys.core.types import Float32Array
from recsys.data.content_cache import add_vectors, cached_vectors
from recsys.data.sources.files import digest, fingerprint, open_file

# The encoder of text that needs no model: the hashed words, weighed by the item tower (`item_tower=content`).
TFIDF = "tfidf"
# Folder of vectors below `data.cache`.
CACHE = "content"
# Texts or images that are computed at once.
_BLOCK = 1024


class ContentEncoder:
    """A sentence-transformers model on the local disk.

    Attributes:
        digest: name of the model by the content of its files.
        cache: folder in which vectors are kept by the digests of model and content; None for none.

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

    def width(self, kind: EncoderKind) -> int:
        """Return the width of the vectors of a kind of content, W."""
        content: Any = "width"
        if kind == "image":
            from PIL import Image  # noqa: PLC0415  (optional, and slow to import)

            content = Image.new("RGB", (32, 32))
        return int(self._compute([content]).shape[1])

    def texts(self, texts: Sequence[str]) -> Float32Array:
        """Return the vectors [R, W] of texts. Only texts that the cache does not hold are computed."""
        return self._vectors("text", texts)

    def images(self, paths: Sequence[str]) -> Float32Array:
        """Return the vectors [R, W] of image files, of which those with new content are computed.

        Raises:
            BadImageError: If a file is missing or no image.
        """
        return self._vectors("image", paths)

    def compute(self, kind: EncoderKind, sources: Sequence[str]) -> Float32Array:
        """Return the vectors [R, W] of at least one text or image file, without the cache.

        Raises:
            UserError: If a file is no image, or the model gives no vectors.
        """
        read: Callable[[str], Any] = _read_image if kind == "image" else str
        blocks = (sources[begin : begin + _BLOCK] for begin in range(0, len(sources), _BLOCK))
        return np.concatenate([self._compute([read(source) for source in block]) for block in blocks])

    def _vectors(self, kind: EncoderKind, sources: Sequence[str]) -> Float32Array:
        keys = [content_digest(kind, source) for source in sources]
        if self._known is None:
            self._known = self._read()
        new = {key: source for key, source in zip(keys, sources, strict=True) if key not in self._known}
        if new:
            found = dict(zip(new, self.compute(kind, [*new.values()]), strict=True))
            self._known |= found
            if self.cache is not None:
                add_vectors(str(self.cache / self.digest), found)
        return np.stack([self._known[key] for key in keys])

    def _compute(self, contents: list[Any]) -> Float32Array:
        try:
            found = np.asarray(self._model.encode(contents, show_progress_bar=False), np.float32)
        except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
            what = "texts" if isinstance(contents[0], str) else "images"
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"encoder={self.name}: {self.folder} gives no vectors of {what} ({reason:.300})") from error
        if found.ndim != 2 or not np.isfinite(found).all():
            raise UserError(f"encoder={self.name}: {self.folder} gives no finite vectors, found {list(found.shape)}")
        return found

    def _read(self) -> dict[str, Float32Array]:
        return cached_vectors(map(str, sorted((self.cache / self.digest).glob("*.npz"))) if self.cache else ())


def image_path(folder: str, path: str) -> str:
    """Return the address of an image: a path of a column, relative to the folder of its table unless it is absolute."""
    return path if "://" in path or path.startswith("/") or not folder else f"{folder}/{path}"


class BadImageError(UserError):
    """A file that is missing or no image.

    Attributes:
        path: address of the file.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path, self.problem = path, problem


def content_digest(kind: EncoderKind, source: str) -> str:
    """Return the name by which the cache keeps a text or an image file.

    Raises:
        BadImageError: If a file of an image cannot be read.
    """
    return xxh3_128_hexdigest(source.encode()) if kind == "text" else f"image {_digest(source)}"


def _digest(path: str) -> str:
    try:
        with open_file(path) as file:
            return xxh3_128_hexdigest(file.read())
    except (OSError, ValueError) as error:
        raise BadImageError(path, "missing" if isinstance(error, FileNotFoundError) else str(error)) from error


def _read_image(path: str) -> Any:
    from PIL import Image, ImageOps  # noqa: PLC0415  (optional, and slow to import)

    try:
        with open_file(path) as file:
            return ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadImageError(path, f"no image that can be read ({error})") from error


def open_encoder(name: str, expected_digest: str = "") -> ContentEncoder:
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
def _open(name: str) -> ContentEncoder:
    return ContentEncoder(name)


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
