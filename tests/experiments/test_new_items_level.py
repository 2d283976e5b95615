"""The level of the logits of items without training events: the fit, and in a run and its refit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from worlds import compose

from recsys.core.columns import Ragged
from recsys.core.errors import UserError
from recsys.data.batches.builder import BatchBuilder
from recsys.data.dataset import Requests
from recsys.experiments import level_fit
from recsys.experiments.assembly import build_towers, open_data
from recsys.experiments.level_fit import Choices, fit_level
from recsys.experiments.new_items_level import fit_new_items_level, validation_choices
from recsys.experiments.train import train
from recsys.experiments.trained_run import load_run


def ragged(lists: list[list[int]]) -> Ragged:
    return Ragged(np.array([row for one in lists for row in one], np.int32), np.cumsum([0, *map(len, lists)]))


def choices(
    chosen: list[list[int]], num_items: int, *, num_trained: int, seen: list[list[int]] | None = None
) -> Choices:
    rows = np.arange(len(chosen))
    hidden = ragged(seen or [[] for _ in rows])
    return Choices(Requests(rows, rows), rows, np.arange(1, num_items + 1), num_trained, ragged(chosen), hidden)


def simulated(logits: npt.NDArray[np.float64], num_trained: int) -> Choices:
    """Choices of a softmax: one of each request."""
    chosen = (logits + np.random.default_rng(1).gumbel(size=logits.shape)).argmax(1)
    return choices([[int(item)] for item in chosen], logits.shape[1], num_trained=num_trained)


def embeddings(num_users: int = 8000, num_items: int = 40) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(num_users, 4)), rng.normal(size=(num_items, 4)) * 0.7


@pytest.mark.parametrize("factor", [1.0, 16.0])
def test_a_level_behind_simulated_choices_is_found_however_large_the_logits_are(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    users, items = embeddings()
    logits = users @ items.T
    logits[:, 25:] = 1.6 * logits[:, 25:] - 1.5
    found = simulated(logits, 25)
    # The model says nothing about the level, and its logits are too large by a factor, as with a shift of a power.
    tensors = torch.from_numpy(users).float(), torch.from_numpy(items * factor).float()
    level = fit_level(found, *tensors)
    assert level.scale == pytest.approx(1.6, abs=0.1)
    assert level.offset == pytest.approx(-1.5 * factor, abs=0.15 * factor)
    # Logits that do not fit into memory are computed again for each step, in blocks.
    monkeypatch.setattr(level_fit, "MOST_KEPT", 1000)
    monkeypatch.setattr(level_fit, "_BLOCK", 100_000)
    assert fit_level(found, *tensors) == pytest.approx(level, abs=1e-3 * factor)


def test_the_offset_is_that_of_the_scale_where_the_scale_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    users, items = embeddings()
    logits = users @ items.T
    logits[:, 25:] = 1.6 * logits[:, 25:] - 1.5
    found, tensors = simulated(logits, 25), (torch.from_numpy(users).float(), torch.from_numpy(items).float())
    monkeypatch.setattr(level_fit, "MOST_SCALE", 1.2)
    assert fit_level(found, *tensors) == fit_level(found, *tensors, scale=1.2)


def test_a_scale_that_is_given_stays_and_the_offset_follows_it() -> None:
    users, items = embeddings()
    logits = users @ items.T
    logits[:, 25:] -= 1.5
    found = simulated(logits, 25)
    tensors = torch.from_numpy(users).float(), torch.from_numpy(items).float()
    assert fit_level(found, *tensors, scale=1.0) == (1.0, pytest.approx(-1.5, abs=0.1))
    scale, offset = fit_level(found, *tensors, scale=2.0)
    assert scale == 2
    # Larger logits of new items need a lower offset for the same share of them.
    assert offset < -2


def test_the_likelihood_and_its_derivatives_are_those_of_a_softmax() -> None:
    rng = np.random.default_rng(3)
    users, items = torch.from_numpy(rng.normal(size=(5, 3))), torch.from_numpy(rng.normal(size=(7, 3)))
    chosen, seen = [[0, 5], [6], [], [2, 3, 4], [5]], [[1], [4, 5], [0], [], [4, 6]]
    found = choices(chosen, 7, num_trained=4, seen=seen)
    prior = level_fit._Prior(1.5, 0.4)

    def direct(at: Tensor) -> Tensor:
        logits = users @ items.T
        logits = torch.cat([logits[:, :4] * at[0], logits[:, 4:] * at[1] + at[2]], dim=1)
        total = torch.zeros((), dtype=torch.float64)
        for row, (some, hidden) in enumerate(zip(chosen, seen, strict=True)):
            mask = torch.zeros(7, dtype=torch.bool)
            mask[hidden] = True
            total = total + logits[row].masked_fill(mask, -torch.inf).log_softmax(0)[some].sum()
        total = total - (at[0] - 1) ** 2 / 2 - (at[1] - 1.5 * at[0]) ** 2 / (2 * 0.4**2) - at[2] ** 2 / 2
        return total / 7

    at = torch.tensor([0.7, 1.2, -0.3], dtype=torch.float64)
    value = level_fit._posterior(found, [users[:2] @ items.T, users[2:] @ items.T], at=at, prior=prior)
    assert value.value == pytest.approx(float(direct(at)))
    torch.testing.assert_close(value.gradient, torch.autograd.functional.jacobian(direct, at))
    torch.testing.assert_close(value.hessian, torch.autograd.functional.hessian(direct, at))


def test_few_choices_leave_the_level_near_one_and_zero() -> None:
    users, items = torch.ones(1, 1), torch.tensor([[0.5], [0.5]])
    # No choice at all: the priors alone.
    assert fit_level(choices([[]], 2, num_trained=1), users, items) == (1.0, 0.0)
    # One choice of each kind, with equal logits.
    scale, offset = fit_level(choices([[0, 1]], 2, num_trained=1), users, items)
    assert scale == pytest.approx(1, abs=0.02)
    assert offset == pytest.approx(0, abs=0.02)
    # Both choices are new: higher, and bounded by the prior.
    scale, offset = fit_level(choices([[1, 1]], 2, num_trained=1), users, items)
    assert 1 <= scale < 1.2
    assert 0.2 < offset < 1


def test_a_model_that_ranks_worse_than_chance_gets_no_scale() -> None:
    users, items = torch.ones(1, 1), torch.tensor([[9.0], [0.0], [9.0], [0.0]])
    found = fit_level(choices([[1] * 800 + [3] * 200], 4, num_trained=2), users, items)
    assert found.scale == 1
    # The number of new choices still counts.
    assert -2 < found.offset < -1


def test_new_items_of_a_weak_model_are_not_moved_beyond_all_others() -> None:
    rng = np.random.default_rng(0)
    users, items = (
        torch.from_numpy(rng.normal(size=(500, 4))).float(),
        torch.from_numpy(rng.normal(size=(40, 4))).float(),
    )
    # Choices that the model knows nothing about, one in ten of them new.
    chosen = [[int(rng.choice(25)) if rng.random() < 0.9 else 25 + int(rng.choice(15))] for _ in range(500)]
    found = fit_level(choices(chosen, 40, num_trained=25), users, items)
    assert found.scale == 1
    # As if the logits were calibrated; division by their factor would give tens.
    assert -4 < found.offset < -1


def test_several_embeddings_of_a_user_count_with_the_best() -> None:
    users = torch.tensor([[[1.0], [-1.0], [0.0]]])
    # The best logit of the new item is 2, of the trained one 0; the last embedding is absent.
    found = choices([[0, 1] * 500], 2, num_trained=1)
    several = fit_level(found, users, torch.tensor([[0.0], [-2.0]]), scale=1.0)
    assert several == fit_level(found, torch.ones(1, 1), torch.tensor([[0.0], [2.0]]), scale=1.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two kinds of users and items; items of every third number have events in one part of the split only."""
    base = tmp_path_factory.mktemp("offset")
    rng = np.random.default_rng(0)
    num_users, num_items = 80, 60
    item = np.arange(num_items)
    part = np.where(item % 3 > 0, 0, np.where(item % 2, 1, 2))
    rows = []
    for user in range(num_users):
        own = item[item % 2 == user % 2] if user % 5 else item
        for chosen in rng.choice(item, 24, replace=False):
            if chosen % 4 // 2 == user % 2 or not len(own):
                kind = part[chosen] or rng.choice([0, 0, 0, 1, 2])
                rows.append((user, int(chosen), ["train", "val", "test"][kind]))
    user_ids, item_ids, split = zip(*rows, strict=True)
    pq.write_table(pa.table({"user_id": user_ids, "item_id": item_ids, "split": split}), base / "interactions.parquet")
    pq.write_table(pa.table({"item_id": item, "kind": [f"k{i % 4 // 2}" for i in item]}), base / "items.parquet")
    return base


