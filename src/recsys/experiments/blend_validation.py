"""Validation of blends: the metric that the selected runs with some weights reach, without training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from recsys.core import distributed
from recsys.core.types import Int64Array
from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.loaders import RequestLoader
from recsys.data.dataset import Part, Requests
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import CorpusSearch, RequestCounter, encode_corpus
from recsys.evaluation.relevance import rolling_requests
from recsys.evaluation.slices import cold_users
from recsys.experiments.assembly import build_towers, corpus_of, open_data
from recsys.experiments.level_fit import Level, fit_level
from recsys.experiments.new_items_level import MOST_LOGITS, validation_choices
from recsys.experiments.origins import earlier_origins, new_user_share
from recsys.experiments.run_folder import RunFolder
from recsys.experiments.trained_run import load_weights
from recsys.models.items import ItemTower
from recsys.models.two_tower import TwoTower

# Size of the seeded samples of validation users, and of validation events as requests, on which choices are measured.
MOST_USERS, MOST_EVENTS = 20_000, 2_000


class ValidationEmbeddings(NamedTuple):
    """Embeddings of one run whose inner products are its logits, because items are divided by the temperature.

    Attributes:
        users: embeddings of the requests, [R, D].
        items: embeddings of the known items, [N, D].
        reads_features: whether features place items without a trained id.
        corpus: item_idx of the items that can be recommended, ascending.
    """

    users: Tensor
    items: Tensor
    reads_features: bool
    corpus: Int64Array


class UserScores(NamedTuple):
    """A metric of each user, with the user's share in the mean.

    Attributes:
        values: float64 [U].
        shares: float64 [U]; they add up to 1.
    """

    values: Tensor
    shares: Tensor

    @property
    def mean(self) -> float:
        """The metric."""
        return float((self.values * self.shares).sum())

    def is_worse_than(self, other: UserScores) -> bool:
        """Return whether the mean is significantly lower (5%, one-sided, normal), paired by user."""
        loss = other.values - self.values
        mean = (loss * self.shares).sum()
        return bool(mean > 1.645 * ((loss - mean) * self.shares).square().sum().sqrt())


class BlendValidation:
    """Validation requests, and all items that a member may place, as the members of a blend see them.

    Args:
        config: configuration of a run on the data.
        fits_level: whether a blend has a scale and an offset of new items, in place of those of its members.
        most_users: size of the sample of validation users.
        part: `val`, on which choices are made, or `test`, to judge rules of choice; it has no level of new items.
    """

    def __init__(
        self, config: DictConfig, *, fits_level: bool = True, most_users: int = MOST_USERS, part: Part = "val"
    ) -> None:
        self.config, self.dataset, self.exclude_seen = config, open_data(config), config.exclude_seen
        self.part = part
        self.new_users = new_user_share(earlier_origins(self.dataset, config.evaluation.get("origins", 1)))
        self.lift: float = config.model.new_items_lift
        # One request of each user, and after them those of events.
        self.requests = self.dataset.requests(part)
        self.users = np.arange(len(self.requests.user_idx))
        self.sample = np.sort(np.random.default_rng(config.seed).permutation(self.users)[:most_users])
        self.events = np.arange(0)
        events = rolling_requests(self.dataset, part) if config.evaluation.get("rolling", False) else self.requests
        # One event of each user would be the same requests.
        if len(events.user_idx) > len(self.users):
            order = np.random.default_rng(config.seed).permutation(len(events.user_idx))[:MOST_EVENTS]
            self.events = len(self.users) + np.arange(len(order))
            some = (column[np.sort(order)] for column in events)
            self.requests = Requests(*map(np.concatenate, zip(self.requests, some, strict=True)))
        self.embedded: dict[str, ValidationEmbeddings] = {}
        self.known = self.dataset.corpus(reads_features=True)
        self.choices = None
        if fits_level and part == "val":
            self.choices = validation_choices(
                self.dataset, self.known, exclude_seen=self.exclude_seen, most_logits=MOST_LOGITS, seed=config.seed
            )

    # Content vectors of items follow the versions of weights, which tensors of the inference mode lack.
    @torch.no_grad()
    def add(self, name: str, config: DictConfig, *, run: RunFolder) -> None:
        """Embed with one run, unless it has several embeddings for a user."""
        if self.choices is not None:
            # That of the blend takes its place.
            config = Level().write(config)
        model = build_towers(config, self.dataset, fresh=False).eval()
        load_weights(model, run.checkpoints / "best.ckpt")
        if model.num_embeddings > 1:
            return
        model.set_item_bias(self.dataset, self.dataset.index_time(self.part))
        place_unknown_items(model)
        builder = BatchBuilder(self.dataset, config.history.max_events, predict_first=config.history.predict_first)
        users = torch.cat([model.encode_users(batch) for batch, _ in RequestLoader(builder, self.requests)])
        items = encode_corpus(model, torch.from_numpy(self.known)) / model.temperature
        self.embedded[name] = ValidationEmbeddings(users, items, model.reads_features, corpus_of(model, self.dataset))

    def level(self, weights: Mapping[str, float], bias: Tensor | None = None) -> Level:
        """Return the level of new items of a blend: the likeliest one and the lift; none if no item can be new."""
        choices = self.choices
        if choices is None or not any(self.embedded[name].reads_features for name in weights):
            return Level()
        joined = self._joined(weights, bias, rows=choices.rows)
        items = joined.items[np.searchsorted(self.known, choices.candidates)]
        level = fit_level(choices, joined.users, items)
        return level._replace(offset=level.offset + self.lift)

    def measure(self, weights: Mapping[str, float], bias: Tensor | None = None) -> dict[str, float]:
        """Return the metrics of a blend with its level of new items, such as `val/recall@10`, for all users."""
        counted = self._count(weights, bias, rows=self.users)
        return {f"{self.part}/{name}": value for name, value in counted.compute().items()}

    def score(self, weights: Mapping[str, float], bias: Tensor | None = None, *, metric: str) -> float:
        """Return a metric of a blend for the sample of users."""
        scores = self.user_scores(weights, bias, metric=metric)
        return self._count(weights, bias, rows=self.sample).compute()[_name(metric)] if scores is None else scores.mean

    def user_scores(
        self, weights: Mapping[str, float], bias: Tensor | None = None, *, metric: str
    ) -> UserScores | None:
        """Return a metric of each user of the sample; new users have the share that is expected.

        Returns:
            None for a metric that is not a mean over users.
        """
        users, rows = self._count(weights, bias, rows=self.sample).per_user()
        if _name(metric) not in rows:
            return None
        values, is_new = rows[_name(metric)].double(), torch.from_numpy(cold_users(self.dataset))[users]
        has_value = ~values.isnan()
        shares = has_value / has_value.sum()
        new, others = has_value & is_new, has_value & ~is_new
        if self.new_users is not None and new.any() and others.any():
            shares = self.new_users * new / new.sum() + (1 - self.new_users) * others / others.sum()
        return UserScores(values.nan_to_num(), shares.double())

    def rolling_score(self, weights: Mapping[str, float], bias: Tensor | None = None, *, metric: str) -> float:
        """Return a metric of a blend for the sample of validation events, each a request of its own."""
        return self._count(weights, bias, rows=self.events, rolling=True).compute()[_name(metric)]

    def _count(
        self, weights: Mapping[str, float], bias: Tensor | None, *, rows: Int64Array, rolling: bool = False
    ) -> RetrievalMetrics:
        """Rank some requests, of which each process takes its share, and return the counters of their results."""
        rows = rows[distributed.rank() :: distributed.world_size()]
        users, items, _, corpus = self._joined(weights, bias, rows=rows)
        scale, offset = self.level(weights, bias)
        is_new = torch.from_numpy(self.known > self.dataset.num_trained).unsqueeze(1)
        items = torch.cat([torch.where(is_new, items * scale, items), is_new * offset], dim=1)
        users = F.pad(users, (0, 1), value=1.0)
        search = CorpusSearch(items[np.searchsorted(self.known, corpus)], corpus)
        metrics = RetrievalMetrics(self.dataset, len(corpus), part=self.part, keep_users=True)
        counter = RequestCounter(
            search, self.dataset, part=self.part, metrics=metrics, exclude_seen=self.exclude_seen, rolling=rolling
        )
        for begin in range(0, len(rows), 1024):
            some = np.arange(begin, min(begin + 1024, len(rows)))
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


def place_unknown_items(model: TwoTower) -> None:
    """Give items without a trained id the embedding that stands for them."""
    # An item tower of an outside package need not be one of ours.
    if isinstance(model.item_tower, ItemTower):
        model.item_tower.place_unknown_items()


def _name(metric: str) -> str:
    return metric.partition("/")[2]
