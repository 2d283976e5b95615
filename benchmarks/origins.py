"""Half-lives of popularity, chosen on validation alone and by the mean over six origins: which are better afterwards?

    python benchmarks/origins.py RUN ...

Each RUN is the folder of a run on data with a temporal split. A half-life is chosen for each metric and judged on the
period after the choice: on the test part (origins up to validation), and on validation (origins before it). Shown are
the chosen half-lives in days, and what they reach of the best half-life's figure of that period.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf

from recsys.baselines.interactions import Interactions
from recsys.baselines.popularity import Popularity
from recsys.baselines.request_batches import request_batches
from recsys.core.types import Float64Array
from recsys.data.dataset import PreparedDataset
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import evaluate
from recsys.experiments.assembly import open_data
from recsys.experiments.origins import earlier_origins

HALF_LIVES = (0.5, 1, 2, 3, 5, 7, 10, 14, 21, 30, 60, 90, 180)
METRICS = ("recall@10", "recall@20", "recall@100", "ndcg@10")
ORIGINS = 6


def figures(view: PreparedDataset) -> Float64Array:
    """Return the metrics of each half-life on the validation part of a view, float64 [half-lives, metrics]."""
    events, rows = Interactions(view, "train"), []
    for days in HALF_LIVES:
        ranker = Popularity(half_life_days=days)
        ranker.fit(events)
        metrics = RetrievalMetrics(view, events.num_items, part="val")
        values = evaluate(
            ranker, view, part="val", batches=request_batches(view, view.requests("val")), metrics=metrics
        )
        rows.append([values[name] for name in METRICS])
    return np.array(rows)


def main() -> None:
    """Print a table in Markdown."""
    print(f"| data, period | {' | '.join(METRICS)} | mean, one origin | mean, {ORIGINS} origins |")
    print(f"|{'---|' * (len(METRICS) + 3)}")
    for run in sys.argv[1:]:
        config = OmegaConf.load(Path(run) / "config.yaml")
        assert isinstance(config, DictConfig)
        data = open_data(config)
        later = data.refit()
        test = figures(dataclasses.replace(later, val_end=later.offsets[1:]))
        past = [figures(view) for view in earlier_origins(data, ORIGINS + 1)]
        for period, truth, origins in (("test", test, past[:ORIGINS]), ("validation", past[0], past[1:])):
            cells, reached = [], []
            for column in range(len(METRICS)):
                score = truth[:, column] / truth[:, column].max()
                picks = [int(np.mean(some, axis=0)[:, column].argmax()) for some in (origins[:1], origins)]
                reached.append([score[pick] for pick in picks])
                cells.append(", ".join(f"{HALF_LIVES[pick]:g} d {score[pick]:.0%}" for pick in picks))
            one, many = np.mean(reached, axis=0)
            name = Path(config.data.get("root") or "simulated pins").name
            print(f"| {name}, {period} | {' | '.join(cells)} | {one:.1%} | {many:.1%} |")


if __name__ == "__main__":
    main()
