"""Training that diverges ends with one error; rankings of numbers that are not finite are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from handmade import handmade
from torch import nn
from worlds import compose, write_world

from recsys.core.columns import Ragged
from recsys.core.errors import UserError
from recsys.data.batches.batch import Batch
from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.loaders import RequestLoader
from recsys.data.dataset import Requests
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import CorpusSearch, evaluate
from recsys.experiments.run_folder import RunStatus, read_state
from recsys.experiments.train import train
from recsys.training.finite import FiniteWatch


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world") / "data")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["optimizer.warmup_steps=0", "+trainer.limit_train_batches=1"],
            r"optimizer\.lr=1e\+12: after step 1 .* weights up to 1e\+12, .*lr=0\.001",
        ),
        (
            ["optimizer.warmup_steps=0", "optimizer.lr=1e30", "trainer.check_val_every_n_epoch=9"],
            r"optimizer\.lr=1e\+30: the loss of step 2 is not finite, .* try optimizer\.lr=0\.001",
        ),
    ],
)
def test_a_learning_rate_beyond_use_is_named(world: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    config = compose(
        "train",
        [
            "data=parquet",
            f"data.root={world}",
            f"data.cache={world.parent}/cache",
            "split=leave_last_out",
            "model.dim=8",
            "user_tower=mean",
            "trainer.max_epochs=9",
            "+trainer.enable_progress_bar=false",
            "evaluation.baselines=false",
            "logger=csv",
            "optimizer.lr=1e12",
            *overrides,
        ],
    )
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run")
    assert read_state(tmp_path / "run").status == RunStatus.RUNNING
    assert not (tmp_path / "run/metrics.json").exists()
    assert not (tmp_path / "run/checkpoints/best.ckpt").exists()
    # Nothing was trained, so the folder is free for another configuration.
    config.optimizer.lr, config.trainer.max_epochs = 0.01, 1
    assert train(config, tmp_path / "run").state.status == RunStatus.FINISHED


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_the_first_step_that_is_not_finite_is_named(value: float) -> None:
    watch = FiniteWatch(1e-4, clip_norm=0.0)
    watch.add("loss", torch.tensor(3.0), step=1)
    watch.add("gradient", torch.tensor(2.0), step=1)
    watch.add("loss", torch.tensor(3.0), step=2)
    message = r"optimizer\.lr=0\.0001: the gradient of step 2 is not finite.* try optimizer\.lr=1e-05, clip_norm=1, "
    with pytest.raises(UserError, match=message):
        watch.add("gradient", torch.tensor(value), step=2)
    with pytest.raises(UserError, match="of step 2 "):
        watch.check()


def test_at_the_first_step_the_advice_is_to_look_for_nan() -> None:
    with pytest.raises(UserError, match=r"^training: the loss of step 1 .* of your own, because no step came before$"):
        FiniteWatch(None, clip_norm=1.0).add("loss", torch.tensor(torch.nan), step=1)


@pytest.mark.parametrize("value", [torch.nan, -torch.inf, 1e9])
def test_a_weight_of_no_use_is_named(value: float) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    watch = FiniteWatch(1e-3, clip_norm=1.0)
    watch.check_weights(model, 7)
    with torch.no_grad():
        model[1].weight[0, 1] = value
    with pytest.raises(UserError, match=r"after step 7 1\.weight .*, expected weights below 1e\+08"):
        watch.check_weights(model, 7)


@pytest.mark.parametrize("shape", [(2, 3), (2, 4, 3)])
def test_user_embeddings_that_are_not_finite_are_refused(shape: tuple[int, ...]) -> None:
    users = torch.zeros(shape)
    users[1, ..., 2] = torch.nan
    search = CorpusSearch(torch.eye(3), np.arange(1, 4))
    with pytest.raises(UserError, match="1 of 2 user embeddings are not finite"):
        search(users, 2, exclude=None)


class Scores:
    """A ranker that gives every request the same scores."""

    def __init__(self, scores: list[float]) -> None:
        self.scores = scores

    def rank(
        self,
        batch: Batch,  # noqa: ARG002
        requests: Requests,
        *,
        k: int,  # noqa: ARG002
        exclude: Ragged | None,  # noqa: ARG002
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scores = torch.tensor([self.scores] * len(requests.user_idx))
        return scores, torch.tensor([[1, 2, 0]] * len(requests.user_idx))


@pytest.mark.parametrize("scores", [[2.0, 1.0, -torch.inf], [torch.nan, 1.0, -torch.inf], [torch.inf, 1.0, 0.0]])
def test_scores_that_are_not_finite_are_refused(scores: list[float]) -> None:
    dataset = handmade([([1], [2], [1]), ([2], [1], [2])])
    batches = RequestLoader(BatchBuilder(dataset, 4), dataset.requests("val"))

    def measure() -> dict[str, float]:
        metrics = RetrievalMetrics(dataset, 2)
        return evaluate(Scores(scores), dataset, part="val", batches=batches, metrics=metrics)

    if np.isfinite(scores[:2]).all():
        # -inf after the last result is no score.
        assert measure()["num_users"] == 2
    else:
        with pytest.raises(UserError, match="2 of 2 lists of scores are not finite"):
            measure()
