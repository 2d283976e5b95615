"""The model beside popularity and item-kNN, and its size."""

from __future__ import annotations

import io
import json
import logging
from itertools import product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from worlds import compose, write_world

from recsys.core.errors import UserError
from recsys.experiments import baseline_check
from recsys.experiments.assembly import build_towers, open_data
from recsys.experiments.baseline_check import measure_beside, verdict
from recsys.experiments.baseline_runs import measure_baselines
from recsys.experiments.fitting import count_parameters
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


def test_the_figures_are_those_of_the_baselines(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baseline_check, "HALF_LIVES", (7,))
    train = compose("train", [*data, "evaluation.metric=val/mrr@5"])
    found = measure_beside(train, open_data(train), ("val", "test"))
    alone = ["~grids.popularity", "~grids.item_knn", "evaluation.metric=val/mrr@5"]
    settings = {
        "popularity": ["generators=[popularity]"],
        "popularity of half-life 7 days": ["generators=[popularity]", "generator.popularity.half_life_days=7"],
        "item-kNN": ["generators=[item_knn]"],
    }
    assert [*found] == [*settings]
    for name, words in settings.items():
        runs, _ = measure_baselines(compose("baselines", [*data, *alone, *words]), tmp_path / name)
        [run] = runs.values()
        names = ("val", "test"), ("mrr@5", "ndcg@10", "recall@10", "recall@100")
        assert found[name] == {f"{part}/{metric}": run.metrics[f"{part}/{metric}"] for part, metric in product(*names)}


def test_the_half_life_is_chosen_on_validation(tmp_path: Path) -> None:
    # Items 0 to 3 were popular for 60 days; from then on everyone takes 4 to 7.
    rows = [
        (user, 4 * (day >= 60) + (user + day) % 4, day) for user in range(30) for day in (*range(0, 60, 20), 61, 62, 63)
    ]
    columns = {
        "user_id": [r[0] for r in rows],
        "item_id": [r[1] for r in rows],
        "timestamp": [r[2] * 86400 for r in rows],
    }
    pq.write_table(pa.table(columns), tmp_path / "interactions.parquet")
    words = ["data=parquet", f"data.root={tmp_path}", f"data.cache={tmp_path}/cache", "exclude_seen=false"]
    config = compose("train", [*words, "split=leave_last_out", "evaluation.metric=val/recall@5"])
    plain, recent, _ = measure_beside(config, open_data(config), ("val",)).items()
    assert recent[0] == "popularity of half-life 1 days"
    assert recent[1]["val/recall@5"] == 1.0 > plain[1]["val/recall@5"]


def test_without_days_there_is_no_recent_popularity(data: list[str]) -> None:
    config = compose("train", [*data, "data.time=order"])
    assert [*measure_beside(config, open_data(config), ("val",))] == ["popularity", "item-kNN"]


def test_expensive_neighbours_are_left_out(data: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose("train", [*data, "data.time=order"])
    for name in ("_MAX_PAIRS", "_MAX_SCORES"):
        with monkeypatch.context() as patch:
            patch.setattr(baseline_check, name, 10)
            assert [*measure_beside(config, open_data(config), ("val",))] == ["popularity"]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (0.3, "test/ndcg@10 0.3000, popularity 0.2000, item-kNN 0.2500: the model is better than item-kNN by 20%"),
        (0.1, "test/ndcg@10 0.1000, popularity 0.2000, item-kNN 0.2500: "
         "ITEM-KNN IS BETTER than this model; train longer, or try +experiment=recommended"),
    ],
)  # fmt: skip
def test_a_run_says_plainly_which_is_better(tmp_path: Path, model: float, expected: str) -> None:
    run = RunFolder(tmp_path, compose("train", []))
    popularity = {"popularity": {"test/ndcg@10": 0.2, "val/ndcg@10": 0.3}, "item-kNN": {"test/ndcg@10": 0.25}}
    run.update(status=RunStatus.FINISHED, popularity=popularity, parameters={"total": 12345, "tables": 2000})
    run.write_metrics({"val/ndcg@10": 0.9, "test/ndcg@10": model})
    output = io.StringIO()
    print_run(run, selection="val/ndcg@10", console=Console(file=output, width=60))
    *_, size, before, last = output.getvalue().splitlines()
    assert before == "val/ndcg@10 0.9000, popularity 0.3000: the model is better than popularity by 200%"
    assert last == expected
    assert "12,345 parameters (2,000 in tables)" in size
    assert json.loads((tmp_path / "run.json").read_text())["popularity"] == popularity


def test_a_run_without_test_is_compared_on_validation() -> None:
    state = RunState(popularity={"popularity": {"val/ndcg@10": 0.0}})
    found = verdict(state, {"val/ndcg@10": 0.1}, "val/ndcg@10", part="val")
    assert found == ("val/ndcg@10 0.1000, popularity 0.0000: the model is better than popularity", True)
    # A run of an earlier version, and one whose metric is that of a slice without requests.
    assert verdict(RunState(), {"val/ndcg@10": 0.1}, "val/ndcg@10", part="val") is None
    assert verdict(state, {"val/ndcg@10": 0.1}, "val/cold_items/recall@10", part="val") is None


def test_a_recipe_gets_no_advice_to_try_it_and_a_tie_is_no_loss() -> None:
    state = RunState(popularity={"popularity": {"val/ndcg@10": 0.2}}, variants={"tastes": 0.2})
    lines = {model: verdict(state, {"val/ndcg@10": model}, "val/ndcg@10", part="val") for model in (0.1, 0.2)}
    assert lines == {
        0.1: ("val/ndcg@10 0.1000, popularity 0.2000: POPULARITY IS BETTER than this model; train longer", False),
        0.2: ("val/ndcg@10 0.2000, popularity 0.2000: POPULARITY IS AS GOOD AS this model; train longer", False),
    }


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
    run = train(compose("train", [*endless, "optimizer.lr=0", "evaluation.baselines=false"]), tmp_path / "run")
    assert run.state.status == RunStatus.SELECTED
    assert run.state.popularity == {}
    lines = [line for line in caplog.messages if line.startswith("training: epoch")]
    assert [line.partition(",")[0] for line in lines] == ["training: epoch 1", "training: epoch 2"]
    assert not any("left" in line for line in lines)
    with pytest.raises(UserError, match="optimizer.schedule=cosine: needs the number of steps"):
        train(compose("train", [*endless, "optimizer.schedule=cosine"]), tmp_path / "cosine")


def test_a_run_that_ends_before_its_first_validation(data: list[str], tmp_path: Path) -> None:
    config = compose("train", [*data, *SMALL, "trainer.max_steps=2", "test=false"])
    run = train(config, tmp_path / "run")
    assert (run.state.status, run.state.steps, run.state.selected) == (RunStatus.SELECTED, 2, 2)
    # Without a test the model stands beside the baselines on validation.
    found = verdict(run.state, run.metrics, "val/ndcg@10", part="val")
    assert found is not None
    assert found.line.startswith(f"val/ndcg@10 {run.metrics['val/ndcg@10']:.4f}, popularity ")
    # The same folder finishes with the test, and without measuring baselines again.
    config.test, config.evaluation.baselines = True, False
    assert train(config, tmp_path / "run").state.popularity == run.state.popularity
    assert run.state.parameters["item_tower.table"] > 0
