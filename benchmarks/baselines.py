"""All heuristic generators on one data set: fitted on train + val, measured on test.

    python benchmarks/baselines.py --root DIR --split leave_last_out --time order
    python benchmarks/baselines.py --root DIR --split temporal --tune          grids below, chosen on validation

Prints a Markdown table. With --tune every combination of a generator's grid is fitted on train and measured on val;
the best by --metric is then fitted on train + val. Without, the flags decide.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from recsys.data.builder import BatchBuilder
from recsys.data.dataset import Part, PreparedDataset
from recsys.data.loader import RequestLoader
from recsys.data.prepare import DataSettings, prepare
from recsys.data.sources import ParquetFolder
from recsys.data.splits import Given, LeaveLastOut, Split, Temporal
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import evaluate
from recsys.generators.als import ALS
from recsys.generators.ease import EASE
from recsys.generators.item_knn import ItemKNN
from recsys.generators.popularity import Popularity

SPLITS: dict[str, Callable[[], Split]] = {"temporal": Temporal, "leave_last_out": LeaveLastOut, "given": Given}
GENERATORS: dict[str, Callable[..., Any]] = {"popularity": Popularity, "item_knn": ItemKNN, "ease": EASE, "als": ALS}
GRIDS: dict[str, dict[str, list[Any]]] = {
    "popularity": {"half_life_days": [None, 7, 30, 180]},
    "item_knn": {"num_neighbours": [20, 100, 500], "shrink": [0, 10, 50]},
    "ease": {"l2": [20, 60, 200, 600, 2000]},
    "als": {"factors": [64, 256], "alpha": [5, 20, 60], "l2": [0.01, 1.0]},
}
SHOWN = ("recall@10", "ndcg@10", "recall@100", "coverage@10")


def measure(name: str, options: dict[str, Any], dataset: PreparedDataset, part: Part) -> dict[str, float]:
    """Metrics on `part` of a generator that is fitted on everything before it, and its seconds."""
    start = time.perf_counter()
    ranker = GENERATORS[name](**options)
    ranker.fit(dataset, "train" if part == "val" else "val")
    fitted = time.perf_counter()
    # Generators read histories from the data set themselves: the batches are there for models.
    batches = RequestLoader(BatchBuilder(dataset, max_history=1), dataset.requests(part), 4096)
    seen = dataset.refit() if part == "test" else dataset
    metrics = RetrievalMetrics(dataset, len(seen.corpus(reads_features=True)))
    result = evaluate(ranker, dataset, part, batches, metrics)
    return result | {"fit": fitted - start, "rank": time.perf_counter() - fitted}


def tuned(name: str, dataset: PreparedDataset, metric: str) -> dict[str, Any]:
    """The best combination of the grid on the validation part."""
    grid = GRIDS[name]
    if name == "popularity" and dataset.meta.time not in ("seconds", "day"):
        return {}
    tried = []
    for values in itertools.product(*grid.values()):
        options = dict(zip(grid, values, strict=True))
        tried.append((measure(name, options, dataset, "val")[f"{metric}"], options))
        print(f"  {name} {options}: val/{metric} {tried[-1][0]:.4f}", flush=True)
    return max(tried, key=lambda pair: pair[0])[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with interactions.parquet")
    parser.add_argument("--split", choices=sorted(SPLITS), default="temporal")
    parser.add_argument("--time", choices=["seconds", "day", "order", "none"], default="seconds")
    parser.add_argument("--cache", type=Path, default=Path(".cache/recsys"))
    parser.add_argument("--only", default=",".join(GENERATORS), help="generators, separated by commas")
    parser.add_argument("--tune", action="store_true", help="choose hyper-parameters on validation")
    parser.add_argument("--metric", default="ndcg@10", help="what --tune looks at")
    parser.add_argument("--half-life-days", type=float)
    parser.add_argument("--num-neighbours", type=int, default=100)
    parser.add_argument("--shrink", type=float, default=0.0)
    parser.add_argument("--ease-l2", type=float, default=200.0)
    parser.add_argument("--factors", type=int, default=128)
    parser.add_argument("--alpha", type=float, default=20.0)
    parser.add_argument("--als-l2", type=float, default=0.01)
    args = parser.parse_args()
    flags: dict[str, dict[str, Any]] = {
        "popularity": {"half_life_days": args.half_life_days},
        "item_knn": {"num_neighbours": args.num_neighbours, "shrink": args.shrink},
        "ease": {"l2": args.ease_l2},
        "als": {"factors": args.factors, "alpha": args.alpha, "l2": args.als_l2},
    }
    names = args.only.split(",")
    if unknown := sorted(set(names) - set(GENERATORS)):
        parser.error(f"--only: found {', '.join(unknown)}; expected some of {', '.join(GENERATORS)}")
    settings = DataSettings(time=args.time)
    dataset = prepare(ParquetFolder(str(args.root)), SPLITS[args.split](), settings, args.cache)
    rows = []
    for name in names:
        options = tuned(name, dataset, args.metric) if args.tune else flags[name]
        result = measure(name, options, dataset, "test")
        described = ", ".join(f"{key} {value}" for key, value in options.items() if value is not None)
        values = " | ".join(f"{result[column]:.4f}" for column in SHOWN)
        rows.append(f"| {name} | {described} | {values} | {result['fit']:.1f} | {result['rank']:.1f} |")
        print(rows[-1], flush=True)
    users = np.count_nonzero(dataset.requests("test").user_idx >= 0)
    print(f"\n{args.root.name}, {args.split}: {users} test users, {dataset.num_items} items\n")
    print("| generator | hyper-parameters | " + " | ".join(SHOWN) + " | fit, s | rank, s |")
    print("|---|---|" + "---|" * (len(SHOWN) + 2))
    print("\n".join(rows))


if __name__ == "__main__":
    main()
