"""Level of the logits of items without training events, fitted by maximum likelihood on validation.

Training never compares an item without training events with others, so the level of its logits and their spread are
arbitrary. On validation some of these items are chosen. The choices are modelled by a softmax over the items that could
be chosen, with logits `b * s` for trained items and `a * s + d` for new ones, where s are the logits of the model. The
log-likelihood is concave in (b, a, d). Division by b leaves every ranking as it is, so new items get the scale `a / b`
and the offset `d / b`, and others keep their logits.

Shapes: R requests, C candidates, D dim.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from recsys.core.columns import Ragged
from recsys.core.types import Int64Array
from recsys.data.dataset import Requests

# Standard deviations of the normal priors, which decide if few choices are new: of d around 0, of a / b around 1, and
# of b around 1.
OFFSET_DEVIATION, SCALE_DEVIATION, ALL_DEVIATION = 1.0, 0.25, 1.0
# Standard deviation of the calibrated logits of a request, `b s`, below which they are taken as they are.
LEAST_SPREAD = 0.5
# Bounds of the scale.
LEAST_SCALE, MOST_SCALE = 0.25, 4.0
# Most Newton steps of a fit, and the gain of a step in the log-likelihood of a choice below which it ends.
MOST_STEPS, LEAST_GAIN = 30, 1e-6
# Most logits of a fit that stay in memory; with more of them each step computes them again, block by block.
MOST_KEPT = 20_000_000
_BLOCK = 1 << 24


class Choices(NamedTuple):
    """Choices on validation.

    Attributes:
        requests: sample of the validation requests.
        rows: rows of the sample among all validation requests, int64 [R].
        candidates: item_idx of the candidates, int64 [C]: items with training events, then new items that could be
            chosen, see `_could_be_chosen`.
        num_trained: number of candidates with training events.
        chosen: items that each request chose, as rows of `candidates`.
        seen: items that each request does not get, as rows of `candidates`.
    """

    requests: Requests
    rows: Int64Array
    candidates: Int64Array
    num_trained: int
    chosen: Ragged
    seen: Ragged

    @property
    def num_new(self) -> int:
        """Number of choices of new items."""
        return int((self.chosen.values >= self.num_trained).sum())


class Level(NamedTuple):
    """Level of the logits of new items: they are `scale * s + offset`, where s are the logits of the model."""

    scale: float = 1.0
    offset: float = 0.0

    def write(self, config: DictConfig) -> DictConfig:
        """Return a copy of the configuration of a model or blend with this level."""
        config = copy.deepcopy(config)
        config.model.new_items_scale, config.model.new_items_offset = self
        return config


@torch.inference_mode()
def fit_level(choices: Choices, users: Tensor, items: Tensor, *, scale: float | None = None) -> Level:
    """Return the level with the highest posterior probability.

    Args:
        choices: choices on validation.
        users: embeddings of the requests, [R, D], or [R, M, D], of which the best counts.
        items: embeddings of the candidates, [C, D], whose inner products with the users are logits.
        scale: the scale, if it is given; None to fit it too.
    """
    height = max(_BLOCK // len(items), 1)
    starts = range(0, len(users), height)
    kept = None
    if len(users) * len(items) <= MOST_KEPT:
        kept = [best_logits(users[begin : begin + height], items) for begin in starts]

    def blocks() -> Iterator[Tensor]:
        return iter(kept) if kept is not None else (best_logits(users[s : s + height], items) for s in starts)

    def fit(basis: Tensor, begin: Tensor, prior: _Prior, origin: Tensor | float = 0.0) -> list[float]:
        x = _maximise(lambda x: _posterior(choices, blocks(), at=origin + basis @ x, prior=prior), begin, basis)
        found: list[float] = (origin + basis @ x).tolist()
        return found

    # First with one scale for all items, because the prior of the other scale is relative to it.
    fixed = 1.0 if scale is None else scale
    together = torch.tensor([[1.0, 0.0], [fixed, 0.0], [0.0, 1.0]], dtype=torch.float64)
    b, a, d = fit(together, torch.zeros(2, dtype=torch.float64), _Prior(fixed, 1.0))
    spread = float(next(blocks()).double().std(1, correction=0).mean()) if len(users) else 0.0
    if scale is None and b * spread >= LEAST_SPREAD:
        begin = torch.tensor([b, a, d], dtype=torch.float64)
        b, a, d = fit(torch.eye(3, dtype=torch.float64), begin, _Prior(1.0, SCALE_DEVIATION * b))
    if b * spread < LEAST_SPREAD:
        # The model ranks hardly better than chance. A division by b would move new items beyond all others.
        offset_alone = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)
        given = torch.tensor([1.0, fixed, 0.0], dtype=torch.float64)
        *_, d = fit(offset_alone, torch.zeros(1, dtype=torch.float64), _Prior(fixed, 1.0), given)
        return Level(fixed, round(d, 4))
    if scale is None and not LEAST_SCALE <= a / b <= MOST_SCALE:
        # The offset depends on the scale.
        return fit_level(choices, users, items, scale=min(max(a / b, LEAST_SCALE), MOST_SCALE))
    return Level(round(a / b, 4), round(d / b, 4))


class _Prior(NamedTuple):
    """Normal prior of a around `scale * b`, beside those of b and d."""

    scale: float
    deviation: float


class _Value(NamedTuple):
    """Log posterior probability of (b, a, d) for each choice, with its derivatives; float64 [], [3] and [3, 3]."""

    value: float
    gradient: Tensor
    hessian: Tensor


def _maximise(function: Callable[[Tensor], _Value], begin: Tensor, basis: Tensor) -> Tensor:
    """Return the maximum of a concave function of `basis @ x` by Newton's method, whose steps are halved if need be."""
    x, found = begin, function(begin)
    for _ in range(MOST_STEPS):
        step = torch.linalg.solve(basis.T @ found.hessian @ basis, basis.T @ found.gradient)
        share = 1.0
        while (tried := function(x - share * step)).value < found.value and share > 1e-3:
            share /= 2
        gain = tried.value - found.value
        if gain > 0:
            x, found = x - share * step, tried
        if gain < LEAST_GAIN:
            break
    return x


