"""Vectors of texts and images that workers compute, each content once, with a cache that all of them reach.

A first function names each content by its digest. Rows then come to the second one in the order of digests, all rows of
one bucket (the first digits of a digest) to the same worker. So a worker reads and writes only its buckets of the
cache. Shapes: R rows, W width.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from recsys.core.errors import UserError
from recsys.core.schema import EncoderKind, Feature
from recsys.core.types import Float32Array
from recsys.data.content_cache import add_vectors, cached_vectors
from recsys.data.content_encoders import CACHE, BadImageError, content_digest, image_path, open_encoder
from recsys.data.sources.files import open_filesystem

# Digits of a digest that name its bucket: 256 buckets.
_DIGITS = 2
NAMED = pa.schema(
    {"row": pa.int64(), "content": pa.string(), "digest": pa.string(), "bucket": pa.string(), "problem": pa.string()}
)
# `place` is the address of an image that has the problem.
ENCODED = pa.schema({"row": pa.int64(), "vector": pa.binary(), "place": pa.string(), "problem": pa.string()})


@dataclass(frozen=True)
class WorkerContent:
    """Column of texts or paths of images, and its model.

    Attributes:
        encoder: folder of the model, or package that holds one, as workers open it.
        encoder_digest: digest of the model.
        kind: what the column holds.
        cache: folder or address of the vectors of this model; empty for none.
        folder: folder that the paths of images are relative to.
        root: working folder of the driver, to which its other paths are relative.
    """

    encoder: str
    encoder_digest: str
    kind: EncoderKind
    cache: str
    folder: str
    root: str

    @classmethod
    def of(cls, feature: Feature, *, folder: str, output: str | None) -> WorkerContent:
        """Return the column of a feature. Its cache lies in the output of the engine, or else where encoders keep it.

        Args:
            feature: feature with an encoder.
            folder: folder that the paths of images are relative to.
            output: folder or address that the workers reach; None for workers of this machine.
        """
        is_folder = Path(feature.encoder).is_dir()
        cache = open_encoder(feature.encoder, feature.encoder_digest).cache if output is None else f"{output}/{CACHE}"
        return cls(
            encoder=os.path.abspath(feature.encoder) if is_folder else feature.encoder,
            encoder_digest=feature.encoder_digest,
            kind=feature.encoder_kind,
            cache="" if cache is None else _absolute(f"{cache}/{feature.encoder_digest}", os.getcwd()),
            folder=folder,
            root=os.getcwd(),
        )

    def name(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield rows of `NAMED` for rows of numbers and contents, without those that hold nothing. Runs on a worker."""
        for batch in batches:
            rows = []
            for row, content in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                if content is None or not content.strip():
                    continue
                place = image_path(self.folder, content) if self.kind == "image" else content
                try:
                    digest, problem = content_digest(self.kind, self._here(place)), None
                except BadImageError as error:
                    digest, problem = "", f"{error.problem} on the worker {socket.gethostname()}"
                rows.append((row, place, digest, _bucket(digest), problem))
            yield pa.record_batch([*map(list, zip(*rows, strict=True))] if rows else [[]] * len(NAMED), schema=NAMED)

    def encode(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield rows of `ENCODED` for rows of `NAMED` in the order of digests, up to a problem. Runs on a worker."""
        cache = _Cache(self.cache)
        for batch in batches:
            rows, contents, digests, _, problems = (column.to_pylist() for column in batch.columns)
            if found := [at for at, problem in enumerate(problems) if problem is not None]:
                yield _problem(rows[found[0]], contents[found[0]], problems[found[0]])
                return
            known = cache.of(digests)
            new = {name: content for name, content in zip(digests, contents, strict=True) if name not in known}
            try:
                known |= self._computed(new)
            except BadImageError as error:
                places = {self._here(content): content for content in new.values()}
                yield _problem(rows[0], places[error.path], f"{error.problem} on the worker {socket.gethostname()}")
                return
            except UserError as error:
                worker = f"worker {socket.gethostname()}; each worker opens the model at this place"
                yield _problem(rows[0], None, f"{error} ({worker})")
                return
            cache.add({name: known[name] for name in new})
            vectors = [known[name].tobytes() for name in digests]
            nothing = [None] * len(rows)
            yield pa.record_batch([rows, vectors, nothing, nothing], schema=ENCODED)

    def _computed(self, new: Mapping[str, str]) -> dict[str, Float32Array]:
        if not new:
            return {}
        encoder = open_encoder(self.encoder, self.encoder_digest)
        return dict(zip(new, encoder.compute(self.kind, [*map(self._here, new.values())]), strict=True))

    def _here(self, content: str) -> str:
        return _absolute(content, self.root) if self.kind == "image" else content


class _Cache:
    """Vectors in a folder or at an address, of which those of the buckets at hand are in memory."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._buckets: dict[str, dict[str, Float32Array]] = {}

    @cached_property
    def _files(self) -> list[str]:
        if not self._address:
            return []
        filesystem, path = open_filesystem(self._address)
        filesystem.invalidate_cache()
        return [filesystem.unstrip_protocol(file) for file in sorted(filesystem.glob(f"{path}/*.npz"))]

    @cached_property
    def _others(self) -> dict[str, Float32Array]:
        """Vectors of files without a bucket, which a preparation by one process has written."""
        return cached_vectors(file for file in self._files if "-" not in file.rpartition("/")[2])

    def of(self, digests: Iterable[str]) -> dict[str, Float32Array]:
        """Return the known vectors of the buckets of contents."""
        wanted = {_bucket(digest) for digest in digests}
        self._buckets = {name: self._buckets.get(name) or self._bucket_of(name) for name in wanted}
        found = {name: vector for bucket in self._buckets.values() for name, vector in bucket.items()}
        return found | {name: self._others[name] for name in digests if name in self._others}

    def _bucket_of(self, name: str) -> dict[str, Float32Array]:
        return cached_vectors(file for file in self._files if file.rpartition("/")[2].startswith(f"{name}-"))

    def add(self, new: Mapping[str, Float32Array]) -> None:
        """Keep new vectors, a file for each bucket."""
        for bucket in {_bucket(name) for name in new}:
            inner = {name: vector for name, vector in new.items() if _bucket(name) == bucket}
            self._buckets[bucket] |= inner
            if self._address:
                add_vectors(self._address, inner, prefix=f"{bucket}-")


def to_rows(vectors: pa.Array, width: int) -> Float32Array:
    """Return the vectors float32 [R, width] of the column `vector`. A missing one is a row of nan."""
    rows = np.full((len(vectors), width), np.nan, np.float32)
    present = vectors.drop_null()
    rows[np.asarray(vectors.is_valid())] = np.frombuffer(b"".join(present.to_pylist()), np.float32).reshape(-1, width)
    return rows


def _problem(row: int, place: str | None, problem: str) -> pa.RecordBatch:
    return pa.record_batch([[row], [None], [place], [problem]], schema=ENCODED)


def _bucket(digest: str) -> str:
    return digest.removeprefix("image ")[:_DIGITS]


def _absolute(path: str, root: str) -> str:
    return path if "://" in path else os.path.normpath(f"{root}/{path}" if not path.startswith("/") else path)
