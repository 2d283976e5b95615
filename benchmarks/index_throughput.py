"""Throughput of each index at recall >= .98 of the exact top-100, as a ratio to faiss Flat in the same run.

    python benchmarks/index_throughput.py --num-items 1000000 --dim 64
    python benchmarks/index_throughput.py --embeddings items.npy --queries-file users.npy

Synthetic items lie in clusters; queries are mixtures of a few items plus noise, as user embeddings are. The effort is
tuned on one half of the queries, recall and speed are measured on the other half.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from recsys.core.types import Float32Array
from recsys.index import HNSW, IVFSQ8, Auto, Exact, FaissFlat, Index, IVFFlat, IVFPQFastScan, exact_search, tune

BACKENDS: dict[str, Callable[[], Index]] = {
    "flat": FaissFlat,
    "exact": Exact,
    "hnsw": lambda: HNSW(build_threads=2),
    "ivf_flat": IVFFlat,
    "ivf_sq8": IVFSQ8,
    "ivf_pq_fastscan": IVFPQFastScan,
    "auto": lambda: Auto(IVFPQFastScan()),
}


def synthetic(num_items: int, dim: int, num_queries: int, seed: int = 0) -> tuple[Float32Array, Float32Array]:
    """Normalised items around Zipf-sized clusters of intrinsic dimension below `dim`, and queries that mix items."""
    rng = np.random.default_rng(seed)
    num_clusters = max(8, int(num_items**0.5) // 2)
    centers = rng.standard_normal((num_clusters, dim), np.float32)
    basis = rng.standard_normal((16, dim), np.float32) / 4
    sizes = 1 / np.arange(1, num_clusters + 1) ** 0.5
    cluster = rng.choice(num_clusters, num_items, p=sizes / sizes.sum())
    items = centers[cluster] + rng.standard_normal((num_items, 16), np.float32) @ basis
    items += 0.3 * rng.standard_normal((num_items, dim), np.float32)
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    weights = rng.dirichlet(np.ones(3), num_queries).astype(np.float32)
    queries = np.einsum("qn,qnd->qd", weights, items[rng.integers(0, num_items, (num_queries, 3))])
    queries += 0.05 * rng.standard_normal((num_queries, dim), np.float32)
    return items, queries / np.linalg.norm(queries, axis=1, keepdims=True)


def seconds(index: Index, queries: Float32Array, k: int) -> float:
    start = time.perf_counter()
    index.search(queries, k)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-items", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--embeddings", type=Path)
    parser.add_argument("--queries-file", type=Path)
    parser.add_argument(
        "--backends", nargs="+", choices=BACKENDS, default=[name for name in BACKENDS if name != "auto"]
    )
    parser.add_argument("--recall-target", type=float, default=0.98)
    parser.add_argument("--k", type=int, default=100)
    args = parser.parse_args()
    if (args.embeddings is None) != (args.queries_file is None):
        parser.error("--embeddings and --queries-file go together")
    if args.embeddings:
        items = np.load(args.embeddings, mmap_mode="r", allow_pickle=False)
        queries = np.load(args.queries_file, allow_pickle=False)
        queries = queries[np.random.default_rng(0).permutation(len(queries))[: args.queries]]
    else:
        items, queries = synthetic(args.num_items, args.dim, args.queries)
    half = len(queries) // 2
    sample, measured = queries[:half], queries[half:]
    _, truth = exact_search(items, measured, k=args.k)
    flat = FaissFlat()
    flat.build(items)
    print(f"{len(items)} items x {items.shape[1]}, {len(measured)} queries")
    print(
        f"{'index':<16}{'build s':>9}{'breadth':>9}{'refine':>8}{f'recall@{args.k}':>12}{'queries/s':>11}{'x Flat':>8}"
    )
    for name in args.backends:
        index = BACKENDS[name]()
        start = time.perf_counter()
        index.build(items)
        built = time.perf_counter() - start
        tuning = tune(index, items, queries=sample, recall_target=args.recall_target, k=args.k)
        _, found = index.search(measured, args.k)
        recall = np.mean([len(np.intersect1d(a, b)) for a, b in zip(found, truth, strict=True)]) / args.k
        # In turns, and the median of ratios: both sides meet the same load of the machine.
        pairs = [(seconds(flat, measured, args.k), seconds(index, measured, args.k)) for _ in range(5)]
        ratio = np.median([theirs / ours for theirs, ours in pairs])
        speed = len(measured) / min(ours for _, ours in pairs)
        note = "" if tuning.reached else "  target not reached"
        print(
            f"{name:<16}{built:>9.1f}{tuning.chosen.breadth:>9}{tuning.chosen.refine:>8}{recall:>12.4f}"
            f"{speed:>11.0f}{ratio:>8.1f}{note}",
            flush=True,
        )


if __name__ == "__main__":
    main()
