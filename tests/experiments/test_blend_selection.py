"""Which runs add up to a better one, by what validation says."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from worlds import write_blend, write_run, write_world

from recsys.data.batches.loaders import RequestLoader
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import ModelRanker, evaluate
from recsys.evaluation.relevance import relevant_items, rolling_requests
from recsys.experiments import blend_selection as blending
from recsys.experiments import blend_validation
from recsys.experiments.assembly import target_sampling_of
from recsys.experiments.blend_selection import choose_blend
from recsys.experiments.level_fit import Level
from recsys.experiments.trained_run import load_run, stored_config
from recsys.training.frequency import prior_shift

METRIC = "val/recall@10"
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("blending")
    root = write_world(base / "data")
    return {name: write_run(base / name, root, "user_tower=mean", seed=n) for n, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def temporal(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base, root = tmp_path_factory.mktemp("temporal"), Path(stored_config(folders["a"]).data.root)
    return {name: write_run(base / name, root, "user_tower=mean", "split=temporal", seed=0) for name in "ab"}


def choose(folders: dict[str, Path], scores: dict[str, float]) -> blending.BlendChoice:
    runs: dict[str, Any] = {
        name: SimpleNamespace(checkpoints=folders[name] / "checkpoints", metrics={METRIC: score})
        for name, score in scores.items()
    }
    return choose_blend({name: stored_config(folders[name]) for name in scores}, runs, metric=METRIC)


def fake(monkeypatch: pytest.MonkeyPatch, measure: Callable[..., float]) -> list[tuple[dict[str, float], bool]]:
    """What was asked of validation, (weights, whether with a bias), where `measure` answers."""
    asked = []

    def scored(_: object, weights: dict[str, float], bias: object = None, *, metric: str) -> float:
        assert metric == METRIC
        asked.append((weights, bias is not None))
        return measure(weights, bias, False)

    monkeypatch.setattr(blending.BlendValidation, "score", scored)
    monkeypatch.setattr(blending.BlendValidation, "measure", lambda _, *blend: {METRIC: measure(*blend, True)})
    monkeypatch.setattr(blending, "best_half_life", lambda *_: 7)
    return asked


def test_members_join_by_their_gain(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(weights: dict[str, float], bias: torch.Tensor | None, everyone: bool) -> float:
        if everyone:
            return 0.45
        if len(weights) == 1:
            return {"a": 0.3, "b": 0.32, "c": 0.1}[next(iter(weights))]
        if bias is not None or "c" in weights:
            # Half a percent more than the blend of two: not worth a third tower, nor a shift.
            return 0.4 * 1.005
        return {0.25: 0.35, 0.375: 0.4, 0.5: 0.39, 0.625: 0.2, 0.75: 0.2}[weights["a"]]

    asked = fake(monkeypatch, measure)
    chosen = choose(folders, {"a": 0.3, "c": 0.1, "b": 0.32})
    assert chosen.weights == {"b": 0.625, "a": 0.375}
    assert chosen.prior_shift["weight"] == 0
    assert not chosen.is_one_run
    assert chosen.metrics == {METRIC: 0.45}
    # Every run with every shift, then the next best with three shares and those beside the best of them, then the last.
    alone = [{name: 1.0} for name in ("b", "a", "c") for _ in (None, *blending.SHIFTS)]
    assert [weights for weights, _ in asked[: len(alone)]] == alone
    assert [weights for weights, _ in asked[len(alone) : len(alone) + 10]] == [
        *({"b": 1 - share, "a": share} for share in (0.25, 0.5, 0.75, 0.375, 0.625)),
        *(
            {"b": 0.625 * (1 - share), "a": 0.375 * (1 - share), "c": share}
            for share in (0.25, 0.5, 0.75, 0.125, 0.375)
        ),
    ]
    # The shift is tried again for the blend.
    assert sum(biased for _, biased in asked) == 4 * len(blending.SHIFTS)


def test_the_first_member_is_best_with_its_shift(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    shifts = []

    def measure(weights: dict[str, float], bias: torch.Tensor | None, everyone: bool) -> float:
        if everyone:
            return 0.6
        if len(weights) > 1:
            return 0.1
        if "a" in weights:
            return 0.5
        shifts.append(bias)
        # The second of the grid is the best. The third gains less.
        return {1: 0.4, 3: 0.55, 4: 0.54}.get(len(shifts), 0.4)

    fake(monkeypatch, measure)
    chosen = choose(folders, {"a": 0.5, "b": 0.4})
    assert chosen.weights == {"b": 1.0}
    assert chosen.metrics == {METRIC: 0.6}
    # Weight 1 and power 1, with the half-life of the best popularity.
    assert chosen.prior_shift == {"weight": 1.0, "half_life_days": 7.0, "power": 1.0}
    dataset = load_run(folders["b"]).dataset
    assert shifts[0] is None
    for bias, (weight, power) in zip(shifts[1:], blending.SHIFTS, strict=True):
        torch.testing.assert_close(bias, prior_shift(dataset, 7.0, power=power).mul(weight).float())


def test_a_shift_that_gains_less_than_a_member_must_is_left_out(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, lambda weights, bias, _: (0.5 if bias is None else 0.504) if len(weights) == 1 else 0.1)
    assert choose(folders, {"a": 0.5, "b": 0.4}).is_one_run


def test_the_first_of_equal_shifts_wins_and_nothing_gains_from_zero(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, lambda weights, bias, _: (0.5 if bias is None else 0.55) if len(weights) == 1 else 0.1)
    weight, power = blending.SHIFTS[0]
    shift = choose(folders, {"a": 0.5, "b": 0.4}).prior_shift
    assert shift == {"weight": weight, "half_life_days": 7.0, "power": power}
    fake(monkeypatch, lambda *_: 0.0)
    assert choose(folders, {"a": 0.0, "b": 0.0}).is_one_run


def test_the_shift_of_a_blend_follows_the_targets_of_its_heaviest_member(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = {name: stored_config(folders[name]) for name in "ab"}
    configs["b"].history.half_life_days = 0.5
    dataset, seen = load_run(folders["a"]).dataset, []
    expected = {
        name: prior_shift(dataset, 7.0, target_sampling=target_sampling_of(config)).mul(0.5).float()
        for name, config in configs.items()
    }
    assert not torch.equal(expected["a"], expected["b"])

    def measure(weights: dict[str, float], bias: torch.Tensor | None, _: bool) -> float:
        if bias is None:
            return 0.3
        seen.append(max(weights, key=lambda name: weights[name]))
        torch.testing.assert_close(bias, expected[seen[-1]])
        return 0.5 + 0.1 * weights.get("a", 0.0)

    monkeypatch.setattr(blending, "SHIFTS", ((0.5, 1.0),))
    fake(monkeypatch, measure)
    runs = {name: SimpleNamespace(checkpoints=folders[name] / "checkpoints", metrics={METRIC: 0.5}) for name in "ab"}
    choose_blend(configs, runs, metric=METRIC)
    # Both alone, and blends in which either has more weight.
    assert set(seen) == {"a", "b"}
    assert len(seen) > 3


def test_a_single_run_is_the_best_by_its_own_metric(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    # A sample of users, or an offset that a single run does not get, may say otherwise.
    fake(monkeypatch, lambda weights, *_: 0.6 if weights == {"b": 1.0} else 0.5)
    chosen = choose(folders, {"a": 0.5, "b": 0.4})
    assert chosen.weights == {"a": 1.0}
    assert chosen.metrics == {METRIC: 0.5}


def test_with_rolling_the_choice_is_best_for_events_among_the_good_ones(
    temporal: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    share = torch.full((4,), 0.25, dtype=torch.float64)

    def scores(_: object, weights: dict[str, float], *__: object, **___: object) -> blend_validation.UserScores:
        # Most of "b" loses for every user, half of it for one of four.
        lost = [0.2] * 4 if weights.get("b", 0) > 0.5 else [0.2, 0.0, 0.0, 0.0]
        values = [0.0] * 4 if "b" not in weights else lost
        return blend_validation.UserScores(0.5 - torch.tensor(values, dtype=torch.float64), share)

    fake(monkeypatch, lambda weights, *_: 0.5 if len(weights) == 1 else 0.4)
    monkeypatch.setattr(blending.BlendValidation, "user_scores", scores)
    monkeypatch.setattr(blending.BlendValidation, "rolling_score", lambda _, weights, *__, **___: weights.get("b", 0.0))
    runs = {name: SimpleNamespace(checkpoints=temporal[name] / "checkpoints", metrics={METRIC: 0.5}) for name in "ab"}
    configs = {name: stored_config(temporal[name]) for name in "ab"}
    assert choose_blend(configs, runs, metric=METRIC).weights == {"a": 1.0}
    for config in configs.values():
        config.evaluation.rolling = True
    assert choose_blend(configs, runs, metric=METRIC).weights == {"a": 0.5, "b": 0.5}


def test_significantly_worse_is_by_the_paired_standard_error() -> None:
    def scores(*values: float) -> blend_validation.UserScores:
        shares = torch.tensor([0.4, 0.3, 0.3], dtype=torch.float64)
        return blend_validation.UserScores(torch.tensor(values, dtype=torch.float64), shares)

    best = scores(0.5, 0.5, 0.5)
    assert best.mean == pytest.approx(0.5)
    assert not best.is_worse_than(best)
    # A mean loss of .04; the standard error is sqrt((.4 * .06)^2 + 2 * (.3 * .04)^2) = .029.
    assert not scores(0.4, 0.5, 0.5).is_worse_than(best)
    # The same loss of every user has no error.
    assert scores(0.46, 0.46, 0.46).is_worse_than(best)
    # A mean loss of .07, an error of sqrt((.4 * .03)^2 + (.3 * .03)^2 + (.3 * .07)^2) = .026: 2.7 of them.
    assert scores(0.4, 0.4, 0.5).is_worse_than(best)
    assert not best.is_worse_than(scores(0.4, 0.4, 0.5))


def test_the_best_run_stays_alone_if_no_other_improves_it(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, lambda *_: 0.5)
    chosen = choose(folders, {"a": 0.99, "b": 0.98})
    assert chosen.is_one_run
    assert chosen.weights == {"a": 1.0}
    assert chosen.metrics == {METRIC: 0.99}


def test_a_blend_is_measured_as_runs_are(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run = load_run(folders["a"])
    metrics = RetrievalMetrics(run.dataset, len(run.corpus), keep_users=True)
    loader = RequestLoader(run.builder, run.dataset.requests("val"), batch_size=7)
    expected = evaluate(ModelRanker(run.model, run.corpus), run.dataset, part="val", batches=loader, metrics=metrics)
    # The run has no level of new items.
    validation = blending.BlendValidation(run.config, fits_level=False)
    validation.add("a", run.config, run=SimpleNamespace(checkpoints=run.path / "checkpoints"))
    found = validation.measure({"a": 2.0})
    assert found == pytest.approx({f"val/{name}": value for name, value in expected.items()})
    validation.new_users = None
    for name in ("recall@10", "coverage@10", "warm_users/recall@10"):
        assert validation.score({"a": 2.0}, metric=f"val/{name}") == pytest.approx(expected[name])
    # New users count as much as is expected.
    validation.new_users = 0.75
    monkeypatch.setattr(blend_validation, "cold_users", lambda dataset: np.arange(dataset.num_users) % 2 == 0)
    users, rows = metrics.per_user()
    new, others = rows["recall@10"][users % 2 == 0].mean(), rows["recall@10"][users % 2 == 1].mean()
    assert new != others
    assert validation.score({"a": 2.0}, metric=METRIC) == pytest.approx(float(0.75 * new + 0.25 * others))
    # A bias that outweighs everything shows one item first to everyone who has not seen it.
    relevant = relevant_items(run.dataset, "val", requests=validation.requests, exclude_seen=True)
    item = int(np.bincount(relevant.values).argmax())
    bias = torch.zeros(run.dataset.num_items + 1)
    bias[item] = 1e6
    per_user = [set(relevant.values[a:b].tolist()) for a, b in itertools.pairwise(relevant.offsets)]
    wants = [item in items for items in per_user if items]
    assert any(wants)
    assert validation.measure({"a": 1.0}, bias)["val/hit@5"] >= np.mean(wants)


def test_events_of_validation_are_measured_as_rolling_requests(
    folders: dict[str, Path], temporal: dict[str, Path]
) -> None:
    run = load_run(folders["a"])
    run.config.evaluation.rolling = True
    # One event of each user is the request that is measured already.
    assert not len(blending.BlendValidation(run.config, fits_level=False).events)
    run = load_run(temporal["a"])
    run.config.evaluation.rolling = True
    validation = blending.BlendValidation(run.config, fits_level=False)
    validation.add("a", run.config, run=SimpleNamespace(checkpoints=run.path / "checkpoints"))
    requests = rolling_requests(run.dataset, "val")
    assert len(validation.events) == len(requests.user_idx) > len(validation.users)
    metrics = RetrievalMetrics(run.dataset, len(run.corpus))
    loader = RequestLoader(run.builder, requests)
    ranker = ModelRanker(run.model, run.corpus)
    expected = evaluate(ranker, run.dataset, part="val", batches=loader, metrics=metrics, rolling=True)
    assert validation.rolling_score({"a": 1.0}, metric=METRIC) == pytest.approx(expected["recall@10"])
    # The metrics of users stay those of one request each.
    assert validation.measure({"a": 1.0})["val/num_users"] <= len(validation.users)


def test_members_that_cannot_place_new_items_join_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_world(tmp_path / "data")
    folders = {
        "ids": write_run(tmp_path / "ids", root, "user_tower=mean", "item_tower=ids", "model.similarity=dot", seed=1),
        "all": write_run(tmp_path / "all", root, "user_tower=mean", seed=2),
        "content": write_run(tmp_path / "content", root, "user_tower=mean", "item_tower=content", seed=3),
    }
    configs = {name: stored_config(folder) for name, folder in folders.items()}
    weights = {"ids": 0.5, "all": 0.3, "content": 0.2}
    validation = blending.BlendValidation(configs["ids"])
    for name, config in configs.items():
        validation.add(name, config, run=SimpleNamespace(checkpoints=folders[name] / "checkpoints"))
    dataset = validation.dataset
    assert len(validation.known) > dataset.num_trained
    # New items get the mean logit of the user from the member that cannot place them.
    embedded = validation.embedded["ids"]
    logits = embedded.users @ embedded.items.T
    is_new = torch.from_numpy(validation.known > dataset.num_trained)
    expected = logits[:, ~is_new].mean(1, keepdim=True).expand(-1, int(is_new.sum()))
    torch.testing.assert_close(logits[:, is_new], expected)
    # What the choice measures is what the finished blend gives, with the scale and the offset of the blend.
    assert validation.level(weights).offset != 0
    level = Level(1.3, -0.6)
    monkeypatch.setattr(validation, "level", lambda *_: level)
    found = validation.measure(weights)
    members = {name: (folders[name], weight) for name, weight in weights.items()}
    run = load_run(write_blend(tmp_path / "blend", members, level=level))
    assert run.corpus.tolist() == validation.known.tolist()
    metrics = RetrievalMetrics(run.dataset, len(run.corpus))
    loader = RequestLoader(run.builder, run.dataset.requests("val"))
    measured = evaluate(ModelRanker(run.model, run.corpus), run.dataset, part="val", batches=loader, metrics=metrics)
    assert found == pytest.approx({f"val/{name}": value for name, value in measured.items()})


@pytest.mark.parametrize("more", [[], ["item_tower.admission.capacity=9"]])
def test_the_best_run_without_features_is_measured_on_its_own_corpus(
    folders: dict[str, Path], tmp_path: Path, more: list[str]
) -> None:
    root = Path(stored_config(folders["a"]).data.root)
    ids = write_run(tmp_path / "ids", root, "user_tower=mean", "item_tower=ids", *more)
    run = load_run(ids)
    assert len(run.corpus) == (9 if more else run.dataset.num_trained)
    validation = blending.BlendValidation(run.config)
    validation.add("ids", run.config, run=SimpleNamespace(checkpoints=ids / "checkpoints"))
    metrics = RetrievalMetrics(run.dataset, len(run.corpus))
    loader = RequestLoader(run.builder, run.dataset.requests("val"))
    measured = evaluate(ModelRanker(run.model, run.corpus), run.dataset, part="val", batches=loader, metrics=metrics)
    found = validation.measure({"ids": 1.0})
    assert found == pytest.approx({f"val/{name}": value for name, value in measured.items()})