def words(root: Path, *more: str) -> list[str]:
    small = ["model.dim=8", "user_tower=mean", "history.order=random", "trainer.max_epochs=3", "callbacks=ema"]
    return ["data=parquet", f"data.root={root}", f"data.cache={root / 'cache'}", "split=given", *small, *more]


def test_a_run_records_its_offset_and_a_refit_keeps_it(root: Path, tmp_path: Path) -> None:
    # The model is too weak for a scale of its own.
    more = ["refit=true", "model.new_items_scale=1.4"]
    config = compose("train", words(root, *more))
    train(config, tmp_path)
    offset = OmegaConf.load(tmp_path / "config.yaml").model.new_items_offset
    assert isinstance(offset, float)
    assert abs(offset) > 0.05
    run = load_run(tmp_path)
    bias = run.model.item_bias
    # After the refit items of validation are trained ones.
    assert run.dataset.num_trained == run.dataset.meta.num_seen
    assert bias is not None
    assert bias[1 : run.dataset.num_trained + 1].abs().max() == 0
    scale = run.model.new_items_scale
    assert scale == OmegaConf.load(tmp_path / "config.yaml").model.new_items_scale == 1.4
    assert bias[run.dataset.num_trained + 1 :].tolist() == pytest.approx([offset / scale] * 10)
    # Only rows of new items have the scale, with their bias.
    items = torch.tensor([1, run.dataset.num_trained, run.dataset.num_trained + 1])
    found = run.model.encode_items(items)
    run.model.new_items_scale = 1.0
    torch.testing.assert_close(found, run.model.encode_items(items) * torch.tensor([[1.0], [1.0], [scale]]))
    assert found[2, -1].item() / run.model.temperature == pytest.approx(offset)
    # The same command finds the run finished.
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    again = train(compose("train", words(root, *more)), tmp_path)
    assert again.metrics == metrics
    with pytest.raises(UserError, match="new_items_offset"):
        train(compose("train", words(root, *more, "model.new_items_offset=3.5")), tmp_path)


