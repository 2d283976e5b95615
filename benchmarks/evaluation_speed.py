"""Exact full-corpus evaluation against the bare matrix product, in one run.

    python benchmarks/evaluation_speed.py [--users 20000] [--items 100000] [--dim 64] [--repeats 3] [--threads 1]

The evaluation is what `train.py` does for each batch of requests: exclusion of seen items, scores of the whole corpus,
top 100, relevance and the update of all metrics. The matrix product alone has the same block shapes and one reused
buffer. Both are timed in turn, and the best of each counts.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from recsys.core.schema import Schema, TimeResolution
from recsys.data.dataset import Meta, PreparedDataset, Requests
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import ModelRanker
from recsys.evaluation.relevance import relevant_items, seen_items
from recsys.evaluation.topk import block_height

BATCH = 1024


class Embeddings(nn.Module):
    """The part of a two-tower model that a ranker uses, with random embeddings."""

    def __init__(self, num_items: int, dim: int) -> None:
        super().__init__()
        self.items, self.device = torch.randn(num_items + 1, dim), torch.device("cpu")
        self.log_inverse_temperature = nn.Parameter(torch.zeros(()))

    def encode_items(self, item_idx: Tensor) -> Tensor:
        return self.items[item_idx]


def synthetic(num_users: int, num_items: int, rng: np.random.Generator) -> PreparedDataset:
    """Histories of 5 to 100 events and 1 to 20 test events a user, popularity by Zipf's law."""
    train, test = rng.integers(5, 101, num_users), rng.integers(1, 21, num_users)
    offsets = np.concatenate([[0], np.cumsum(train + test)])
    events = (num_items ** rng.random(offsets[-1])).astype(np.int32).clip(1, num_items)
    counts = np.bincount(events, minlength=num_items + 1)
    meta = Meta(
        fingerprint="",
        time_resolution=TimeResolution.ORDER,
        num_users=num_users,
        num_events=len(events),
        num_trained=num_items,
        num_seen=num_items,
        num_known=num_items,
        num_items=num_items,
        settings={},
    )
    return PreparedDataset(
        path=Path(),
        meta=meta,
        schema=Schema(()),
        item_idx=events,
        time=np.arange(len(events)),
        offsets=offsets,
        train_end=offsets[:-1] + train,
        val_end=offsets[:-1] + train,
        train_count=counts,
        has_features=np.zeros(num_items + 1, bool),
        columns={},
    )


def evaluation(dataset: PreparedDataset, ranker: ModelRanker, users: Tensor) -> tuple[float, dict[str, float]]:
    """Seconds of a whole evaluation, and those of its pieces."""
    metrics = RetrievalMetrics(dataset, dataset.num_items, keep_users=True)
    everyone = dataset.requests("test")
    seconds = dict.fromkeys(("seen", "search", "relevant", "update"), 0.0)
    start = time.perf_counter()
    for begin in range(0, len(users), BATCH):
        requests = Requests(*(column[begin : begin + BATCH] for column in everyone))
        clock = [time.perf_counter()]
        exclude = seen_items(dataset, requests)
        clock.append(time.perf_counter())
        _, ranked = ranker.search(users[begin : begin + BATCH], metrics.cutoffs[-1], exclude=exclude)
        clock.append(time.perf_counter())
        relevant = relevant_items(dataset, "test", requests=requests)
        clock.append(time.perf_counter())
        metrics.update(ranked, relevant, user_idx=torch.from_numpy(requests.user_idx))
        clock.append(time.perf_counter())
        for name, spent in zip(seconds, np.diff(clock), strict=True):
            seconds[name] += float(spent)
    metrics.compute()
    return time.perf_counter() - start, seconds


def product(users: Tensor, items: Tensor, height: int) -> float:
    """Seconds of the scores alone."""
    buffer = torch.empty(height, len(items))
    start = time.perf_counter()
    for batch in users.split(BATCH):
        for part in batch.split(height):
            torch.mm(part, items.t(), out=buffer[: len(part)])
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="on a busy machine one thread gives the steadier ratio")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dataset = synthetic(args.users, args.items, np.random.default_rng(0))
    model = Embeddings(args.items, args.dim)
    ranker = ModelRanker(model, np.arange(1, args.items + 1))  # type: ignore[arg-type]
    users, items = torch.randn(args.users, args.dim), model.items[1:]
    height = min(block_height(args.items), BATCH)
    evaluations, products = [], []
    for _ in range(args.repeats):
        products.append(product(users, items, height))
        evaluations.append(evaluation(dataset, ranker, users))
    seconds, pieces = min(evaluations)
    best = min(products)
    rate = 2 * args.users * args.items * args.dim / 1e9
    print(f"matrix product alone: {best:.2f} s, {rate / best:.1f} GFLOP/s, {height} rows a block")
    print(f"evaluation:           {seconds:.2f} s, {args.users / seconds:.0f} users/s")
    print("  " + ", ".join(f"{name} {spent:.2f} s" for name, spent in pieces.items()))
    print(f"share of the matrix-product rate: {best / seconds:.1%} (bar: 50%)")


if __name__ == "__main__":
    main()
