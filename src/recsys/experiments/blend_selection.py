"""Choice of a blend: the selected runs whose weighted logits add up to a better model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from recsys.core.io import atomic_file
from recsys.experiments.assembly import build_towers, open_data, target_sampling_of
from recsys.experiments.baseline_check import best_half_life
from recsys.experiments.blend_validation import MOST_USERS, BlendValidation, place_unknown_items
from recsys.experiments.level_fit import Level
from recsys.experiments.run_folder import RunFolder
from recsys.experiments.trained_run import load_weights, read_checkpoint
from recsys.training.frequency import prior_shift

# Shares of the logits that a further member may get, and the distance of the two that are tried beside the best.
SHARES, BESIDE = (0.25, 0.5, 0.75), 0.125
# Relative gain in the metric that a further member must bring, because it costs time at every request; also a shift.
LEAST_GAIN = 0.01
NO_SHIFT = {"weight": 0.0, "half_life_days": 60.0, "power": 1.0}
# Weight, power. The last one ranks nearly as popularity does, so a blend is not worse than the popularity in it.
SHIFTS = ((0.5, 1.0), (1.0, 1.0), (1.0, 2.0), (1.0, 4.0), (1.0, 16.0))


class BlendChoice(NamedTuple):
    """A chosen blend; it consists of one run if no other improves it.

    Attributes:
        weights: weight of each run's logits; the weights add up to 1.
        prior_shift: `model.prior_shift` of the blend, with weight 0 for none.
        metrics: `val/*` of the blend for all validation users.
        new_items_offset: `model.new_items_offset` of the blend.
        new_items_scale: `model.new_items_scale` of the blend. If it or the offset says anything, the members have none.
    """

    weights: dict[str, float]
    prior_shift: dict[str, float]
    metrics: dict[str, float]
    new_items_offset: float = 0.0
    new_items_scale: float = 1.0

    @property
    def is_one_run(self) -> bool:
        """True if the choice is the best run alone, without a prior shift."""
        return len(self.weights) == 1 and not self.prior_shift["weight"]


def choose_blend(
    configs: Mapping[str, DictConfig],
    runs: Mapping[str, RunFolder],
    *,
    metric: str,
    fits_level: bool = True,
    most_users: int = MOST_USERS,
) -> BlendChoice:
    """Choose a blend by greedy forward selection on validation (Caruana et al. 2004, section 2).

    The best run comes first, then every run that improves the blend. The scale and the offset of new items are fitted
    anew for each blend that is tried, because the levels of the members' logits differ.

    If the data has times in days or seconds, the best run is the one that is best with a prior shift towards recent
    popularity, where that improves it; other members join it with its shift, and other shifts are tried at the end. The
    half-life is the one that is best for popularity alone over several origins. One validation part would choose the
    half-life that suits the few items that are popular when it begins.

    With `evaluation.rolling`, every event is a request too. Of the blends that were tried and are not significantly
    worse than the best, the choice is then the one whose metric is best with each validation event as a request.

    Args:
        configs: configurations of the runs by name, all of one data set.
        runs: selected runs by name.
        metric: validation metric; more is better.
        fits_level: whether a blend has a scale and an offset of new items, in place of those of its members.
        most_users: size of the sample of validation users.
    """
    best = max(runs, key=lambda name: runs[name].metrics[metric])
    validation = BlendValidation(next(iter(configs.values())), fits_level=fits_level, most_users=most_users)
    none = BlendChoice({best: 1.0}, NO_SHIFT, runs[best].metrics)
    for name, config in configs.items():
        validation.add(name, config, run=runs[name])
    if best not in validation.embedded:
        return none
    shifts = _Shifts(validation, configs, metric=metric)
    scored = {
        name: shifts.best({name: 1.0}, NO_SHIFT)
        for name in sorted(validation.embedded, key=lambda name: -runs[name].metrics[metric])
    }
    first = max(scored, key=lambda name: scored[name][1])
    weights = {first: 1.0}
    shift, score = scored.pop(first)
    tried = []
    for name in sorted(scored, key=lambda name: -scored[name][1]):
        scores = {share: shifts.score(_with_member(weights, name, share=share), shift) for share in SHARES}
        middle = max(scores, key=lambda share: scores[share])
        for share in (middle - BESIDE, middle + BESIDE):
            scores[share] = shifts.score(_with_member(weights, name, share=share), shift)
        tried += [_with_member(weights, name, share=share) for share in scores]
        share = max(scores, key=lambda share: scores[share])
        if _gains(scores[share], score):
            weights, score = _with_member(weights, name, share=share), scores[share]
    if len(weights) > 1:
        shift, _ = shifts.best(weights, shift)
    if len(validation.events):
        weights = _best_for_events(shifts, weights, shift, others=tried)
    chosen = BlendChoice(weights, shift, none.metrics)
    if chosen.is_one_run:
        # It keeps its own level, so its own metric says which run is best.
        return none
    bias = shifts.bias(shift, weights)
    metrics, level = validation.measure(weights, bias), validation.level(weights, bias)
    return chosen._replace(metrics=metrics, new_items_offset=level.offset, new_items_scale=level.scale)


class _Shifts:
    """Prior shifts that a blend may have: those of `SHIFTS`, if the data has times in days or seconds."""

    def __init__(self, validation: BlendValidation, configs: Mapping[str, DictConfig], *, metric: str) -> None:
        self.validation, self.metric, self.grid = validation, metric, list[dict[str, float]]()
        self._targets = {name: target_sampling_of(config) for name, config in configs.items()}
        self._known: dict[tuple[str, float, float], Tensor] = {}
        if validation.dataset.meta.time_resolution.has_clock:
            days = float(best_half_life(validation.config, validation.dataset))
            self.grid = [{"weight": weight, "half_life_days": days, "power": power} for weight, power in SHIFTS]

    def score(self, weights: Mapping[str, float], shift: Mapping[str, float]) -> float:
        """Return the metric of a blend with a shift."""
        return self.validation.score(weights, self.bias(shift, weights), metric=self.metric)

    def best(self, weights: Mapping[str, float], given: Mapping[str, float]) -> tuple[dict[str, float], float]:
        """Return the best shift of a blend and the metric, or the given shift if none gains enough over it."""
        before = self.score(weights, given)
        found = dict(given), before
        for shift in self.grid:
            score = self.score(weights, shift)
            if _gains(score, before) and score > found[1]:
                found = shift, score
        return found

    def bias(self, shift: Mapping[str, float], weights: Mapping[str, float]) -> Tensor | None:
        """Return the addition of a shift to the logits. It depends on how the heaviest member weights its targets."""
        if not shift["weight"]:
            return None
        heaviest = max(weights, key=lambda name: weights[name])
        key = heaviest, shift["half_life_days"], shift["power"]
        if key not in self._known:
            self._known[key] = prior_shift(
                self.validation.dataset, key[1], target_sampling=self._targets[heaviest], power=key[2]
            )
        return self._known[key].mul(shift["weight"]).float()


def _best_for_events(
    shifts: _Shifts, best: dict[str, float], shift: Mapping[str, float], *, others: Sequence[dict[str, float]]
) -> dict[str, float]:
    """Return the weights that are best with each event as a request, of those not significantly worse than the best."""
    validation, metric = shifts.validation, shifts.metric
    most = validation.user_scores(best, shifts.bias(shift, best), metric=metric)
    if most is None:
        return best
    score = validation.rolling_score(best, shifts.bias(shift, best), metric=metric)
    found = best, score
    for weights in others:
        bias = shifts.bias(shift, weights)
        scores = validation.user_scores(weights, bias, metric=metric)
        if scores is None or scores.is_worse_than(most):
            continue
        rolling = validation.rolling_score(weights, bias, metric=metric)
        if _gains(rolling, score) and rolling > found[1]:
            found = weights, rolling
    return found[0]


def _gains(score: float, before: float) -> bool:
    return score > before and score >= before * (1 + LEAST_GAIN)


def _with_member(weights: Mapping[str, float], name: str, *, share: float) -> dict[str, float]:
    return {other: (1 - share) * weight for other, weight in weights.items()} | {name: share}


def blend_config(
    configs: Mapping[str, DictConfig],
    weights: Mapping[str, float],
    *,
    prior_shift: Mapping[str, float],
    level: Level,
) -> DictConfig:
    """Return the configuration of a blend.

    It is that of the member with the largest weight, with the configurations of all members and their longest history.

    Args:
        configs: configurations of the runs by name.
        weights: weight of each member's logits.
        prior_shift: `model.prior_shift` of the blend.
        level: level of the logits of new items, in place of those of the members; `Level()` leaves these as they are.
    """
    heaviest = max(weights, key=lambda name: weights[name])
    if level != Level():
        configs = {name: Level().write(configs[name]) for name in weights}
    config = OmegaConf.create(OmegaConf.to_container(configs[heaviest], resolve=True))
    assert isinstance(config, DictConfig)
    config.history.max_events = max(configs[name].history.max_events for name in weights)
    config.model.prior_shift = dict(prior_shift)
    config = level.write(config)
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
        place_unknown_items(model)
        steps += read_checkpoint(best).steps
        state |= {f"model.models.{number}.{key}": value for key, value in model.state_dict().items()}
    with atomic_file(path) as aside:
        torch.save({"state_dict": state, "global_step": steps}, aside)