def test_a_given_offset_is_kept_and_ids_alone_have_none(root: Path, tmp_path: Path) -> None:
    for number, (more, expected) in enumerate({"model.new_items_offset=-30.0": -30.0, "item_tower=ids": 0.0}.items()):
        run = train(compose("train", words(root, more, "trainer.max_epochs=1")), tmp_path / str(number))
        assert OmegaConf.load(run.path / "config.yaml").model.new_items_offset == expected
        assert run.metrics["val/cold_items/recall@5"] == 0
        assert run.metrics["val/recall@50"] > 0


def test_a_lift_is_added_to_the_fitted_offset(root: Path) -> None:
    found = []
    for lift in (0.0, 0.4):
        config = compose("train", words(root, f"model.new_items_lift={lift}"))
        dataset = open_data(config)
        model = build_towers(config, dataset)
        fit_new_items_level(config, dataset, model=model, builder=BatchBuilder(dataset, config.history.max_events))
        assert model.item_bias is not None
        assert model.new_items_scale == config.model.new_items_scale
        assert float(model.item_bias[-1]) == pytest.approx(config.model.new_items_offset / model.new_items_scale)
        found.append(config.model.new_items_offset)
    assert found[1] - found[0] == pytest.approx(0.4)


def test_validation_uses_the_offset_and_candidates_are_items_that_could_be_chosen(root: Path) -> None:
    config = compose("train", words(root))
    dataset = open_data(config)
    corpus = dataset.corpus(reads_features=True)
    found = validation_choices(dataset, corpus, exclude_seen=True)
    assert found is not None
    assert found.candidates.tolist() == list(range(1, dataset.meta.num_seen + 1))
    assert found.num_trained == dataset.num_trained
    begin, end = dataset.part_bounds("val")
    val = np.concatenate([dataset.item_idx[a:b] for a, b in zip(begin, end, strict=True)])
    assert found.num_new == int((val > dataset.num_trained).sum())
    # Items that are trained are no new ones, whatever the test part holds.
    assert validation_choices(dataset.refit(), corpus, exclude_seen=True) is None
    assert build_towers(config, dataset).item_bias is None
