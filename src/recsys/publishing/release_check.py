"""Opens a release that was just written and compares its answers with exact search.

An index backend may come from an outside package. A release whose index cannot be opened again, or finds less than it
did when it was built, must not get an alias.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.data.dataset import Requests
from recsys.experiments.trained_run import TrainedRun
from recsys.index import IVFFlat, exact_search
from recsys.index.ann_index import Tunable
from recsys.publishing.release_writer import real_requests
from recsys.release.files import map_embeddings
from recsys.release.manifest import Manifest
from recsys.release.parts import count_of, part_of
from recsys.release.precision import decode
from recsys.release.runtime.item_search import ItemSearch
from recsys.release.runtime.retriever import Answer, Query, Retriever, seen_items
from recsys.release.runtime.shard import CorpusShard
from recsys.release.store import ReleaseStore
from recsys.release.verification import verify_release

log = logging.getLogger("recsys")

# Number of histories that are answered from end to end.
NUM_REQUESTS = 8
# Accepted loss of recall of the opened index against the recorded recall.
TOLERANCE = 0.005
_QUERIES_AT_A_TIME = 256


@dataclass(frozen=True)
class IndexQueries:
    """Queries that measure an index, with the exact answer.

    Attributes:
        embeddings: user embeddings float32 [Q, D].
        k: number of results of each search.
        thresholds: float32 [Q], inner product that the k best items of each query reach.
    """

    embeddings: Float32Array
    k: int
    thresholds: Float32Array

    @classmethod
    def of(cls, items: Float32Array, queries: Float32Array, *, k: int) -> IndexQueries:
        """Search the `items` [N, D] exactly."""
        queries = np.ascontiguousarray(queries)
        last = items[exact_search(items, queries, k=k)[1][:, -1]]
        # Sums of products in another order differ by rounding.
        rounding = 1e-6 * np.linalg.norm(queries, axis=1) * np.linalg.norm(last, axis=1)
        return cls(queries, k, np.einsum("qd,qd->q", queries, last) - rounding)


def check_release(
    run: TrainedRun, store: ReleaseStore, *, version: str, queries: IndexQueries, recall: float
) -> Retriever:
    """Open a published release with one thread, answer real requests and compare its index with exact search.

    Parts of the release are opened as their hosts open them.

    Args:
        run: run of the release, with the items of the release as its corpus.
        store: store of the release.
        version: version of the release.
        queries: queries on which the recall of the index was measured.
        recall: recorded recall of the index.

    Raises:
        UserError: If the release or a part cannot be opened or queried, or its index finds less than is recorded.
    """
    folder = store.root / version
    requests, k = _some_requests(run), queries.k
    with _opening(store, version, "it"):
        # This process has made it, so that it needs no signature. Timings on one thread do not depend on the machine.
        manifest = verify_release(folder)
        stored = map_embeddings(folder, manifest)
        retriever = Retriever(folder, manifest, threads=1)
        embeddings = decode(stored)
        found = index_recall(retriever.index, embeddings, queries)
        answers = retriever.retrieve(requests, k)
    if found < recall - TOLERANCE:
        problem = f"its index finds {found:.4f} of the exact top {k}, expected the recorded {recall:.4f}"
        raise _refusal(store, version, problem)
    items = {*retriever.items["item_id"].to_pylist()}
    for request, answer in zip(requests, answers, strict=True):
        _check_answer(store, request, answer, version=version, items=items, k=k)
    _check_parts(store, manifest, queries=queries, recall=recall)
    log.info("release %s opened: index recall@%d %.4f, %d requests answered", version, k, found, len(requests))
    return retriever


def _check_parts(store: ReleaseStore, manifest: Manifest, *, queries: IndexQueries, recall: float) -> None:
    """Open each part, whose files are verified, and compare an index that was built for it with exact search."""
    count, version = count_of(manifest), manifest.version
    for number in range(count):
        shard = CorpusShard(number, count)
        if (part := part_of(store.root / version, manifest, shard)) is None:
            continue
        with _opening(store, version, f"its part {shard}"):
            search = ItemSearch(*part)
            search.check()
            # Lists of a part are those of the whole, whose recall is known.
            if search.index.is_exact or isinstance(search.index, IVFFlat):
                continue
            # A merged answer of k items has about k / count of each part. Deeper results are found less often.
            k = min(-(-queries.k // count), len(search.items))
            own = IndexQueries.of(search.embeddings, queries.embeddings, k=k)
            found = index_recall(search.index, search.embeddings, own)
        if found < recall - TOLERANCE:
            problem = f"the index of its part {shard} finds {found:.4f} of the exact top {k} of the part"
            raise _refusal(store, version, f"{problem}, expected the recorded {recall:.4f} of the whole")


@contextlib.contextmanager
def _opening(store: ReleaseStore, version: str, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # The code of an outside backend can fail in any way.
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise _refusal(store, version, f"{what} cannot be opened and queried ({reason})") from error


def index_recall(index: Tunable, embeddings: Float32Array, queries: IndexQueries) -> float:
    """Return the share of the exact top k that an index finds.

    A result counts if the inner product of its embedding reaches that of the k-th exact result, so items of equal
    scores may stand for each other. The scores that the index returns are not used.

    Args:
        index: built or opened index.
        embeddings: float32 [N, D], rows as in the index.
        queries: queries and their exact answers.
    """
    hits = 0
    for begin in range(0, len(queries.embeddings), _QUERIES_AT_A_TIME):
        some = slice(begin, begin + _QUERIES_AT_A_TIME)
        _, rows = index.search(queries.embeddings[some], queries.k)
        scores = np.einsum("qd,qkd->qk", queries.embeddings[some], embeddings[np.maximum(rows, 0)])
        hits += int(((scores >= queries.thresholds[some, None]) & (rows >= 0)).sum())
    return hits / (len(queries.embeddings) * queries.k)


def _some_requests(run: TrainedRun) -> list[Query]:
    """Return histories of validation users as raw values, and an empty one."""
    requests = real_requests(run)
    chosen = np.unique(np.linspace(0, len(requests.user_idx) - 1, NUM_REQUESTS).astype(np.int64))
    dataset = run.dataset
    queries = [Query()]
    for user, end in zip(*Requests(requests.user_idx[chosen], requests.end[chosen]), strict=True):
        begin = max(int(dataset.offsets[user]), int(end) - run.builder.max_history)
        items = np.asarray(dataset.item_idx[begin:end])
        ids = dataset.item_ids.take(pa.array(items[items > 0] - 1)).to_pylist()
        queries.append(Query(history=[{"item_id": item} for item in ids]))
    return queries


def _check_answer(
    store: ReleaseStore, request: Query, answer: Answer, *, version: str, items: set[object], k: int
) -> None:
    """Refuse an answer with seen, repeated or missing items, or with scores that are not finite."""
    seen = {*seen_items(request)}
    expected = min(k, len(items - seen))
    distinct = {*answer.item_ids}
    if len(answer.item_ids) != expected or len(distinct) != expected or distinct & seen:
        problem = (
            f"to a history of {len(request.history)} events it answers {len(answer.item_ids)} items, "
            f"{len(distinct)} distinct and {len(distinct & seen)} of the history; expected {expected} other items"
        )
        raise _refusal(store, version, problem)
    if not np.isfinite(answer.scores).all():
        raise _refusal(store, version, f"a history of {len(request.history)} events gets scores that are not finite")


def _refusal(store: ReleaseStore, version: str, problem: str) -> UserError:
    return UserError(
        f"release {version}: {problem}; no alias was moved, and the release lies in {store.root / version}"
    )
