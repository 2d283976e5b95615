"""Metrics of the oracle of simulated data: what no model can exceed, and what none can without items' popularity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from recsys.core.columns import Ragged
from recsys.core.instantiate import instantiate
from recsys.core.schema import TimeResolution
from recsys.core.types import Float32Array
from recsys.data.dataset import Part, PreparedDataset
from recsys.data.simulation.oracle import oracle_scores
from recsys.data.simulation.synthetic import Synthetic
from recsys.evaluation.metrics import CUTOFFS, RetrievalMetrics
from recsys.evaluation.relevance import relevant_items, seen_items
from recsys.evaluation.slices import is_trained

# The oracle itself, and the oracle that does not know the popularity of new items.
BEST, NO_POPULARITY = "best_reachable", "best_without_popularity"
# Kinds of metrics that are kept.
_KEPT = ("recall", "shown")


def oracle_metrics(config: DictConfig, dataset: PreparedDataset, *, part: Part) -> dict[str, float]:
    """Return `<part>/best_reachable/recall@K`, ... for simulated data; empty for other data."""
    source = instantiate(config.data.source)
    if not isinstance(source, Synthetic) or dataset.meta.time_resolution is not TimeResolution.SECONDS:
        return {}
    root = source.folder(Path(config.data.cache) / "sources")
    found = best_reachable(root, dataset, part=part, exclude_seen=config.exclude_seen)
    return {f"{part}/{name}": value for name, value in found.items()}


def best_reachable(
    root: Path,
    dataset: PreparedDataset,
    *,
    part: Part,
    cutoffs: Sequence[int] = CUTOFFS,
    max_users: int = 5_000,
    seed: int = 0,
    exclude_seen: bool = True,
) -> dict[str, float]:
    """Return the recall of the oracle, overall and in slices, and the share of new items that it shows.

    Args:
        root: generated folder that `dataset` was prepared from.
        dataset: data set prepared with `data.time=seconds`.
        part: `val` or `test`.
        cutoffs: values of K.
        max_users: maximum number of users. If the part has more, a sample is drawn.
        seed: seed of the sample.
        exclude_seen: leave out items of the history.

    Returns:
        `best_reachable/recall@5`, `best_reachable/cold_items/recall@5`, ...; with new items also
        `best_without_popularity/...`. Empty if there are no users with relevant items.

    Raises:
        UserError: If `root` has no truth, or `dataset` was not prepared from it.
    """
    counters: dict[str, RetrievalMetrics] = {}
    is_cold = ~is_trained(dataset)
    for requests, *both in oracle_scores(root, dataset, part=part, max_users=max_users, seed=seed):
        relevant = relevant_items(dataset, part, requests=requests, exclude_seen=exclude_seen)
        seen = seen_items(dataset, requests) if exclude_seen else None
        for name, scores in zip((BEST, NO_POPULARITY), both, strict=True):
            if scores is None:
                continue
            if name not in counters:
                counters[name] = RetrievalMetrics(dataset, dataset.meta.num_known, cutoffs=cutoffs, part=part)
            if seen is not None:
                _leave_out(scores, seen)

            def rank_cold(rows: Tensor, scores: Float32Array = scores) -> Tensor:
                return _best(np.where(is_cold, scores[rows.numpy()], -np.inf), cutoffs[-1])

            user_idx = torch.from_numpy(requests.user_idx)
            counters[name].update(_best(scores, cutoffs[-1]), relevant, user_idx=user_idx, rank_cold=rank_cold)
    return {
        f"{name}/{metric}": value
        for name, metrics in counters.items()
        for metric, value in metrics.compute().items()
        if metrics.count and metric.partition("@")[0].rpartition("/")[2] in _KEPT
    }


def _leave_out(scores: Float32Array, items: Ragged) -> None:
    scores[np.repeat(np.arange(len(items)), np.diff(items.offsets)), items.values] = -np.inf


def _best(scores: Float32Array, k: int) -> Tensor:
    """Return the item_idx of the k best finite scores of each row, 0 after the last; int64 [R, k]."""
    values, items = torch.from_numpy(scores).topk(min(k, scores.shape[1]), dim=1)
    return torch.where(values == -torch.inf, 0, items)
