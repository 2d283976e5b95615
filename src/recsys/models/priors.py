"""Item priors: what the age of an item and its recent popularity add to its logits, whoever the user is.

A birth date as a feature would teach that items born late are unpopular, because they had less time to collect events.
So the priors read the age at the time of an event (Covington et al. 2016, section 3.3, feed the age of the example),
and popularity relative to that of an average item in the time in which the item could be shown.

Shapes: N items, S moments, G groups of targets, P targets, C candidates, F recency columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from recsys.core.errors import UserError
from recsys.core.index_time import DAY, IndexTime
from recsys.core.types import Int64Array
from recsys.data.dataset import NO_BIRTH, PreparedDataset
from recsys.data.recency import recency_states

# Ages are read from a table at log2(1 + days) = 0, 1/8, 2/8, ...; the learned function is linear between whole numbers.
_PARTS = 8
_KNOTS = 13
# Learned numbers are multiplied by it, because they are few and must move farther than weights.
_SPEED = 5.0
# Moments of a horizon at which ages are read.
_MOMENTS = 16
# Logit of an item that is not born before the end of the horizon.
UNBORN = -30.0


class ItemPriors(nn.Module):
    """Learned functions of an item's age and of its recent popularity.

    Args:
        reads_age: learn a function of the age. Items without a birth have a learned constant.
        half_lives_days: half-lives of the recency terms, see `recency_states`; none for no recency.
    """

    def __init__(self, *, reads_age: bool, half_lives_days: Sequence[float] = ()) -> None:
        super().__init__()
        if any(not days > 0 for days in half_lives_days):
            raise UserError(f"model.priors.half_lives_days: found {list(half_lives_days)}, expected positive numbers")
        self.half_lives_days = tuple(half_lives_days)
        # The last entry is that of items without a birth.
        self.age = nn.Parameter(torch.zeros(_KNOTS + 1)) if reads_age else None
        self.recency = nn.Parameter(torch.zeros(len(self.half_lives_days) + 1)) if self.half_lives_days else None

    def of_ages(self, days: Tensor) -> Tensor:
        """Return the logits of ages in days, of any shape; those of nan are the constant of items without a birth."""
        assert self.age is not None
        knots = self.age[:-1] * _SPEED
        steps = torch.arange(_PARTS, device=knots.device) / _PARTS
        between = knots[:-1, None] * (1 - steps) + knots[1:, None] * steps
        table = torch.cat([between.flatten(), knots[-1:], self.age[-1:] * _SPEED])
        is_known = ~torch.isnan(days)
        place = torch.log2(1 + torch.nan_to_num(days).clamp(min=0)).mul_(_PARTS).round_().long()
        place = torch.where(is_known, place.clamp(max=_PARTS * (_KNOTS - 1)), len(table) - 1)
        return torch.nn.functional.embedding(place, table.unsqueeze(1)).squeeze(-1)

    def of_states(self, states: Tensor) -> Tensor:
        """Return the logits [...] of recency states [..., F]."""
        assert self.recency is not None
        return states @ (self.recency * _SPEED)

    @torch.no_grad()
    def item_bias(self, dataset: PreparedDataset, index_time: IndexTime) -> Tensor:
        """Return the bias of each item in an index; float32 [N + 1].

        The age term is the log mean of `exp g(age)` over the horizon, in which an item that is not born yet counts
        nothing. Recency is that of the events before `index_time.now`.
        """
        bias = torch.zeros(dataset.num_items + 1)
        if self.recency is not None:
            states = recency_states(dataset, np.array([index_time.now]), self.half_lives_days)[0]
            bias += self.of_states(torch.from_numpy(states)).cpu()
        if self.age is not None:
            assert dataset.born is not None
            bias += self.age_bias(dataset.born, index_time)
        return bias

    @torch.no_grad()
    def age_bias(self, born: Int64Array, index_time: IndexTime) -> Tensor:
        """Return the age term float32 [R] of items with the births `born`, averaged over the horizon of an index."""
        moments = index_time.now + (np.arange(_MOMENTS) + 0.5) / _MOMENTS * index_time.horizon_days * DAY
        total = torch.full((len(born),), -torch.inf)
        for moment in moments:
            days = ages(born, moment)
            logits = self.of_ages(days.to(self.age.device)).cpu() if self.age is not None else torch.zeros(len(born))
            total = torch.logaddexp(total, logits.masked_fill(days < 0, -torch.inf))
        return torch.clamp(total - np.log(_MOMENTS), min=UNBORN)


class PriorTerms(NamedTuple):
    """Item priors of the candidates of a step.

    Attributes:
        table: [G, C], logits to add; those of items that were not born yet are very low.
        group: int64 [P], row of `table` of each target.
        positive: [P], logits to add to the targets.
    """

    table: Tensor
    group: Tensor
    positive: Tensor


def ages(born: Int64Array, moment: float) -> Tensor:
    """Return ages in days at a moment, float32 [R]: negative before the birth, nan without one."""
    days = (moment - born.astype(np.float64)) / DAY
    return torch.from_numpy(np.where(born == NO_BIRTH, np.nan, days).astype(np.float32))
