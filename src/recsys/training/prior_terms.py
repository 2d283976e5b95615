"""Item priors of the targets and candidates of a training step, and the mask of items that were not born yet."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from recsys.core.columns import ragged_positions
from recsys.core.index_time import DAY
from recsys.data.dataset import NO_BIRTH, PreparedDataset
from recsys.data.recency import recency_states
from recsys.models.priors import ItemPriors, PriorTerms

# Targets within so many seconds share a row of the table. A candidate that is born within them is not masked.
_GROUP = DAY // 4
# Numbers that the recency states of all moments may hold; 256 MB.
_MOST_NUMBERS = 64_000_000
# Longest time between two moments whose states are kept, in days, unless memory allows no more.
_MOST_MOMENTS = 1000
UNBORN = -1e4
# Steps, targets and candidates of a step, and learning rate when the priors are fitted without towers.
_ALONE_STEPS, _ALONE_ROWS, _ALONE_RATE = 120, 512, 0.03


class TrainingPriors:
    """Computes `PriorTerms` for the steps of a training.

    The recency of a target is the state some days before it, because an index is some days old when it is asked. The
    number of days is drawn for each step.

    Args:
        dataset: births and training events.
        priors: learned functions; None to mask unborn items only.
        lag_days: highest age of the states.
    """

    def __init__(self, dataset: PreparedDataset, priors: ItemPriors | None, *, lag_days: float = 0.0) -> None:
        self.priors, self.lag = priors, lag_days * DAY
        self.origin, until = _training_times(dataset)
        born = None if dataset.born is None else torch.from_numpy(np.array(dataset.born))
        # float32 holds the seconds since the first training event to within a minute for a dozen years.
        self.born = None
        if born is not None:
            self.born = torch.where(born == NO_BIRTH, torch.nan, (born - self.origin).double() / DAY).float()
        self.states: Tensor | None = None
        if priors is not None and priors.half_lives_days:
            columns = len(priors.half_lives_days) + 1
            most = max(1, min(_MOST_MOMENTS, _MOST_NUMBERS // (columns * (dataset.num_items + 1))))
            days = (until - self.origin) // DAY + 1
            self.step = -(-days // most)
            times = until - DAY * self.step * np.arange(days // self.step + 1, dtype=np.int64)[::-1]
            self.times = torch.from_numpy(times.copy())
            self.states = torch.from_numpy(recency_states(dataset, times, priors.half_lives_days))

    def fit_alone(self, dataset: PreparedDataset, seed: int) -> None:
        """Fit the priors without towers, unless they are fitted already.

        Towers learn in a few epochs, in which the few numbers of the priors move too little, and a popularity that the
        priors do not explain goes into embeddings, where it stays as it was in training. The loss is a softmax over
        uniformly drawn items.

        Args:
            dataset: training events.
            seed: seed of the draws.
        """
        priors = self.priors
        if priors is None or any(bool(parameter.any()) for parameter in priors.parameters()):
            return
        rng = np.random.default_rng(seed)
        positions = ragged_positions(dataset.offsets[:-1], dataset.train_end - dataset.offsets[:-1])
        items, time = np.asarray(dataset.item_idx)[positions], np.asarray(dataset.time)[positions]
        optimizer = torch.optim.Adam(priors.parameters(), lr=_ALONE_RATE)
        generator = torch.Generator().manual_seed(seed)
        num_candidates = min(_ALONE_ROWS, dataset.num_trained)
        correction = math.log(dataset.num_trained / num_candidates)
        with torch.enable_grad():
            for step in range(_ALONE_STEPS):
                rows = rng.integers(0, len(items), min(_ALONE_ROWS, len(items)))
                candidates = torch.from_numpy(rng.integers(1, dataset.num_trained + 1, num_candidates))
                target_idx = torch.from_numpy(items[rows].astype(np.int64))
                terms = self.terms(torch.from_numpy(time[rows]), target_idx, candidates, generator=generator)
                others = (terms.table + correction).logsumexp(1)[terms.group]
                loss = torch.nn.functional.softplus(others - terms.positive).mean()
                optimizer.param_groups[0]["lr"] = _ALONE_RATE * (1 - step / _ALONE_STEPS)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        priors.zero_grad()

    def terms(self, time: Tensor, target_idx: Tensor, candidates: Tensor, *, generator: torch.Generator) -> PriorTerms:
        """Return the priors of a step.

        Args:
            time: int64 [P], time of each target.
            target_idx: int64 [P].
            candidates: int64 [C], item_idx.
            generator: draws the age of the states.
        """
        device = time.device
        groups, group = torch.unique(torch.div(time, _GROUP, rounding_mode="floor"), return_inverse=True)
        begins = groups * _GROUP
        table = torch.zeros(len(groups), len(candidates), device=device)
        positive = torch.zeros(len(time), device=device)
        if self.states is not None and self.priors is not None:
            lag = float(torch.rand((), generator=generator, device=device)) * self.lag
            moments = self.times.to(device)
            place = torch.searchsorted(moments, (begins - int(lag)).contiguous(), right=True).sub_(1).clamp_(min=0)
            places, of_group = torch.unique(place, return_inverse=True)
            states = self.states[places.to(self.states.device)]
            by_moment = self.priors.of_states(states[:, candidates.to(states.device)].to(device))
            table = table + by_moment[of_group]
            own = states[of_group.to(states.device)[group.to(states.device)], target_idx.to(states.device)].to(device)
            positive = positive + self.priors.of_states(own)
        if self.born is not None:
            born = self.born.to(device)
            begin_days = ((begins - self.origin).double() / DAY).float().unsqueeze(1)
            days = begin_days - born[candidates]
            if self.priors is not None and self.priors.age is not None:
                table = table + self.priors.of_ages(days)
                positive = positive + self.priors.of_ages(begin_days.squeeze(1)[group] - born[target_idx])
            table = table.masked_fill(days <= -_GROUP / DAY, UNBORN)
        return PriorTerms(table, group, positive)


def _training_times(dataset: PreparedDataset) -> tuple[int, int]:
    has = dataset.train_end > dataset.offsets[:-1]
    first = np.asarray(dataset.time)[dataset.offsets[:-1][has]]
    return int(first.min()), int(dataset.train_until or first.max())
