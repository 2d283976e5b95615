"""Choice of a blend: the selected runs whose weighted logits add up to a better model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from recsys.core.io import atomic_file
from recsys.core.types import Int64Array
from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.loaders import RequestLoader
from recsys.data.batches.targets import TargetSampling
from recsys.data.dataset import PreparedDataset, Requests
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import CorpusSearch, RequestCounter, encode_corpus
from recsys.evaluation.slices import cold_users
from recsys.experiments.assembly import build_towers, corpus_of, open_data, target_sampling_of
from recsys.experiments.baseline_check import best_half_life
from recsys.experiments.new_items_offset import MOST_LOGITS, fit_offset, validation_choices
from recsys.experiments.origins import earlier_origins, new_user_share
from recsys.experiments.run_folder import RunFolder
from recsys.experiments.trained_run import load_weights, read_checkpoint
from recsys.models.items import ItemTower
from recsys.models.two_tower import TwoTower
from recsys.training.frequency import prior_shift

# Shares of the logits that a further member may get, and the distance of the two that are tried beside the best.
SHARES, BESIDE = (0.25, 0.5, 0.75), 0.125
# Relative gain in the metric that a further member must bring, because it costs time at every request.
LEAST_GAIN = 0.01
# The same for a prior shift. It costs no time, but validation overestimates its gain, because popularity there is
# nearer to that of training than later.
LEAST_SHIFT_GAIN = 0.05
# Weight, power. The last one ranks nearly as popularity does, so a blend is not worse than the popularity in it.
SHIFTS = ((0.5, 1.0), (1.0, 1.0), (1.0, 2.0), (1.0, 4.0), (1.0, 16.0))
# Size of the seeded sample of validation users on which choices are measured.
MOST_USERS = 20_000


class ValidationEmbeddings(NamedTuple):
    """Embeddings of one run whose inner products are its logits, because items are divided by the temperature.

    Attributes:
        users: embeddings of the validation requests, [R, D].
        items: embeddings of the known items, [N, D].
        reads_features: whether features place items without a trained id.
        corpus: item_idx of the items that can be recommended, ascending.
    """

    users: Tensor
    items: Tensor
    reads_features: bool
    corpus: Int64Array


class BlendChoice(NamedTuple):
    """A chosen blend; it consists of one run if no other improves it.

    Attributes:
        weights: weight of each run's logits; the weights add up to 1.
        prior_shift: `model.prior_shift` of the blend, with weight 0 for none.
        metrics: `val/*` of the blend for all validation users.
        new_items_offset: `model.new_items_offset` of the blend, beside those of its members.
    """

    weights: dict[str, float]
    prior_shift: dict[str, float]
    metrics: dict[str, float]
    new_items_offset: float = 0.0

    @property
    def is_one_run(self) -> bool:
        """True if the choice is the best run alone, without a prior shift."""
        return len(self.weights) == 1 and not self.prior_shift["weight"]


def choose_blend(
    configs: Mapping[str, DictConfig],
    runs: Mapping[str, RunFolder],
    *,
    metric: str,
    fits_offset: bool = True,
    most_users: int = MOST_USERS,
) -> BlendChoice:
    """Choose a blend by greedy forward selection on validation (Caruana et al. 2004, section 2).

    The best run comes first, then every run that improves the blend. The offset of new items is fitted anew for each
    blend that is tried, because the levels of the members' logits differ. If the data has times in days or seconds, a
    prior shift towards recent popularity is tried at the end, with the half-life that is best for popularity alone over
    several origins. One validation part would choose the half-life that suits the few items that are popular when it
    begins.

    Args:
        configs: configurations of the runs by name, all of one data set.
        runs: selected runs by name.
        metric: validation metric; more is better.
        fits_offset: whether a blend has an offset of new items beside those of its members.
        most_users: size of the sample of validation users.
    """
    best = max(runs, key=lambda name: runs[name].metrics[metric])
    validation = _Validation(next(iter(configs.values())), fits_offset=fits_offset, most_users=most_users)
    none = BlendChoice({best: 1.0}, {"weight": 0.0, "half_life_days": 60.0, "power": 1.0}, runs[best].metrics)
    for name, config in configs.items():
        validation.add(name, config, run=runs[name])
    if best not in validation.embedded:
        return none
    weights, score = none.weights, validation.score(none.weights, metric=metric)
    for name in sorted(validation.embedded, key=lambda name: -runs[name].metrics[metric]):
        if name == best:
            continue
        scores: dict[float, float] = {}
        for share in SHARES:
            scores[share] = validation.score(_with_member(weights, name, share=share), metric=metric)
        middle = max(scores, key=lambda share: scores[share])
        for share in (middle - BESIDE, middle + BESIDE):
            scores[share] = validation.score(_with_member(weights, name, share=share), metric=metric)
        share = max(scores, key=lambda share: scores[share])
        if scores[share] >= score * (1 + LEAST_GAIN):
            weights, score = _with_member(weights, name, share=share), scores[share]
    shift = none.prior_shift
    target_sampling = target_sampling_of(configs[max(weights, key=lambda name: weights[name])])
    if validation.dataset.meta.time_resolution.has_clock:
        days = float(best_half_life(validation.config, validation.dataset))
        grid = [{"weight": weight, "half_life_days": days, "power": power} for weight, power in SHIFTS]
        shifted = [
            validation.score(weights, _bias(validation.dataset, each, target_sampling), metric=metric) for each in grid
        ]
        if max(shifted) >= score * (1 + LEAST_SHIFT_GAIN):
            shift = grid[shifted.index(max(shifted))]
    chosen = BlendChoice(weights, shift, none.metrics)
    if chosen.is_one_run:
        return none
    bias = _bias(validation.dataset, shift, target_sampling) if shift["weight"] else None
    metrics, offset = validation.measure(weights, bias), validation.offset(weights, bias)
    return chosen._replace(metrics=metrics, new_items_offset=offset)


def _with_member(weights: Mapping[str, float], name: str, *, share: float) -> dict[str, float]:
    return {other: (1 - share) * weight for other, weight in weights.items()} | {name: share}


def _bias(dataset: PreparedDataset, shift: Mapping[str, float], target_sampling: TargetSampling) -> Tensor:
    return (
        prior_shift(dataset, shift["half_life_days"], target_sampling=target_sampling, power=shift["power"])
        .mul(shift["weight"])
        .float()
    )


class _Validation:
    """Validation requests, and all items that a member may place, as the members of a blend see them."""

    def __init__(self, config: DictConfig, *, fits_offset: bool = True, most_users: int = MOST_USERS) -> None:
        self.config, self.dataset, self.exclude_seen = config, open_data(config), config.exclude_seen
        self.new_users = new_user_share(earlier_origins(self.dataset, config.evaluation.get("origins", 1)))
        self.lift: float = config.model.new_items_lift
        self.requests = self.dataset.requests("val")
        order = np.random.default_rng(config.seed).permutation(len(self.requests.user_idx))
        self.sample = np.sort(order[:most_users])
        self.embedded: dict[str, ValidationEmbeddings] = {}
        self.known = self.dataset.corpus(reads_features=True)
        self.choices = None
        if fits_offset:
            self.choices = validation_choices(
                self.dataset, self.known, exclude_seen=self.exclude_seen, most_logits=MOST_LOGITS, seed=config.seed
            )

    # Content vectors of items follow the versions of weights, which tensors of the inference mode lack.
    @torch.no_grad()
    def add(self, name: str, config: DictConfig, *, run: RunFolder) -> None:
        """Embed with one run, unless it has several embeddings for a user."""
        model = build_towers(config, self.dataset, fresh=False).eval()
        load_weights(model, run.checkpoints / "best.ckpt")
        if model.num_embeddings > 1:
            return
        model.set_item_bias(self.dataset, self.dataset.index_time("val"))
        _place_unknown_items(model)
        builder = BatchBuilder(self.dataset, config.history.max_events, predict_first=config.history.predict_first)
        users = torch.cat([model.encode_users(batch) for batch, _ in RequestLoader(builder, self.requests)])
        items = encode_corpus(model, torch.from_numpy(self.known)) / model.temperature
        self.embedded[name] = ValidationEmbeddings(users, items, model.reads_features, corpus_of(model, self.dataset))

    def offset(self, weights: Mapping[str, float], bias: Tensor | None = None) -> float:
        """Return the offset of new items of a blend: the likeliest one and the lift; 0 if none can be new."""
        choices = self.choices
        if choices is None or not any(self.embedded[name].reads_features for name in weights):
            return 0.0
        joined = self._joined(weights, bias, rows=choices.rows)
        items = joined.items[np.searchsorted(self.known, choices.candidates)]
        return fit_offset(choices, joined.users, items) + self.lift

    def measure(self, weights: Mapping[str, float], bias: Tensor | None = None) -> dict[str, float]:
        """Return `val/*` of a blend with its offset of new items, for all validation users."""
        counted = self._count(weights, bias, rows=np.arange(len(self.requests.user_idx)))
        return {f"val/{name}": value for name, value in counted.compute().items()}

    def score(self, weights: Mapping[str, float], bias: Tensor | None = None, *, metric: str) -> float:
        """Return a metric of a blend for the sample of users, in which new users have the share that is expected."""
        counted = self._count(weights, bias, rows=self.sample)
        users, rows = counted.per_user()
        name = metric.partition("/")[2]
        if name not in rows:
            # Not a mean over users.
            return counted.compute()[name]
        values, is_new = rows[name].double(), torch.from_numpy(cold_users(self.dataset))[users]
        new, others = values[is_new].nanmean(), values[~is_new].nanmean()
        if self.new_users is None or new.isnan() or others.isnan():
            return float(values.nanmean())
        return float(self.new_users * new + (1 - self.new_users) * others)

    def _count(self, weights: Mapping[str, float], bias: Tensor | None, *, rows: Int64Array) -> RetrievalMetrics:
        """Rank some requests and return the counters of their results."""
        users, items, _, corpus = self._joined(weights, bias, rows=rows)
        if offset := self.offset(weights, bias):
            shift = torch.from_numpy(self.known > self.dataset.num_trained) * offset
            items, users = torch.cat([items, shift.unsqueeze(1)], dim=1), F.pad(users, (0, 1), value=1.0)
        search = CorpusSearch(items[np.searchsorted(self.known, corpus)], corpus)
        metrics = RetrievalMetrics(self.dataset, len(corpus), part="val", keep_users=True)
        counter = RequestCounter(search, self.dataset, part="val", metrics=metrics, exclude_seen=self.exclude_seen)
        for some in np.split(np.arange(len(rows)), range(1024, len(rows), 1024)):
            requests = Requests(*(column[rows[some]] for column in self.requests))
            counter.count(users[torch.from_numpy(some)], requests)
        return metrics

    def _joined(self, weights: Mapping[str, float], bias: Tensor | None, *, rows: Int64Array) -> ValidationEmbeddings:
        """Return the embeddings of a blend for some requests."""
        members = [(weight, self.embedded[name]) for name, weight in weights.items()]
        items = torch.cat([weight * member.items for weight, member in members], dim=1)
        users = torch.cat([member.users[torch.from_numpy(rows)] for _, member in members], dim=1)
        if bias is not None:
            items = torch.cat([items, bias[torch.from_numpy(self.known)].unsqueeze(1)], dim=1)
            users = F.pad(users, (0, 1), value=1.0)
        corpus = np.unique(np.concatenate([member.corpus for _, member in members]))
        return ValidationEmbeddings(users, items, any(member.reads_features for _, member in members), corpus)


def blend_config(
    configs: Mapping[str, DictConfig],
    weights: Mapping[str, float],
    *,
    prior_shift: Mapping[str, float],
    new_items_offset: float = 0.0,
) -> DictConfig:
    """Return the configuration of a blend.

    It is that of the member with the largest weight, with the configurations of all members and their longest history.

    Args:
        configs: configurations of the runs by name.
        weights: weight of each member's logits.
        prior_shift: `model.prior_shift` of the blend.
        new_items_offset: `model.new_items_offset` of the blend, which is added to those of the members.
    """
    heaviest = max(weights, key=lambda name: weights[name])
    config = OmegaConf.create(OmegaConf.to_container(configs[heaviest], resolve=True))
    assert isinstance(config, DictConfig)
    config.history.max_events = max(configs[name].history.max_events for name in weights)
    config.model.prior_shift, config.model.new_items_offset = dict(prior_shift), new_items_offset
    config.members = {
        name: {"weight": weight, "config": OmegaConf.to_container(configs[name], resolve=True)}
        for name, weight in weights.items()
    }
    for member in config.members.values():
        # The members' `test` has no meaning. A fixed value lets a blend that was selected be tested later.
        member.config.test = True
    return config


def write_checkpoint(configs: Mapping[str, DictConfig], runs: Mapping[str, RunFolder], *, path: Path) -> None:
    """Write the weights of the members as one checkpoint.

    Args:
        configs: configurations of the members, in the order of the blend.
        runs: runs of the members by name.
        path: file to replace.
    """
    state: dict[str, Tensor] = {}
    steps = 0
    for number, name in enumerate(configs):
        config, best = configs[name], runs[name].checkpoints / "best.ckpt"
        dataset = open_data(config)
        model = build_towers(config, dataset.refit() if config.refit else dataset, fresh=False)
        load_weights(model, best)
        _place_unknown_items(model)
        steps += read_checkpoint(best).steps
        state |= {f"model.models.{number}.{key}": value for key, value in model.state_dict().items()}
    with atomic_file(path) as aside:
        torch.save({"state_dict": state, "global_step": steps}, aside)


def _place_unknown_items(model: TwoTower) -> None:
    # An item tower of an outside package need not be one of ours.
    if isinstance(model.item_tower, ItemTower):
        model.item_tower.place_unknown_items()
