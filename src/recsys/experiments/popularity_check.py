"""Popularity on the test of a run: a model that loses to it has learned too little."""

from __future__ import annotations

from omegaconf import DictConfig

from recsys.baselines.interactions import Interactions
from recsys.baselines.popularity import Popularity
from recsys.baselines.request_batches import request_batches
from recsys.core import distributed
from recsys.data.dataset import Part, PreparedDataset, Requests
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import evaluate
from recsys.experiments.run_folder import RunState

# Age in days at which an event counts half, as in conf/generator/recent_popularity.yaml.
HALF_LIFE_DAYS = 7


def measure_popularity(config: DictConfig, dataset: PreparedDataset, part: Part) -> dict[str, dict[str, float]]:
    """Return the metrics of popularity, and of recent popularity if the data has days, on the requests of a part.

    As in `recsys baselines`, training events rank validation, and events of train + val rank test. Every process must
    call it; each ranks its share of the requests.
    """
    rankers = {"popularity": Popularity()}
    if dataset.meta.time_resolution.has_clock:
        rankers["recent popularity"] = Popularity(half_life_days=HALF_LIFE_DAYS)
    events = Interactions(dataset, "val" if part == "test" else "train")
    share = slice(distributed.rank(), None, distributed.world_size())
    requests = Requests(*(column[share] for column in dataset.requests(part)))
    kept = {"recall@10", "ndcg@10", "recall@100", config.evaluation.metric.partition("/")[2]}
    results = {}
    for name, ranker in rankers.items():
        ranker.fit(events)
        values = evaluate(
            ranker,
            dataset,
            part=part,
            batches=request_batches(dataset, requests),
            metrics=RetrievalMetrics(dataset, events.num_items, part=part),
            exclude_seen=config.exclude_seen,
        )
        results[name] = {f"{part}/{metric}": values[metric] for metric in sorted(kept & values.keys())}
    return results


def verdict(state: RunState, metrics: dict[str, float], selection: str) -> str | None:
    """Return one line with the model beside popularity; None if the run did not measure popularity.

    Args:
        state: content of `run.json`.
        metrics: metrics of the run.
        selection: metric that selected the checkpoint, such as `val/ndcg@10`. It is compared on the part that
            popularity was measured on.
    """
    part = "test" if any(name.startswith("test/") for values in state.popularity.values() for name in values) else "val"
    metric = f"{part}/{selection.partition('/')[2]}"
    others = {name: values[metric] for name, values in state.popularity.items() if metric in values}
    if not others or metric not in metrics:
        return None
    model, best = metrics[metric], max(others, key=lambda name: others[name])
    shown = f"{metric} {model:.4f}, " + ", ".join(f"{name} {value:.4f}" for name, value in others.items())
    if model > others[best]:
        gain = f" by {model / others[best] - 1:.0%}" if others[best] else ""
        return f"{shown}: the model is better than {best}{gain}"
    return f"{shown}: {best.upper()} IS BETTER than this model; train longer, or try +experiment=recommended"
