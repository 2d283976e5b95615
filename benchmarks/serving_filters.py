"""Recall and speed of filtered search, by the share of items that a filter allows and by their distance to the query.

    python benchmarks/serving_filters.py --num-items 1000000 --dim 64

The index is the default (`index=auto`), tuned without filters, as `index.py` does. Recall is the share of the exact
filtered top-k that is found. Three kinds of filter allow a given share of the items:

    random      items drawn at random
    category    the items nearest to one item: most users are far from all allowed items
    avoided     the items farthest from the users, who are similar to each other (content in another language, say)
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from index_throughput import synthetic

from recsys.core.types import Float32Array
from recsys.index import AllowedRows, Index, exact_search, load_index, save_index, tune

SHARES = (0.001, 0.01, 0.1, 0.5, 0.9)
KINDS = ("random", "category", "avoided")


def build(items: Float32Array, sample: Float32Array, *, folder: Path | None, k: int) -> Index:
    """Return the tuned default index of `items`; if `folder` is given, it is written there and read the next time."""
    if folder is not None and (folder / "item_index.json").exists():
        return load_index(folder, items)
    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        index: Index = instantiate(compose("index").index)
    index.build(items)
    tuning = tune(index, items, queries=sample, k=k)
    print(f"tuned to recall {tuning.chosen.recall:.3f} of {tuning.recall_target}, {index.effort}")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        save_index(index, folder)
    return index


def passing(kind: str, share: float, *, items: Float32Array, users: Float32Array) -> AllowedRows:
    """Return the rows that a filter allows."""
    if kind == "random":
        order = np.random.default_rng(1).random(len(items))
    else:
        order = -(items @ items[0]) if kind == "category" else items @ users.mean(axis=0)
    count = round(share * len(items))
    mask = np.zeros(len(items), bool)
    mask[np.argpartition(order, count)[:count]] = True
    return AllowedRows(mask)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--keep", type=Path, help="folder to keep the index in, for the next run")
    args = parser.parse_args()
    items, users = synthetic(args.num_items, args.dim, 200 + args.queries)
    sample, users = users[:200], users[200:]
    alike = users[:1] + 0.05 * np.random.default_rng(2).standard_normal(users.shape, np.float32)
    index = build(items, sample, folder=args.keep, k=args.k)
    print(f"{args.num_items:,} items x {args.dim}, {args.queries} queries, k={args.k}\n")
    print(f"{'filter':<10}{'passes':>8}{f'recall@{args.k}':>12}{'least':>8}{'queries/s':>11}{'exact/s':>9}")
    for kind in KINDS:
        queries = alike if kind == "avoided" else users
        for share in SHARES:
            allowed = passing(kind, share, items=items, users=queries)
            start = time.perf_counter()
            exact, _ = exact_search(items, queries, k=args.k, rows=allowed.rows)
            middle = time.perf_counter()
            found, _ = index.search(queries, args.k, allow=allowed)
            end = time.perf_counter()
            threshold = exact[:, -1] - 1e-6 * np.maximum(np.abs(exact[:, 0]), np.abs(exact[:, -1]))
            recalls = (found >= threshold[:, None]).mean(axis=1)
            speeds = (args.queries / (end - middle), args.queries / (middle - start))
            print(
                f"{kind:<10}{share:>8.1%}{recalls.mean():>12.4f}{recalls.min():>8.2f}{speeds[0]:>11.0f}{speeds[1]:>9.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
