"""Baselines of seconds beside a run: a model that loses to popularity or item-kNN has learned too little."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from omegaconf import DictConfig

from recsys.baselines.interactions import Generator, Interactions
from recsys.baselines.item_knn import ItemKNN
from recsys.baselines.popularity import Popularity
from recsys.baselines.request_batches import request_batches
from recsys.core import distributed
from recsys.data.dataset import Part, PreparedDataset, Requests
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import evaluate
from recsys.experiments.origins import earlier_origins
from recsys.experiments.run_folder import RunFolder, RunState

log = logging.getLogger("recsys")

# Ages in days at which an event counts half; the best one over the origins is measured.
HALF_LIVES = (1, 3, 7, 14, 30, 90)
# The same without validation requests, as in conf/generator/recent_popularity.yaml.
_HALF_LIFE = 7
# Number of validation requests of each origin that choose the half-life.
_CHOOSING = 2000
# Item-kNN counts pairs of items of a history, and scores every item for every request. These many take some ten seconds
# of a core.
_MAX_PAIRS, _MAX_SCORES = 200_000_000, 1_000_000_000


class Verdict(NamedTuple):
    """The model beside the baselines, in one line."""

    line: str
    is_better: bool


def compare_with_baselines(
    config: DictConfig, dataset: PreparedDataset, run: RunFolder, *, parts: Sequence[Part]
) -> None:
    """Record the metrics of the baselines in `run.json`, and warn if one is better than the model on validation.

    Nothing happens with `evaluation.baselines=false`, or if the parts are already measured. Every process must call it.

    Args:
        config: configuration of the run.
        dataset: data whose validation part is not part of training.
        run: folder of a run that is measured on validation.
        parts: parts whose requests are ranked.
    """
    measured = {name.partition("/")[0] for values in run.state.popularity.values() for name in values}
    if not config.evaluation.get("baselines", True) or measured >= {*parts}:
        return
    run.update(popularity=measure_beside(config, dataset, parts))
    distributed.barrier()
    found = verdict(run.state, run.metrics, config.evaluation.metric, part="val")
    if found is not None and not found.is_better and distributed.is_first():
        log.warning("%s", found.line)


def measure_beside(config: DictConfig, dataset: PreparedDataset, parts: Sequence[Part]) -> dict[str, dict[str, float]]:
    """Return the metrics of popularity, recent popularity if the data has days, and item-kNN if it is cheap.

    As in `recsys baselines`, training events rank validation, and events of train + val rank test. Every process must
    call it; each ranks its share of the requests.
    """
    builders: dict[str, Callable[[], Generator]] = {"popularity": Popularity}
    if dataset.meta.time_resolution.has_clock:
        days = best_half_life(config, dataset)
        builders[f"popularity of half-life {days} days"] = partial(Popularity, half_life_days=days)
    if _is_cheap(dataset, parts):
        builders["item-kNN"] = ItemKNN
    kept = {"recall@10", "ndcg@10", "recall@100", config.evaluation.metric.partition("/")[2]}
    results: dict[str, dict[str, float]] = {name: {} for name in builders}
    for part in parts:
        events = Interactions(dataset, "val" if part == "test" else "train")
        for name, build in builders.items():
            values = _measure(build(), events, config, part=part, requests=dataset.requests(part))
            results[name] |= {f"{part}/{metric}": values[metric] for metric in sorted(kept & values.keys())}
    return results


def verdict(state: RunState, metrics: dict[str, float], selection: str, *, part: Part) -> Verdict | None:
    """Return the model beside the baselines on a part; None if the run did not measure them there.

    Args:
        state: content of `run.json`.
        metrics: metrics of the run.
        selection: metric that selected the checkpoint, such as `val/ndcg@10`. It is compared on the part.
        part: validation or test.
    """
    metric = f"{part}/{selection.partition('/')[2]}"
    others = {name: values[metric] for name, values in state.popularity.items() if metric in values}
    if not others or metric not in metrics:
        return None
    model, best = metrics[metric], max(others, key=lambda name: others[name])
    shown = f"{metric} {model:.4f}, " + ", ".join(f"{name} {value:.4f}" for name, value in others.items())
    if model > others[best]:
        gain = f" by {model / others[best] - 1:.0%}" if others[best] else ""
        return Verdict(f"{shown}: the model is better than {best}{gain}", True)
    found = "IS BETTER than" if model < others[best] else "IS AS GOOD AS"
    # A run that was chosen among variants comes from a recipe.
    advice = "train longer" if state.variants else "train longer, or try +experiment=recommended"
    return Verdict(f"{shown}: {best.upper()} {found} this model; {advice}", False)


def best_half_life(config: DictConfig, dataset: PreparedDataset) -> int:
    """Return the half-life in days with the best popularity, by the mean of the metric over `evaluation.origins`."""
    metric = config.evaluation.metric.partition("/")[2]

    def scores(view: PreparedDataset) -> list[float]:
        requests = view.requests("val")
        rows = np.sort(np.random.default_rng(config.seed).permutation(len(requests.user_idx))[:_CHOOSING])
        chosen = Requests(*(column[rows] for column in requests))
        events = Interactions(view, "train")
        found = [
            _measure(Popularity(half_life_days=days), events, config, part="val", requests=chosen)
            for days in HALF_LIVES
        ]
        # A slice may have no request.
        return [values.get(metric, values["ndcg@10"]) for values in found]

    if not len(dataset.requests("val").user_idx):
        return _HALF_LIFE
    views = earlier_origins(dataset, config.evaluation.get("origins", 1))
    return HALF_LIVES[int(np.mean([scores(view) for view in views], axis=0).argmax())]


def _is_cheap(dataset: PreparedDataset, parts: Sequence[Part]) -> bool:
    lengths = (dataset.val_end - dataset.offsets[:-1]).astype(np.float64)
    num_requests = sum(len(dataset.requests(part).user_idx) for part in parts)
    return np.square(lengths).sum() <= _MAX_PAIRS and num_requests * dataset.meta.num_seen <= _MAX_SCORES


def _measure(
    ranker: Generator, events: Interactions, config: DictConfig, *, part: Part, requests: Requests
) -> dict[str, float]:
    dataset = events.dataset
    share = slice(distributed.rank(), None, distributed.world_size())
    requests = Requests(*(column[share] for column in requests))
    ranker.fit(events)
    return evaluate(
        ranker,
        dataset,
        part=part,
        batches=request_batches(dataset, requests),
        metrics=RetrievalMetrics(dataset, events.num_items, part=part),
        exclude_seen=config.exclude_seen,
    )
