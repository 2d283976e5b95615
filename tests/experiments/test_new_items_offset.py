"""The offset of items without training events: the fit by hand, and in a run and its refit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf
from worlds import compose

from recsys.core.columns import Ragged
from recsys.core.errors import UserError
from recsys.data.batches.builder import BatchBuilder
from recsys.data.dataset import Requests
from recsys.experiments.assembly import build_towers, open_data
from recsys.experiments.new_items_offset import Choices, fit_new_items_offset, fit_offset, validation_choices
from recsys.experiments.train import train
from recsys.experiments.trained_run import load_run


def choices(
    num_chosen: list[float], num_new: list[float], *, num_trained: int = 1, seen: list[list[int]] | None = None
) -> Choices:
    rows = np.arange(len(num_chosen))
    lists = seen or [[] for _ in rows]
    hidden = Ragged(np.array([row for one in lists for row in one], np.int32), np.cumsum([0, *map(len, lists)]))
    counts = torch.tensor(num_chosen, dtype=torch.float64), torch.tensor(num_new, dtype=torch.float64)
    return Choices(Requests(rows, rows), rows, np.arange(1, 4), num_trained, *counts, hidden)


def test_the_offset_makes_the_expected_share_of_new_items_the_observed_one() -> None:
    # One trained item with logit 0, one new item with logit 1: 30% of 1e6 choices are new, so d = logit(.3) - 1.
    users, items = torch.ones(1, 1), torch.tensor([[0.0], [1.0]])
    assert fit_offset(choices([1e6], [3e5]), users, items) == pytest.approx(np.log(0.3 / 0.7) - 1, abs=1e-3)
    # Two new items of equal logits count twice.
    items = torch.tensor([[0.0], [1.0], [1.0]])
    expected = np.log(0.3 / 0.7) - 1 - np.log(2)
    assert fit_offset(choices([1e6], [3e5]), users, items) == pytest.approx(expected, abs=1e-3)
    # An item of the history is no candidate.
    assert fit_offset(choices([1e6], [3e5], seen=[[2]]), users, items) == pytest.approx(expected + np.log(2), abs=1e-3)


def test_the_offset_beside_a_shift_with_a_power_is_that_of_calibrated_logits() -> None:
    # Logits 0 and 4 of a shift with power 4 are 0 and 1 of a calibrated model.
    users, items = torch.ones(1, 1), torch.tensor([[0.0], [4.0]])
    expected = 4 * (np.log(0.3 / 0.7) - 1)
    assert fit_offset(choices([1e6], [3e5]), users, items, power=4.0) == pytest.approx(expected, abs=1e-3)
    # A power below 1 changes nothing.
    assert fit_offset(choices([1e6], [3e5]), users, items, power=0.5) == pytest.approx(np.log(0.3 / 0.7) - 4, abs=1e-3)


def test_few_choices_leave_the_offset_near_zero() -> None:
    users, items = torch.ones(1, 1), torch.zeros(2, 1)
    # The slope of the log posterior of 1 new choice of 2 is 0 at 0; of 2 of 2 it is 2 - 2 s(d) - d.
    assert fit_offset(choices([2.0], [1.0]), users, items) == pytest.approx(0, abs=1e-3)
    offset = fit_offset(choices([2.0], [2.0]), users, items)
    assert 2 - 2 / (1 + np.exp(-offset)) - offset == pytest.approx(0, abs=1e-3)
    assert fit_offset(choices([0.0], [0.0]), users, items) == pytest.approx(0, abs=1e-3)


def test_an_offset_behind_simulated_choices_is_found() -> None:
    rng = np.random.default_rng(0)
    users, items = rng.normal(size=(3000, 4)), rng.normal(size=(30, 4))
    logits = users @ items.T
    logits[:, 20:] -= 1.5
    chosen = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    found = choices([1.0] * 3000, (chosen >= 20).astype(float).tolist(), num_trained=20)
    # The model believes that new items are better by 2 than they are, beside the true offset.
    items_of_model = torch.from_numpy(items).float()
    assert fit_offset(found, torch.from_numpy(users).float(), items_of_model) == pytest.approx(-1.5, abs=0.15)


def test_several_embeddings_of_a_user_count_with_the_best() -> None:
    users = torch.tensor([[[1.0], [-1.0], [0.0]]])
    items = torch.tensor([[0.0], [-2.0]])
    # The best logit of the new item is 2, of the trained one 0; the last embedding is absent.
    assert fit_offset(choices([1e6], [5e5]), users, items) == pytest.approx(-2, abs=1e-3)


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
    config = compose("train", words(root, "refit=true"))
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
    assert bias[run.dataset.num_trained + 1 :].tolist() == pytest.approx([offset] * 10)
    # The same command finds the run finished.
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    again = train(compose("train", words(root, "refit=true")), tmp_path)
    assert again.metrics == metrics
    with pytest.raises(UserError, match="new_items_offset"):
        train(compose("train", words(root, "refit=true", "model.new_items_offset=3.5")), tmp_path)


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
        fit_new_items_offset(config, dataset, model=model, builder=BatchBuilder(dataset, config.history.max_events))
        assert model.item_bias is not None
        assert float(model.item_bias[-1]) == pytest.approx(config.model.new_items_offset)
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
    assert int(found.num_new.sum()) == int((val > dataset.num_trained).sum())
    # Items that are trained are no new ones, whatever the test part holds.
    assert validation_choices(dataset.refit(), corpus, exclude_seen=True) is None
    assert build_towers(config, dataset).item_bias is None
