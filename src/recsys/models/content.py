"""Frozen vectors of items' content, which place an item that nobody has clicked yet.

Shapes: R items, F features of a row side by side, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
import xxhash
from scipy.sparse import csr_matrix, diags, hstack
from torch import Tensor, nn

from recsys.core.errors import UnsuitableDataError, UserError, nearest
from recsys.core.io import atomic_file
from recsys.core.schema import FIRST_CODE, Feature
from recsys.core.types import Float32Array
from recsys.data.batches.batch import FeatureTensor, FeatureTensors, RaggedTensor

# Rows whose vectors are computed at once.
_BLOCK = 65_536
# Further directions and the number of iterations that find the leading ones.
_OVERSAMPLING, _ITERATIONS = 32, 4
# Part of the names of cached results, for changes of the computation.
_FORMAT = 1


class ContentBuilder(Protocol):
    """A function that builds the content part of an item tower."""

    def __call__(self, features: Sequence[Feature], default_width: int) -> ContentVectors:
        """Return the module, of which all other arguments are set. `features` are those of items."""
        ...


class ContentVectors(nn.Module):
    """Unit vectors of the content of items: tf-idf with a truncated SVD, beside vectors from elsewhere.

    A column of text, of lists or of categories becomes a row of tf-idf weights (a count tf weighs 1 + log tf), a column
    of vectors stays what it is; each is scaled to unit length. Side by side, they are mapped to W dimensions by their
    first singular vectors, divided by the roots of the singular values, so that the few largest topics do not decide
    alone. Inner products are then similarities of content (latent semantic indexing, Deerwester et al. 1990).

    Nothing is learned from events, so nothing overfits to the items that have some. Weights and singular vectors are in
    checkpoints and releases, and embed items that come later.

    Args:
        features: features of items, in the order of the schema.
        default_width: width if none is set.
        width: width of the vectors, W; None for `default_width`.
        columns: names of the columns to read; None for all but numbers.

    Raises:
        UserError: If there is no such column, or none to read.
    """

    projection: Tensor
    idf: Tensor

    def __init__(
        self,
        features: Sequence[Feature],
        default_width: int,
        *,
        width: int | None = None,
        columns: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        width = default_width if width is None else width
        if width < 1:
            raise ValueError(f"width: found {width}, expected at least 1")
        usable = contents_of(features)
        for name in columns or ():
            if name not in (names := [feature.name for feature in usable]):
                raise UserError(f"item_tower.content.columns: items have no content '{name}'{nearest(name, names)}")
        self.features = [feature for feature in usable if columns is None or feature.name in columns]
        if not self.features:
            raise UnsuitableDataError(
                "item_tower.content: items have no text, lists, categories or vectors; declare a column, such as "
                "data.features.items.COLUMN.kind=text, or choose another item_tower"
            )
        self.width = width
        num_features = sum(feature.size for feature in self.features)
        self.register_buffer("idf", torch.ones(num_features))
        self.register_buffer("projection", torch.zeros(num_features, width))

    def fit(self, values: FeatureTensors, cache: Path | None = None) -> None:
        """Compute weights and singular vectors from all items, whether or not they have events.

        Args:
            values: features of the items by name.
            cache: folder in which both are kept, named by the digest of the features; None for none.
        """
        path = None if cache is None else cache / f"{self._digest(values)}.npz"
        if path is not None and path.exists():
            with np.load(path, allow_pickle=False) as known:
                self.idf.copy_(torch.from_numpy(known["idf"]))
                self.projection.copy_(torch.from_numpy(known["projection"]))
            return
        self._fit(values)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as aside, aside.open("wb") as file:
                np.savez(file, idf=self.idf.cpu().numpy(), projection=self.projection.cpu().numpy())

    def _digest(self, values: FeatureTensors) -> str:
        running = xxhash.xxh3_128(repr((_FORMAT, _OVERSAMPLING, _ITERATIONS, self.width)).encode())
        for feature in self.features:
            column = values[feature.name]
            parts = (column.values, column.offsets) if isinstance(column, RaggedTensor) else (column,)
            for part in parts:
                array = np.ascontiguousarray(part.cpu().numpy())
                running.update(f"{feature.kind} {feature.size} {array.dtype} {array.shape}".encode())
                running.update(array.tobytes())
        return running.hexdigest()

    def _fit(self, values: FeatureTensors) -> None:
        counts = [_counts(feature, values[feature.name]) for feature in self.features]
        idf = [_idf(part, feature) for part, feature in zip(counts, self.features, strict=True)]
        self.idf.copy_(torch.from_numpy(np.concatenate(idf)))
        rows = self._weigh(counts)
        rank = min(self.width, rows.shape[0], rows.shape[1] - 1)
        if rank < 1 or not rows.nnz:
            raise UserError("item_tower.content: found fewer than two items with content, expected more")
        extents, directions = _leading_directions(rows, rank)
        # A direction without extent is noise.
        kept = extents > 1e-3 * extents[0]
        scaled = directions[:, kept] / np.sqrt(extents[kept])
        # The sign of a singular vector is arbitrary.
        scaled *= np.sign(scaled[np.abs(scaled).argmax(0), np.arange(scaled.shape[1])])
        self.projection.zero_()
        self.projection[:, : scaled.shape[1]] = torch.from_numpy(scaled.astype(np.float32))

    def forward(self, values: FeatureTensors) -> Tensor:
        """Return the vectors [R, W] of R rows of features by name. A row without content is zero."""
        counts = [_counts(feature, values[feature.name]) for feature in self.features]
        rows, projection = self._weigh(counts), self.projection.cpu().numpy()
        vectors = np.empty((rows.shape[0], self.width), np.float32)
        for begin in range(0, len(vectors), _BLOCK):
            vectors[begin : begin + _BLOCK] = rows[begin : begin + _BLOCK] @ projection
        return F.normalize(torch.from_numpy(vectors), dim=1)

    def _weigh(self, counts: Sequence[csr_matrix]) -> csr_matrix:
        """Return the rows [R, F] of all columns side by side, each of unit length in each column."""
        ends = np.cumsum([part.shape[1] for part in counts])[:-1]
        parts = []
        for part, idf in zip(counts, np.split(self.idf.cpu().numpy(), ends), strict=True):
            weighted = part @ diags(idf)
            norms = np.sqrt(np.asarray(weighted.multiply(weighted).sum(1)).ravel())
            parts.append(diags(1.0 / np.maximum(norms, 1e-12)) @ weighted)
        return hstack(parts, format="csr", dtype=np.float32)


def contents_of(features: Sequence[Feature]) -> list[Feature]:
    """Return the features that are content: all but numbers."""
    return [feature for feature in features if feature.kind != "numeric"]


def _leading_directions(rows: csr_matrix, rank: int) -> tuple[Float32Array, Float32Array]:
    """Return the largest singular values [rank] of rows [R, F], descending, and their right vectors [F, rank].

    Subspace iteration from a random start (Halko et al. 2011, algorithm 4.4) takes a few products of matrices, where
    Lanczos takes `rank` products with one vector each.
    """
    is_wide = rows.shape[1] > rows.shape[0]
    matrix = rows.T.tocsr() if is_wide else rows
    width = min(rank + _OVERSAMPLING, matrix.shape[1])
    subspace = np.random.default_rng(0).standard_normal((matrix.shape[1], width), dtype=np.float32)
    for _ in range(_ITERATIONS):
        subspace = _orthonormal(_gram(matrix, subspace))
    # Rounding leaves the first basis a little oblique.
    subspace = _orthonormal(subspace)
    squares, turn = np.linalg.eigh((subspace.T @ _gram(matrix, subspace)).astype(np.float64))
    values = np.sqrt(np.maximum(squares[: -rank - 1 : -1], 0.0)).astype(np.float32)
    vectors = subspace @ turn[:, : -rank - 1 : -1].astype(np.float32)
    if is_wide:
        vectors = (matrix @ vectors) / np.maximum(values, 1e-12)
    return values, vectors


def _gram(rows: csr_matrix, vectors: Float32Array) -> Float32Array:
    """Return the product [F, K] of the Gram matrix of rows [R, F] with vectors [F, K]."""
    product = np.zeros_like(vectors)
    for begin in range(0, rows.shape[0], _BLOCK):
        block = rows[begin : begin + _BLOCK]
        product += block.T @ (block @ vectors)
    return product


def _orthonormal(vectors: Float32Array) -> Float32Array:
    """Return an orthonormal basis [F, K] of the columns of `vectors` [F, K], by products of matrices alone.

    Columns that depend on others become zero.
    """
    squares, turn = np.linalg.eigh((vectors.T @ vectors).astype(np.float64))
    kept = squares > 1e-7 * squares[-1]
    scaled = np.where(kept, turn / np.sqrt(np.where(kept, squares, 1.0)), 0.0)
    return vectors @ scaled.astype(np.float32)


def _counts(feature: Feature, values: FeatureTensor) -> csr_matrix:
    """Return the features of one column [R, size]: 1 + log of the number of times that a code occurs, or vectors."""
    if feature.kind == "vector":
        assert isinstance(values, Tensor)
        return csr_matrix(np.nan_to_num(values.numpy()))
    if isinstance(values, RaggedTensor):
        codes, offsets = values.values.numpy(), values.offsets.numpy()
    else:
        codes, offsets = values.numpy(), np.arange(len(values) + 1)
    ones = np.ones(len(codes), np.float32)
    # A copy, because summing works in place and the codes are those of the data set.
    counts = csr_matrix((ones, codes, offsets - offsets[0]), (len(offsets) - 1, feature.size), copy=True)
    counts.sum_duplicates()
    counts.data = 1.0 + np.log(counts.data)
    return counts


def _idf(counts: csr_matrix, feature: Feature) -> Float32Array:
    """Return the inverse document frequency of each code, 0 for missing, unknown and absent ones; 1 for vectors."""
    if feature.kind == "vector":
        return np.ones(feature.size, np.float32)
    documents = np.bincount(counts.indices, minlength=feature.size)
    idf = 1.0 + np.log((1.0 + counts.shape[0]) / (1.0 + documents))
    idf[documents == 0] = 0.0
    idf[:FIRST_CODE] = 0.0
    weights: Float32Array = idf.astype(np.float32)
    return weights
