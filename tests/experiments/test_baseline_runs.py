"""Baselines from files to folders: the figures of the evaluation, resumption, and comparison with a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import run_all
from handmade import handmade
from omegaconf import DictConfig
from worlds import compose, write_world

from recsys.baselines import interactions
from recsys.baselines.interactions import Interactions
from recsys.baselines.item_knn import ItemKNN
from recsys.baselines.request_batches import request_batches
from recsys.baselines.tuning import describe
from recsys.cli.main import main
from recsys.core.errors import UserError
from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.loaders import RequestLoader
from recsys.data.dataset import Requests
from recsys.evaluation.metrics import CUTOFFS, NAMES, RetrievalMetrics
from recsys.evaluation.ranking import evaluate
from recsys.evaluation.relevance import rolling_requests
from recsys.experiments.assembly import open_data
from recsys.experiments.baseline_runs import measure_baselines
from recsys.experiments.baseline_tables import print_baselines

SMALL = [
    "generator.als.factors=32",
    "generator.als.iterations=2",
    "grids.als={alpha: {values: [5, 20]}}",
    "generator.random_walk.num_steps=200",
    "evaluation.rolling=true",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world") / "data")


def options(world: Path, *overrides: str) -> list[str]:
    return ["data=parquet", f"data.root={world}", f"data.cache={world.parent}/cache", *SMALL, *overrides]


def composed(world: Path, *overrides: str) -> DictConfig:
    return compose("baselines", options(world, "split=leave_last_out", *overrides))


@pytest.fixture(scope="module")
def measured(world: Path) -> Path:
    path = world.parent / "baselines"
    runs, failed = measure_baselines(composed(world), path)
    assert not failed
    assert [*runs] == ["popularity", "item_knn", "ease", "als", "random_walk", "transitions"]
    return path


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_folders_are_run_folders(world: Path, measured: Path) -> None:
    dataset = open_data(composed(world))
    for folder in measured.iterdir():
        state, metrics = read(folder / "run.json"), read(folder / "metrics.json")
        assert state["status"] == "finished"
        assert state["generator"] == folder.name
        assert state["dataset_fingerprint"] == dataset.meta.fingerprint
        assert state["seconds"] > 0
        for part in ("val", "test", "test_rolling"):
            for name in (*NAMES, "coverage", "warm_users/recall", "tail/recall"):
                assert {f"{part}/{name}@{cutoff}" for cutoff in CUTOFFS} <= {*metrics}
        users = pq.read_table(folder / "per_user.parquet")
        assert {"user_id", *(f"{name}@{cutoff}" for name in NAMES for cutoff in CUTOFFS)} <= {*users.column_names}
        for name in ("recall@10", "ndcg@100"):
            assert np.mean(users[name].to_numpy()) == pytest.approx(metrics[f"test/{name}"], abs=1e-6)
        assert (folder / "config.yaml").exists()


def test_settings_are_the_best_on_validation(measured: Path) -> None:
    for folder in measured.iterdir():
        state = read(folder / "run.json")
        best = max(state["tried"], key=lambda tried: tried["val/ndcg@10"])
        assert best["settings"] == state["settings"]
        assert best["val/ndcg@10"] == read(folder / "metrics.json")["val/ndcg@10"]
    assert len(read(measured / "item_knn/run.json")["tried"]) > 2


def test_figures_are_those_of_the_evaluation(world: Path, measured: Path) -> None:
    dataset = open_data(composed(world))
    settings, metrics = read(measured / "item_knn/run.json")["settings"], read(measured / "item_knn/metrics.json")
    generator = ItemKNN(**settings)
    data = dataset.refit()
    for part, until, seen in (("val", "train", dataset), ("test", "val", data), ("test_rolling", "val", data)):
        generator.fit(Interactions(dataset, until))  # type: ignore[arg-type]
        rolling = part == "test_rolling"
        requests = rolling_requests(seen, "test") if rolling else seen.requests(part)  # type: ignore[arg-type]
        assert len(requests.user_idx)
        counted = RetrievalMetrics(seen, len(seen.corpus(reads_features=True)))
        batches = RequestLoader(BatchBuilder(seen, 5), requests, batch_size=7)
        values = evaluate(
            generator,
            seen,
            part=part.removesuffix("_rolling"),
            batches=batches,
            metrics=counted,
            exclude_seen=True,
            rolling=rolling,
        )  # type: ignore[arg-type]
        assert {name: value for name, value in metrics.items() if name.startswith(f"{part}/")} == pytest.approx(
            {f"{part}/{name}": value for name, value in values.items()}
        )


def test_finished_baselines_are_not_measured_again(
    world: Path, measured: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("recsys.experiments.baseline_runs.evaluate", None)
    runs, failed = measure_baselines(composed(world), measured)
    assert not failed
    capsys.readouterr()
    print_baselines(runs, "val/ndcg@10")
    shown = capsys.readouterr().out
    for name, run in runs.items():
        [line] = [line for line in shown.splitlines() if f" {name} " in line]
        assert f"{run.metrics['test/recall@100']:.4f}" in line
        assert f"{run.metrics['test_rolling/ndcg@10']:.4f}" in line


def test_other_settings_want_another_folder(world: Path, measured: Path) -> None:
    _, failed = measure_baselines(composed(world, "generators=[ease]", "grids.ease.l2.values=[200]"), measured)
    assert "grid.l2.values" in str(failed["ease"])
    assert "choose another hydra.run.dir" in str(failed["ease"])


def test_data_that_has_changed_is_not_mixed(world: Path, tmp_path: Path) -> None:
    config = composed(world, "generators=[popularity]")
    runs, _ = measure_baselines(config, tmp_path)
    runs["popularity"].update(dataset_fingerprint="other")
    _, failed = measure_baselines(config, tmp_path)
    assert "measured on data other, but the source now gives" in str(failed["popularity"])


def test_an_unsuitable_baseline_does_not_stop_the_others(world: Path, tmp_path: Path) -> None:
    config = composed(world, "generators=[ease,popularity]", "generator.ease.max_gigabytes=1e-6")
    runs, failed = measure_baselines(config, tmp_path)
    assert [*runs] == ["popularity"]
    assert "generator.max_gigabytes=1e-06" in str(failed["ease"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("generators=[eas]", r"no generator 'eas'; did you mean 'ease'\?"),
        ("+grids.knn.k.values=[3]", "no generator 'knn'"),
        ("evaluation.metric=val/recal@10", "did you mean 'val/recall@10'"),
    ],
)
def test_refuses(override: str, message: str, world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        measure_baselines(composed(world, override), tmp_path)


def test_the_gain_of_a_run_over_baselines(
    world: Path, measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(measured / "item_knn", tmp_path / "mine")
    command = ["baselines", *options(world, "split=leave_last_out", f"hydra.run.dir={measured}")]
    main([*command, "generators=[popularity,item_knn]", f"against={tmp_path}/mine"])
    output = capsys.readouterr().out
    assert "Differences from mine" in output
    [same] = [line for line in output.splitlines() if "recall@100 │ item_knn" in line]
    assert "+0.0% │ no difference shown" in same
    mine, other = (
        read(path / "metrics.json")["test/recall@100"] for path in (tmp_path / "mine", measured / "popularity")
    )
    [gain] = [line for line in output.splitlines() if "recall@100 │ popularity" in line]
    assert f"{other / mine - 1:+.1%}" in gain
    with pytest.raises(SystemExit, match="1"):
        main([*command, "generators=[popularity]", f"against={tmp_path}/nowhere"])


def test_long_histories_make_batches_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.baselines.request_batches.NUM_ENTRIES", 40)
    monkeypatch.setattr("recsys.baselines.request_batches._BATCH", 20)
    assert interactions.NUM_ENTRIES > 40
    dataset = handmade([([1, 2], [], []), ([*range(1, 101)], [], []), ([1] * 30, [], []), *[([2], [], [])] * 30])
    requests = Requests(np.arange(33), dataset.train_end)
    batches = list(request_batches(dataset, requests))
    # A request costs at least two: 2 alone before 100, then 30 and five of the short ones, then twenty, then five.
    assert [len(chosen.user_idx) for _, chosen in batches] == [1, 1, 6, 20, 5]
    assert np.concatenate([chosen.user_idx for _, chosen in batches]).tolist() == [*range(33)]
    assert all(len(batch.lengths) == len(chosen.user_idx) for batch, chosen in batches)


def test_described() -> None:
    assert describe({"l2": 200.0, "days": None, "k": 5, "x": 0.01}) == "l2=200, days=null, k=5, x=0.01"
    assert describe({}) == "as it is"


@pytest.mark.slow
def test_a_killed_command_continues(world: Path, measured: Path, tmp_path: Path) -> None:
    command = [
        "recsys",
        "baselines",
        *options(world, "split=leave_last_out", f"hydra.run.dir={tmp_path}/b"),
    ]
    counted = ["recsys.evaluation.metrics:RetrievalMetrics.compute", 9]
    jobs = [
        {"args": command, "kill": counted},
        # The first eight evaluations are not repeated: killed behind as many again it is farther.
        {"args": command, "kill": counted},
        {"args": [*command, f"against={measured}/ease"]},
    ]
    (first, _), (second, _), (code, output) = run_all(jobs, tmp_path)
    assert first == second == -9
    assert code == 0, output
    assert output.splitlines()[-1] == f"{tmp_path}/b"
    assert "p (Holm)" in output
    for folder in measured.glob("[!.]*"):
        mine = tmp_path / "b" / folder.name
        assert read(mine / "metrics.json") == pytest.approx(read(folder / "metrics.json"))
        assert read(mine / "run.json")["settings"] == read(folder / "run.json")["settings"]
        assert read(mine / "run.json")["tried"] == read(folder / "run.json")["tried"]