def _posterior(choices: Choices, blocks: Iterable[Tensor], *, at: Tensor, prior: _Prior) -> _Value:
    """Return the log posterior probability of (b, a, d) `at`, from blocks of logits [H, C] of successive requests.

    With P, the probability that a choice is new, and the means E_t and E_n over the trained and the new candidates, a
    request has the expectations `(1 - P) E_t[s]`, `P E_n[s]` and `P` of the three statistics whose sums over the chosen
    items the likelihood depends on. The second derivatives are their negative covariances.
    """
    value, gradient, hessian = 0.0, torch.zeros(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    begin = 0
    for logits in blocks:
        block = _block(choices, logits, begin=begin, at=at)
        value, gradient, hessian = value + block.value, gradient + block.gradient, hessian + block.hessian
        begin += len(logits)
    # Precisions of b - 1, of a - scale * b, and of d.
    for direction, middle, deviation in (
        ((1.0, 0.0, 0.0), 1.0, ALL_DEVIATION),
        ((-prior.scale, 1.0, 0.0), 0.0, prior.deviation),
        ((0.0, 0.0, 1.0), 0.0, OFFSET_DEVIATION),
    ):
        vector = torch.tensor(direction, dtype=torch.float64)
        distance = float(vector @ at) - middle
        value -= distance**2 / (2 * deviation**2)
        gradient = gradient - vector * distance / deviation**2
        hessian = hessian - torch.outer(vector, vector) / deviation**2
    every = max(len(choices.chosen.values), 1)
    return _Value(value / every, gradient / every, hessian / every)


def _block(choices: Choices, logits: Tensor, *, begin: int, at: Tensor) -> _Value:
    """Return the log-likelihood of the requests from `begin` on, with its derivatives."""
    end = begin + len(logits)
    row, column = _cells(choices.chosen, begin, end)
    chosen = logits[row, column]
    b, a, d = at.tolist()
    hidden_row, hidden = _cells(choices.seen, begin, end)
    parts, masses = [], []
    for scale, first, last in ((b, 0, choices.num_trained), (a, choices.num_trained, logits.shape[1])):
        some = logits[:, first:last]
        inside = (hidden >= first) & (hidden < last)
        scaled = some * scale
        scaled[hidden_row[inside], hidden[inside] - first] = -torch.inf
        # A request whose candidates of one kind are all in its history has no mass there.
        most = scaled.amax(1, keepdim=True).nan_to_num(neginf=0.0)
        weights = scaled.sub_(most).exp_()
        total = weights.sum(1)
        moments = [torch.linalg.vecdot(weights, values) / total for values in (some, some.square())]
        parts.append([moment.nan_to_num().double().cpu() for moment in moments])
        masses.append((most[:, 0] + total.log()).double().cpu())
    (trained, trained_2), (new, new_2) = parts
    is_new = torch.from_numpy(choices.chosen.values[choices.chosen.offsets[begin] : choices.chosen.offsets[end]]) >= (
        choices.num_trained
    )
    number = torch.from_numpy(np.diff(choices.chosen.offsets[begin : end + 1])).double()
    p = torch.sigmoid(masses[1] + d - masses[0]).nan_to_num()
    every = torch.logaddexp(masses[0], masses[1] + d)
    chosen = chosen.double().cpu()
    sums = torch.stack([chosen[~is_new].sum(), chosen[is_new].sum(), is_new.sum().double()])
    means = torch.stack([(1 - p) * trained, p * new, p])
    second_moments = torch.zeros(3, 3, len(p), dtype=torch.float64)
    second_moments[0, 0], second_moments[1, 1], second_moments[2, 2] = (1 - p) * trained_2, p * new_2, p
    second_moments[1, 2] = second_moments[2, 1] = p * new
    covariance = second_moments - means.unsqueeze(0) * means.unsqueeze(1)
    value = float(sums @ at) - float((number * every).nan_to_num(neginf=0.0).sum())
    return _Value(value, sums - means @ number, -(covariance @ number))


def _cells(items: Ragged, begin: int, end: int) -> tuple[Tensor, Tensor]:
    """Return the rows, counted from `begin`, and the columns of the items of the requests `begin` to `end`."""
    offsets = items.offsets[begin : end + 1]
    row = torch.from_numpy(np.repeat(np.arange(end - begin), np.diff(offsets)))
    return row, torch.from_numpy(items.values[offsets[0] : offsets[-1]].astype(np.int64))


def best_logits(users: Tensor, items: Tensor) -> Tensor:
    """Return the inner products [R, C] of requests [R, D], or of the best embedding of each [R, M, D], with items."""
    if users.ndim == 2:
        return users @ items.T
    logits = (users @ items.T).masked_fill_(~users.any(2, keepdim=True), -torch.inf).amax(1)
    return torch.where(logits == -torch.inf, 0.0, logits)
