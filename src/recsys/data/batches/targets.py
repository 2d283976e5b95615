"""What training predicts, from how much of a history, and what each target counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.core.columns import Dense
from recsys.core.errors import UserError, nearest
from recsys.core.schema import FIRST_CODE, TimeResolution
from recsys.data.batches.batch import Indices
from recsys.data.dataset import PreparedDataset

Order = Literal["time", "random"]
DAY = 86_400


@dataclass(frozen=True)
class Objective:
    """The settings of `history` that say what is learned. As it stands: the next event, each counting alike.

    Attributes:
        horizon: an event is predicted from the history up to 1..horizon events before it, at random; 1 for the next
            event. A longer horizon learns what people will do, not what they do next (PinnerFormer, section 3.3).
        window_days: an event is predicted from the history up to a random event of the days before it, so that every
            place of a history learns all actions of the window that follows it (PinnerFormer's dense all action
            prediction, with 28 days). An event with none in the days before it is predicted as the next one.
        gap_days: a target is predicted from events that are older than it by this much at least: what people do when
            they come back, not what they do next in the same session.
        half_life_days: a target counts half when it is so much older than the newest training event; null for all
            alike.
        targets_since: share of the training events, the oldest, that count nothing as targets: for embeddings that were
            learned from them (Pinterest's are, on "a window that does not overlap").
        action_weights: column of interactions -> value -> what a target with it counts; 1 where nothing is said, and 0
            for an action that is nothing to recommend for (Yi et al. 2019, section 5, weigh clicks by engagement).
        order: of the events of a training window; `random` draws a new one each time, so that every event is
            predicted from any part of the others, as an autoencoder of the user's items does (Liang et al. 2018,
            section 2.3). Data without time is always read so.
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
        if self.order not in get_args(Order):
            raise UserError(f"history.order: found '{self.order}', expected 'time' or 'random'")
        if self.horizon > 1 and self.window_days is not None:
            raise UserError(
                f"history.window_days={self.window_days} with history.horizon={self.horizon}: expected one of them, "
                "in days or in events"
            )

    def check(self, time_resolution: TimeResolution, predict_first: bool) -> None:
        """Refuse what does not go with the time of the data or with `history.predict_first`.

        Args:
            time_resolution: precision of the timestamps.
            predict_first: whether the empty history predicts.

        Raises:
            UserError: days where time has none; a gap without `predict_first` (most targets have nothing so old before
                them); a gap or a window in random order.
        """
        days = {"gap_days": self.gap_days, "window_days": self.window_days, "half_life_days": self.half_life_days}
        given = {key: value for key, value in days.items() if value}
        named = ", ".join(f"history.{key}={value:g}" for key, value in given.items())
        if given and not time_resolution.has_clock:
            raise UserError(
                f"{named} with data.time={time_resolution}: expected none of it, or timestamps in seconds or days"
            )
        if self.targets_since and not time_resolution.has_order:
            raise UserError(f"history.targets_since={self.targets_since:g} with data.time=none: expected 0")
        if self.gap_days and not predict_first:
            raise UserError(f"{named}: expected history.predict_first=true with a gap, found false")
        if self.order == "random" and (self.gap_days or self.window_days):
            raise UserError(f"{named}: expected history.order=time with it, found random")


class TargetWeights:
    """What each training event counts as a target: its age and its action together.

    Args:
        dataset: events, with time in seconds or days if age counts.
        objective: half-life, first target and weights of actions.

    Raises:
        UserError: weights of a column or value that is not there, or that is no category; no number of 0 or more.
    """

    def __init__(self, dataset: PreparedDataset, objective: Objective) -> None:
        self._dataset = dataset
        self._half_life = None if objective.half_life_days is None else objective.half_life_days * DAY
        self._tables = [_table(dataset, name, weights) for name, weights in objective.action_weights.items()]
        self._since = dataset.training_time(objective.targets_since) if objective.targets_since else None
        if self._half_life is not None:
            last = dataset.train_end[dataset.train_end > dataset.offsets[:-1]] - 1
            self._newest = int(np.asarray(dataset.time[last]).max(initial=0))

    def __call__(self, positions: Indices) -> Tensor | None:
        """Weights float32 [P] of the events at `positions`; None where all count alike."""
        if self._half_life is None and self._since is None and not self._tables:
            return None
        weight = np.ones(len(positions))
        if self._half_life is not None:
            # Bounded, so that a batch of old targets alone still weighs something.
            age = (self._newest - np.asarray(self._dataset.time[positions])) / self._half_life
            weight *= np.exp2(-np.minimum(age, 60.0))
        if self._since is not None:
            weight *= np.asarray(self._dataset.time[positions]) >= self._since
        for codes, table in self._tables:
            weight *= table[codes[positions]]
        return torch.from_numpy(weight.astype(np.float32))


def _table(
    dataset: PreparedDataset, name: str, weights: Mapping[str, float]
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.float64]]:
    """Codes of the column, and the weight of each code."""
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
    codes = {_named(value): code for code, value in enumerate(vocabulary.to_pylist(), FIRST_CODE)}
    table = np.ones(feature.size)
    for value, weight in weights.items():
        if _named(value) not in codes:
            raise UserError(f"{place}.{value}: no training event has it{nearest(_named(value), codes)}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight >= 0:
            raise UserError(f"{place}.{value}: found {weight}, expected a number of 0 or more")
        table[codes[_named(value)]] = weight
    return column.values, table


def _named(value: object) -> str:
    """A value as configurations write it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def num_older(times: Indices, window: Indices, gap: int) -> Indices:
    """For each event, how many of its window's are older by `gap` at least; both [n], windows ascending, then times."""
    since = times - times.min(initial=0)
    span = since.max(initial=0) + 1
    keys = window * span + since
    starts = np.searchsorted(window, window)
    older = np.searchsorted(keys, window * span + np.maximum(since - gap, -1), side="right")
    return np.asarray(np.maximum(older - starts, 0))
