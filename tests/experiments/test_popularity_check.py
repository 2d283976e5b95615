"""The model beside popularity, and its size."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
from rich.console import Console
from worlds import compose, write_world

from recsys.core.errors import UserError
from recsys.experiments.assembly import build_towers, open_data
from recsys.experiments.baseline_runs import measure_baselines
from recsys.experiments.fitting import count_parameters
from recsys.experiments.popularity_check import measure_popularity, verdict
from recsys.experiments.run_folder import RunFolder, RunState, RunStatus
from recsys.experiments.run_summary import print_run
from recsys.experiments.train import train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("world")
    return [
        "data=parquet",
        f"data.root={write_world(root / 'data')}",
        f"data.cache={root}/cache",
        "split=leave_last_out",
    ]


def test_the_figures_are_those_of_the_baseline(data: list[str], tmp_path: Path) -> None:
    train = compose("train", [*data, "evaluation.metric=val/mrr@5"])
    found = measure_popularity(train, open_data(train), "test")
    refitted = measure_popularity(train, open_data(train).refit(), "test")
    alone = ["generators=[popularity]", "~grids.popularity", "evaluation.metric=val/mrr@5"]
    for name, half_life in (("popularity", "null"), ("recent popularity", "7")):
        asked = compose("baselines", [*data, *alone, f"generator.popularity.half_life_days={half_life}"])
        runs, _ = measure_baselines(asked, tmp_path / name)
        metrics = runs["popularity"].metrics
        names = ("test/mrr@5", "test/ndcg@10", "test/recall@10", "test/recall@100")
        assert found[name] == refitted[name] == {metric: metrics[metric] for metric in names}
        val = measure_popularity(train, open_data(train), "val")[name]
        assert val["val/mrr@5"] == metrics["val/mrr@5"]


def test_without_days_there_is_no_recent_popularity(data: list[str]) -> None:
    config = compose("train", [*data, "data.time=order"])
    assert [*measure_popularity(config, open_data(config), "test")] == ["popularity"]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (0.3, "test/ndcg@10 0.3000, popularity 0.2000, recent popularity 0.2500: "
         "the model is better than recent popularity by 20%"),
        (0.1, "test/ndcg@10 0.1000, popularity 0.2000, recent popularity 0.2500: "
         "RECENT POPULARITY IS BETTER than this model; train longer, or try +experiment=recommended"),
    ],
)  # fmt: skip
def test_a_run_says_plainly_which_is_better(tmp_path: Path, model: float, expected: str) -> None:
    run = RunFolder(tmp_path, compose("train", []))
    popularity = {"popularity": {"test/ndcg@10": 0.2}, "recent popularity": {"test/ndcg@10": 0.25}}
    run.update(status=RunStatus.FINISHED, popularity=popularity, parameters={"total": 12345, "tables": 2000})
    run.write_metrics({"val/ndcg@10": 0.9, "test/ndcg@10": model})
    output = io.StringIO()
    print_run(run, selection="val/ndcg@10", console=Console(file=output, width=60))
    *_, size, last = output.getvalue().splitlines()
    assert last == expected
    assert "12,345 parameters (2,000 in tables)" in size
    assert json.loads((tmp_path / "run.json").read_text())["popularity"] == popularity


def test_a_run_without_test_is_compared_on_validation() -> None:
    state = RunState(popularity={"popularity": {"val/ndcg@10": 0.0}})
    line = verdict(state, {"val/ndcg@10": 0.1}, "val/ndcg@10")
    assert line == "val/ndcg@10 0.1000, popularity 0.0000: the model is better than popularity"
    # A run of an earlier version, and one whose metric is that of a slice without requests.
    assert verdict(RunState(), {"val/ndcg@10": 0.1}, "val/ndcg@10") is None
    assert verdict(state, {"val/ndcg@10": 0.1}, "val/cold_items/recall@10") is None


def test_parameters_are_counted_by_tower_and_table(data: list[str]) -> None:
    config = compose("train", [*data, "model.dim=8", "item_tower=ids", "user_tower=mean"])
    dataset = open_data(config)
    model = build_towers(config, dataset)
    counts = count_parameters(model)
    assert counts["item_tower.table"] == (dataset.num_trained + 1) * 8
    assert counts["tables"] == sum(count for name, count in counts.items() if name.endswith("table"))
    # Besides the towers there is only the temperature, which is fixed.
    assert counts["total"] == counts["user_tower"] + counts["item_tower"] + 1 == counts["trainable"] + 1


SMALL = ["model.dim=8", "user_tower=mean", "item_tower=ids", "history.max_events=8", "batch_size=8", "logger=csv"]


def test_patience_alone_may_end_a_training(data: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "recsys")
    endless = [*data, *SMALL, "test=false", "trainer.max_epochs=-1", "callbacks.early_stopping.patience=1"]
    run = train(compose("train", [*endless, "optimizer.lr=0"]), tmp_path / "run")
    assert run.state.status == RunStatus.SELECTED
    lines = [line for line in caplog.messages if line.startswith("training: epoch")]
    assert [line.partition(",")[0] for line in lines] == ["training: epoch 1", "training: epoch 2"]
    assert not any("left" in line for line in lines)
    with pytest.raises(UserError, match="optimizer.schedule=cosine: needs the number of steps"):
        train(compose("train", [*endless, "optimizer.schedule=cosine"]), tmp_path / "cosine")


def test_a_run_that_ends_before_its_first_validation(data: list[str], tmp_path: Path) -> None:
    config = compose("train", [*data, *SMALL, "trainer.max_steps=2", "test=false"])
    run = train(config, tmp_path / "run")
    assert (run.state.status, run.state.steps, run.state.selected) == (RunStatus.SELECTED, 2, 2)
    # Without a test the model stands beside popularity on validation.
    line = verdict(run.state, run.metrics, "val/ndcg@10")
    assert line is not None
    assert line.startswith(f"val/ndcg@10 {run.metrics['val/ndcg@10']:.4f}, popularity ")
    assert run.state.parameters["item_tower.table"] > 0
