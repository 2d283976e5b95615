"""Which of several selected runs add up to a better model, and the run that their blend becomes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy.typing as npt
import torch
from numpy import int64
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from recsys.build import build_model, corpus_of, open_data
from recsys.data.builder import BatchBuilder
from recsys.data.dataset import PreparedDataset
from recsys.data.loader import RequestLoader
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import CorpusSearch, encode_corpus
from recsys.evaluation.relevance import relevant_items, seen_items
from recsys.models.blend import Model
from recsys.runs import load_weights
from recsys.tracking import RunFolder

# Shares of the sum that a further member may get.
SHARES = (0.25, 0.5, 0.75)
# What a further member must add to the metric, relative to it: it costs its time at every request.
LEAST_GAIN = 0.01


class Embedded(NamedTuple):
    """What one run embeds for validation, as logits: item vectors are divided by its temperature.

    Attributes:
        users: of the validation requests, [R, D].
        items: of the corpus, [N, D].
    """

    users: Tensor
    items: Tensor


class Chosen(NamedTuple):
    """A blend that was chosen; of one run alone where no other improves it.

    Attributes:
        weights: of the logits of each run; they add up to 1.
        metrics: `val/*` of the blend.
    """

    weights: dict[str, float]
    metrics: dict[str, float]


def choose_blend(configs: Mapping[str, DictConfig], runs: Mapping[str, RunFolder], metric: str) -> Chosen:
    """Greedy forward selection on validation (Caruana et al. 2004, section 2): the best run, then what improves it.

    Args:
        configs: of the runs, by name; all of one data set.
        runs: selected, by name.
        metric: of validation, to be as high as possible.
    """
    first = next(iter(configs.values()))
    dataset = open_data(first)
    embedded, corpora = {}, {}
    for name, config in configs.items():
        model = build_model(config, dataset).eval()
        load_weights(model, runs[name].checkpoints / "best.ckpt")
        if model.num_embeddings > 1:
            continue
        corpora[name] = corpus_of(model, dataset)
        embedded[name] = _embed(model, config, dataset, corpora[name])
    order = sorted(runs, key=lambda name: -runs[name].metrics[metric])
    weights, metrics = {order[0]: 1.0}, runs[order[0]].metrics
    if order[0] not in embedded:
        return Chosen(weights, metrics)
    for name in order[1:]:
        if name not in embedded or len(corpora[name]) != len(corpora[order[0]]):
            continue
        tried = []
        for share in SHARES:
            candidate = {other: (1 - share) * weight for other, weight in weights.items()} | {name: share}
            tried.append((candidate, _measure(candidate, embedded, corpora[name], dataset, first.exclude_seen)))
        candidate, measured = max(tried, key=lambda pair: pair[1][metric])
        if measured[metric] >= metrics[metric] * (1 + LEAST_GAIN):
            weights, metrics = candidate, measured
    return Chosen(weights, metrics)


@torch.inference_mode()
def _embed(model: Model, config: DictConfig, dataset: PreparedDataset, corpus: npt.NDArray[int64]) -> Embedded:
    builder = BatchBuilder(dataset, config.history.max_events, config.history.predict_first)
    loader = RequestLoader(builder, dataset.requests("val"))
    users = torch.cat([model.encode_users(batch) for batch, _ in loader])
    return Embedded(users, encode_corpus(model, torch.from_numpy(corpus)) / model.temperature)


def _measure(
    weights: Mapping[str, float],
    embedded: Mapping[str, Embedded],
    corpus: npt.NDArray[int64],
    dataset: PreparedDataset,
    exclude_seen: bool,
) -> dict[str, float]:
    items = torch.cat([weight * embedded[name].items for name, weight in weights.items()], dim=1)
    users = torch.cat([embedded[name].users for name in weights], dim=1)
    search, metrics = CorpusSearch(items, corpus), RetrievalMetrics(dataset, len(corpus))
    requests = dataset.requests("val")
    for begin in range(0, len(users), 1024):
        some = type(requests)(*(column[begin : begin + 1024] for column in requests))
        exclude = seen_items(dataset, some) if exclude_seen else None
        _, ranked = search(users[begin : begin + 1024], metrics.cutoffs[-1], exclude)
        metrics.update(ranked, relevant_items(dataset, "val", some, exclude_seen), torch.from_numpy(some.user_idx))
    return {f"val/{name}": value for name, value in metrics.compute().items()}


def blend_config(configs: Mapping[str, DictConfig], weights: Mapping[str, float]) -> DictConfig:
    """Configuration of the blend: the heaviest member's, with the members' own and the longest history of them."""
    heaviest = max(weights, key=lambda name: weights[name])
    config = OmegaConf.create(OmegaConf.to_container(configs[heaviest], resolve=True))
    assert isinstance(config, DictConfig)
    config.history.max_events = max(configs[name].history.max_events for name in weights)
    config.members = {
        name: {"weight": weight, "config": OmegaConf.to_container(configs[name], resolve=True)}
        for name, weight in weights.items()
    }
    return config


def write_checkpoint(configs: Mapping[str, DictConfig], runs: Mapping[str, RunFolder], path: Path) -> None:
    """The members' weights as one checkpoint.

    Args:
        configs: of the members, in the order of the blend.
        runs: theirs, by name.
        path: of the file, written aside and renamed.
    """
    state: dict[str, Tensor] = {}
    steps = 0
    for number, name in enumerate(configs):
        content = torch.load(runs[name].checkpoints / "best.ckpt", map_location="cpu", weights_only=True)
        steps += int(content["global_step"])
        state |= {
            f"model.models.{number}.{key.removeprefix('model.')}": value
            for key, value in content["state_dict"].items()
            if key.startswith("model.")
        }
    part = path.with_name(path.name + ".part")
    torch.save({"state_dict": state, "global_step": steps}, part)
    os.replace(part, path)
