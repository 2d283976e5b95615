"""Targets of training: their choice, the length of the histories before them, and their weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.core.columns import Dense, ragged_positions
from recsys.core.errors import UnsuitableDataError, UserError, nearest
from recsys.core.schema import FIRST_CODE, TimeResolution
from recsys.core.types import Float64Array, Int64Array
from recsys.data.dataset import PreparedDataset

# Users whose events are read at once.
_USERS = 10_000
Order = Literal["time", "random"]
DAY = 86_400


@dataclass(frozen=True)
class TargetSampling:
    """Choice and weights of the training targets, under the configuration key `history`.

    By default every event is predicted from all events before it, with equal weights.

    Attributes:
        horizon: an event is predicted from the history up to 1..horizon events before it, drawn at random; 1 for the
            next event. A longer horizon learns interests beyond the next action (PinnerFormer, section 3.3).
        window_days: an event is predicted from the history up to a random event of these days before it, so every
            place of a history learns all actions of the window after it (PinnerFormer's dense all action prediction,
            with 28 days). An event with none in the days before it is predicted as the next one.
        gap_days: a target is predicted only from events that are older than it by at least this many days, so the
            model learns about later visits and not about the same session.
        half_life_days: age, counted from the newest training event, at which a target has weight 1/2; None for equal
            weights.
        targets_since: share of the training events, the oldest ones, that have weight 0 as targets. Use it if
            pretrained embeddings were learned from them (Pinterest learns them on "a window that does not overlap").
        action_weights: column of interactions -> value -> weight of a target with that value; 1 by default, 0 for an
            action that must not be recommended for (Yi et al. 2019, section 5, weigh clicks by engagement).
        order: order of the events of a training window. `random` draws a new one each time, so every event is
            predicted from any part of the others, like in an autoencoder of the user's items (Liang et al. 2018,
            section 2.3). Data without time always uses it.
    """

    horizon: int = 1
    window_days: float | None = None
    gap_days: float = 0.0
    half_life_days: float | None = None
    targets_since: float = 0.0
    action_weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    order: Order = "time"

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise UserError(f"history.horizon: found {self.horizon}, expected at least 1")
        if self.gap_days < 0:
            raise UserError(f"history.gap_days: found {self.gap_days}, expected 0 or more")
        for key, days in (("half_life_days", self.half_life_days), ("window_days", self.window_days)):
            if days is not None and not (isinstance(days, int | float) and days > 0):
                raise UserError(f"history.{key}: found {days}, expected a positive number, or null")
        if not 0 <= self.targets_since < 1:
            raise UserError(f"history.targets_since: found {self.targets_since}, expected a share of 0 to below 1")
        if not isinstance(self.action_weights, Mapping):
            raise UserError(
                f"history.action_weights: found {self.action_weights}, expected {{COLUMN: {{VALUE: WEIGHT}}}}, such as "
                "history.action_weights.action.purchase=3"
            )
        if self.order not in get_args(Order):
            raise UserError(f"history.order: found '{self.order}', expected 'time' or 'random'")
        if self.horizon > 1 and self.window_days is not None:
            raise UserError(
                f"history.window_days={self.window_days} with history.horizon={self.horizon}: expected one of them, "
                "in days or in events"
            )

    def check(self, time_resolution: TimeResolution, *, predict_first: bool) -> None:
        """Refuse settings that do not fit the time of the data or `history.predict_first`.

        Args:
            time_resolution: precision of the timestamps.
            predict_first: whether the empty history predicts.

        Raises:
            UserError: If days are given but timestamps have no clock, if a gap is given without `predict_first` (most
                targets have no event that is old enough), or if a gap or window of days is given in random order.
        """
        days = {"gap_days": self.gap_days, "window_days": self.window_days, "half_life_days": self.half_life_days}
        given = {key: value for key, value in days.items() if value}
        named = ", ".join(f"history.{key}={value:g}" for key, value in given.items())
        if given and not time_resolution.has_clock:
            raise UnsuitableDataError(
                f"{named} with data.time={time_resolution}: expected it unset, or timestamps in seconds or days"
            )
        if self.targets_since and not time_resolution.has_order:
            raise UnsuitableDataError(f"history.targets_since={self.targets_since:g} with data.time=none: expected 0")
        if self.gap_days and not predict_first:
            raise UserError(f"{named}: expected history.predict_first=true with a gap, found false")
        if self.order == "random" and (self.gap_days or self.window_days):
            raise UserError(f"{named}: expected history.order=time with it, found random")


class TargetWeights:
    """Weights of training events as targets: the product of their own weight and those of their age and action.

    Args:
        dataset: events, perhaps weighted; their times need a clock if age counts.
        sampling: half-life, first target and weights of actions.

    Raises:
        UserError: If a weight is negative or no number, if its column or value is missing or not categorical, or if all
            weights are 0.
    """

    def __init__(self, dataset: PreparedDataset, sampling: TargetSampling) -> None:
        self._dataset, self._sampling = dataset, sampling
        self._half_life = None if sampling.half_life_days is None else sampling.half_life_days * DAY
        self._tables = [_table(dataset, name, weights=weights) for name, weights in sampling.action_weights.items()]
        self._since = dataset.training_time(sampling.targets_since) if sampling.targets_since else None
        # The mean weight of training events is 1, so that sums stay in the range of floats.
        self._mean = 1.0
        if dataset.weight is not None:
            trained = ragged_positions(dataset.offsets[:-1], dataset.train_end - dataset.offsets[:-1])
            self._mean = float(np.mean(dataset.weight[trained], dtype=np.float64))
            if not self._mean:
                raise UserError("data.weight: the weight of every training event is 0, expected some larger ones")
        if self._half_life is not None:
            last = dataset.train_end[dataset.train_end > dataset.offsets[:-1]] - 1
            self._newest = int(np.asarray(dataset.time[last]).max(initial=0))
        if self._tables and not self._any():
            raise UserError(
                "history.action_weights: every training event has the weight 0 as a target, expected a positive weight "
                "for some"
            )

    def on(self, portion: PreparedDataset) -> TargetWeights:
        """Return the same weights for the events of some of the users."""
        own = copy.copy(self)
        own._dataset = portion
        own._tables = [_table(portion, name, weights=w) for name, w in self._sampling.action_weights.items()]
        return own

    def _any(self) -> bool:
        """Return whether a training event has a positive weight."""
        begin, end = self._dataset.offsets[:-1], self._dataset.train_end
        for first in range(0, len(begin), _USERS):
            users = slice(first, first + _USERS)
            weight = self(ragged_positions(begin[users], end[users] - begin[users]))
            if weight is None or bool((weight > 0).any()):
                return True
        return False

    def __call__(self, positions: Int64Array) -> Tensor | None:
        """Return the weights float32 [P] of the events at `positions`, or None if all are equal."""
        own = self._dataset.weight
        if self._half_life is None and self._since is None and not self._tables and own is None:
            return None
        weight = np.ones(len(positions)) if own is None else own[positions] / self._mean
        if self._half_life is not None:
            # Bounded, so that a batch of old targets alone has a positive sum.
            age = (self._newest - np.asarray(self._dataset.time[positions])) / self._half_life
            weight *= np.exp2(-np.minimum(age, 60.0))
        if self._since is not None:
            weight *= np.asarray(self._dataset.time[positions]) >= self._since
        for codes, table in self._tables:
            weight *= table[codes[positions]]
        return torch.from_numpy(weight.astype(np.float32))


def _table(
    dataset: PreparedDataset, name: str, *, weights: Mapping[str, float]
) -> tuple[npt.NDArray[np.generic], Float64Array]:
    place = f"history.action_weights.{name}"
    features = {f.name: f for f in dataset.schema.owned_by("interactions")}
    if name not in features:
        raise UserError(
            f"{place}: no such column; expected one that data.features.interactions declares{nearest(name, features)}"
        )
    feature = features[name]
    column, vocabulary = dataset.columns[feature.key], dataset.vocabulary(feature)
    if not isinstance(column, Dense) or vocabulary is None:
        raise UserError(f"{place}: the column is {feature.kind}, expected categorical")
    if not isinstance(weights, Mapping):
        raise UserError(f"{place}={weights}: expected {{value: weight}}, such as {place}.VALUE={weights}")
    codes = {_config_text(value): code for code, value in enumerate(vocabulary.to_pylist(), FIRST_CODE)}
    table = np.ones(feature.size)
    for value, weight in weights.items():
        if _config_text(value) not in codes:
            raise UserError(f"{place}.{value}: no training event has it{nearest(_config_text(value), codes)}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight >= 0:
            raise UserError(f"{place}.{value}: found {weight}, expected a number of 0 or more")
        table[codes[_config_text(value)]] = weight
    return column.values, table


def _config_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def num_older(times: Int64Array, window: Int64Array, *, gap: int) -> Int64Array:
    """Return for each event the number of events of its window that are older by at least `gap`; int64 [n].

    Args:
        times: int64 [n], time of each event, ascending within each window.
        window: int64 [n], window of each event, ascending.
        gap: in the unit of `times`.
    """
    since = times - times.min(initial=0)
    span = since.max(initial=0) + 1
    keys = window * span + since
    starts = np.searchsorted(window, window)
    older = np.searchsorted(keys, window * span + np.maximum(since - gap, -1), side="right")
    return np.asarray(np.maximum(older - starts, 0))
