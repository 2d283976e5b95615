"""Inverted file indexes: items in lists, of which a search reads a few. Built on faiss."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.index.allowed import AllowedRows
from recsys.index.ann_index import Index
from recsys.index.approximate import FaissIndex, check_at_least
from recsys.index.files import STRUCTURE
from recsys.index.lists import InvertedLists
from recsys.index.topk import Rows

log = logging.getLogger(__name__)

# Points per cluster for k-means. More points take longer and hardly improve the lists.
TRAIN_POINTS = 64
# The 16 centroids of a 4-bit code need several points each, and tiny corpora are faster to search in full.
MIN_PQ_ITEMS = 1024


class IVFFlat(FaissIndex):
    """Items in lists around k-means centroids. A search reads the lists whose centroids score best.

    Lists are built by Euclidean distance and probed by inner product. The mean of a list then predicts the inner
    products of its items, and long vectors do not draw all items into few lists.

    Args:
        num_lists: number of lists; None for a power of two near 2 sqrt(N).
        seed: seed of the clustering.
    """

    structure = "IndexIVFFlat"
    # Cost of an item in a list, relative to one inner product of an exact search among the allowed items.
    _cost_per_item = 1.0

    def __init__(self, num_lists: int | None = None, seed: int = 0) -> None:
        super().__init__()
        check_at_least("num_lists", num_lists, least=1)
        self.num_lists = num_lists
        self.seed = seed
        self._earlier: Index | None = None

    def follow(self, earlier: Index | None) -> None:
        """Let `build` take the centroids and codes of an earlier index of about the same embeddings.

        Clustering takes most of the time of a build. Nothing is taken from an index of another class, other arguments,
        another dimension, or another number of lists than the embeddings need.
        """
        self._earlier = earlier

    def load(self, folder: Path, embeddings: Float32Array, *, names: Sequence[str]) -> None:
        """Keep the embeddings, memory-map the structure, and refuse lists that do not hold each item once."""
        super().load(folder, embeddings, names=names)
        found = np.zeros(self.num_items if self._ann is not None else 0, bool)
        total = 0
        for number in range(self.max_breadth):
            ids = self._ids(number)
            if len(ids) and not (ids.min() >= 0 and ids.max() < self.num_items):
                raise UserError(f"{folder / STRUCTURE}: list {number} holds an item outside 0 to {self.num_items - 1}")
            found[ids] = True
            total += len(ids)
        if not found.all() or total != len(found):
            raise UserError(f"{folder / STRUCTURE}: its lists hold {total} items, expected each of {len(found)} once")

    def _ids(self, number: int) -> Rows:
        size = self._ann.invlists.list_size(number)
        if not size:
            return np.zeros(0, np.int64)
        ids: Rows = faiss.rev_swig_ptr(self._ann.invlists.get_ids(number), size)
        return ids

    @property
    def max_breadth(self) -> int:
        """Number of lists."""
        return 0 if self._ann is None else int(self._ann.nlist)

    def least_breadth(self, k: int) -> int:
        """Return the number of lists that hold about 4 k items; with fewer, many queries would get too few results."""
        return min(math.ceil(4 * k * self.max_breadth / self.num_items), self.max_breadth)

    def _make(self, embeddings: Float32Array) -> Any:
        # An earlier build may have left its lists here.
        self.__dict__.pop("_lists", None)
        num_items, dim = embeddings.shape
        quantizer = faiss.IndexFlatL2(dim)
        num_lists = self._choose_num_lists(num_items)
        index = self._empty_structure(quantizer, num_lists)
        earlier = self._earlier
        if isinstance(earlier, IVFFlat) and self._can_follow(earlier, dim, num_lists=num_lists):
            quantizer.add(earlier._centroids())
            self._copy_codes(earlier._ann, index)
            index.is_trained = True
        else:
            self._train(index, embeddings)
        return self._fill(index, quantizer, embeddings)

    def _fill(self, index: Any, quantizer: Any, embeddings: Float32Array) -> Any:
        """Add the items to a trained structure, and let searches compare centroids by inner product."""
        index.add(embeddings)
        probe = faiss.IndexFlatIP(quantizer.d)
        probe.add(quantizer.reconstruct_n(0, index.nlist))
        probe.this.disown()
        index.quantizer, index.own_fields = probe, True
        return index

    def part(self, embeddings: Float32Array, *, number: int, count: int) -> IVFFlat:
        """Return an index of the rows with row % count == number, in the same lists; `embeddings` are theirs."""
        part = type(self)(**self.parameters())
        centroids = faiss.IndexFlatIP(self.dim)
        centroids.add(self._centroids())
        structure = self._empty_structure(centroids, self.max_breadth)
        centroids.this.disown()
        structure.own_fields = structure.is_trained = True
        self._copy_codes(self._ann, structure)
        # 1: subset by the remainder of the ids.
        self._ann.copy_subset_to(structure, 1, count, number)
        part._embeddings, part._ann, part.effort = embeddings, structure, self.effort
        for place in range(part.max_breadth):
            ids = part._ids(place)
            ids //= count
        return part

    def _train(self, index: Any, embeddings: Float32Array) -> None:
        index.cp.seed = self.seed
        index.cp.spherical = False
        index.cp.niter = 10
        index.cp.max_points_per_centroid = TRAIN_POINTS
        index.cp.min_points_per_centroid = 1
        num_points = TRAIN_POINTS * index.nlist
        if len(embeddings) > num_points:
            rows = np.random.default_rng(self.seed).choice(len(embeddings), num_points, replace=False)
            embeddings = embeddings[np.sort(rows)]
        index.train(embeddings)

    def _can_follow(self, earlier: IVFFlat, dim: int, *, num_lists: int) -> bool:
        same = type(earlier) is type(self) and earlier.parameters() == self.parameters()
        return same and (earlier.max_breadth, earlier.dim) == (num_lists, dim)

    def _copy_codes(self, earlier: Any, index: Any) -> None:
        """Copy what training has learned beside the centroids from one faiss structure to another."""

    def _centroids(self) -> Float32Array:
        centroids: Float32Array = faiss.downcast_index(self._ann.quantizer).reconstruct_n(0, self.max_breadth)
        return centroids

    def _empty_structure(self, quantizer: Any, num_lists: int) -> Any:
        return faiss.IndexIVFFlat(quantizer, quantizer.d, num_lists, faiss.METRIC_INNER_PRODUCT)

    def _choose_num_lists(self, num_items: int) -> int:
        if self.num_lists is None:
            return min(num_items, 1 << round(float(np.log2(2 * num_items**0.5))))
        if self.num_lists > num_items:
            log.warning("index: num_lists=%d, but there are only %d items; one list each", self.num_lists, num_items)
        return min(self.num_lists, num_items)

    def _search_parameters(self, breadth: int, selector: Any) -> Any:
        return faiss.SearchParametersIVF(nprobe=breadth, sel=selector)

    def _breadths(self, queries: Float32Array, wanted: int, *, allowed: AllowedRows) -> Rows:
        # The ratio of the predicted lists to those that a usual search reads is squared, because the model expects too
        # much of distant lists if the items near a query do not pass the filter (without it, recall was .85).
        needed = self._lists.needed(queries, allowed, wanted=wanted)
        breadths = np.ceil(needed * (needed / self.effort.breadth).clip(1)).clip(max=self.max_breadth)
        widened: Rows = breadths.astype(np.int64)
        return widened

    @cached_property
    def _lists(self) -> InvertedLists:
        num_lists = self.max_breadth
        list_of_row: npt.NDArray[np.int32] = np.empty(self.num_items, np.int32)
        for number in range(num_lists):
            list_of_row[self._ids(number)] = number
        return InvertedLists(self._centroids(), list_of_row, embeddings=self._embeddings)

    def _cost(self, breadth: int) -> float:
        return self.max_breadth + self._cost_per_item * self.num_items * breadth / self.max_breadth


class IVFSQ8(IVFFlat):
    """`IVFFlat` with 8 bits a dimension, a quarter of the memory traffic. Candidates are scored again exactly."""

    structure = "IndexIVFScalarQuantizer"
    refine_factors: tuple[int, ...] = (1, 2)

    def _empty_structure(self, quantizer: Any, num_lists: int) -> Any:
        kind = faiss.ScalarQuantizer.QT_8bit
        return faiss.IndexIVFScalarQuantizer(quantizer, quantizer.d, num_lists, kind, faiss.METRIC_INNER_PRODUCT)

    def _copy_codes(self, earlier: Any, index: Any) -> None:
        faiss.copy_array_to_vector(faiss.vector_to_array(earlier.sq.trained), index.sq.trained)


class IVFPQFastScan(IVFFlat):
    """Lists of 4-bit product codes, compared in registers (André et al. 2015). Candidates are scored again exactly.

    With fewer than 1,024 items there is no structure, and searches are exact.

    Args:
        num_lists: number of lists; None for a power of two near 2 sqrt(N).
        num_codes: codes of an item, a divisor of the dimension; None for one code for each dimension.
        seed: seed of the clusterings.
    """

    structure = "IndexIVFPQFastScan"
    refine_factors: tuple[int, ...] = (1, 2, 4, 8, 16)
    _cost_per_item = 0.25

    def __init__(self, num_lists: int | None = None, num_codes: int | None = None, *, seed: int = 0) -> None:
        super().__init__(num_lists, seed)
        check_at_least("num_codes", num_codes, least=1)
        self.num_codes = num_codes

    def _needs_structure(self, num_items: int) -> bool:
        return num_items >= MIN_PQ_ITEMS

    def part(self, embeddings: Float32Array, *, number: int, count: int) -> IVFFlat:  # noqa: ARG002 (of IVFFlat)
        """Return an index of some rows, in the same lists; `embeddings` are theirs, and coded again."""
        part = type(self)(**self.parameters())
        part._embeddings, part.effort = embeddings, self.effort
        if self._ann is not None:
            centroids = faiss.IndexFlatL2(self.dim)
            centroids.add(self._centroids())
            structure = self._empty_structure(centroids, self.max_breadth)
            self._copy_codes(self._ann, structure)
            structure.is_trained = True
            part._ann = part._fill(structure, centroids, embeddings)
        return part

    def _make(self, embeddings: Float32Array) -> Any:
        if not self._needs_structure(len(embeddings)):
            log.warning("index: %d items are too few for product codes; searching exactly", len(embeddings))
            return None
        return super()._make(embeddings)

    def _empty_structure(self, quantizer: Any, num_lists: int) -> Any:
        num_codes = self._choose_num_codes(quantizer.d)
        index = faiss.IndexIVFPQFastScan(quantizer, quantizer.d, num_lists, num_codes, 4, faiss.METRIC_INNER_PRODUCT)
        # Codes of the residuals: recall of the codes alone is .93, instead of .88 without, on clustered items.
        index.by_residual = True
        index.pq.cp.seed = self.seed
        index.pq.cp.min_points_per_centroid = 1
        return index

    def _copy_codes(self, earlier: Any, index: Any) -> None:
        faiss.copy_array_to_vector(faiss.vector_to_array(earlier.pq.centroids), index.pq.centroids)

    def _choose_num_codes(self, dim: int) -> int:
        if self.num_codes is None:
            return dim
        fitting = max(codes for codes in range(1, min(self.num_codes, dim) + 1) if dim % codes == 0)
        if fitting != self.num_codes:
            log.warning("index: num_codes=%d does not divide dimension %d; using %d", self.num_codes, dim, fitting)
        return fitting
