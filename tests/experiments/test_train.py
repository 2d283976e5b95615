"""`train.py` from end to end: killed at any moment and started again, it ends as if nothing had happened."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from commands import run_all
from tiny_run import STEP, assert_same_run, command, read, weights

from recsys.experiments.train import finish

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


PLAIN: tuple[str, ...] = ("callbacks.early_stopping.patience=1",)
AVERAGED = (
    "callbacks=ema",
    "callbacks.ema.decay=0.9",
    "user_tower.use_user_id=true",
    "frequency=count_min",
    "frequency.width=99",
)
SPARSE_REFIT = (
    "refit=true",
    "item_tower=pretrained",
    "item_tower.sparse=true",
    "item_tower.pretrained.frozen=false",
    "user_tower.own_items=true",
    "frequency=streaming",
    "frequency.num_buckets=1000",
)


@pytest.mark.parametrize(
    ("overrides", "kills"),
    [
        # Each start continues from the kill before, up to the next: within epochs, at their ends, in a validation,
        # after training, and while the results are written.
        (
            PLAIN,
            [
                [STEP, 6],
                [STEP, 6],
                ["recsys.training.module:RetrievalModule.validation_step", 2],
                ["file:metrics.json", 1],
                ["file:per_user.parquet", 1],
                # Those of the test; those of validation are there.
                ["file:metrics.json", 1],
            ],
        ),
        (AVERAGED, [[STEP, 9], [STEP, 8]]),
        # Twenty steps to select, then those of the refit.
        (SPARSE_REFIT, [[STEP, 8], [STEP, 16], [STEP, 4]]),
    ],
    ids=["plain", "averaged", "sparse_refit"],
)
def test_a_killed_run_ends_like_an_uninterrupted_one(
    tmp_path: Path, cache: Path, overrides: tuple[str, ...], kills: list[list[Any]]
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "killed"
    again = {"args": command(run, cache, *overrides)}
    jobs = [{"args": command(whole, cache, *overrides)}, *({**again, "kill": kill} for kill in kills), again]
    (code, output), *killed, (last, log) = run_all(jobs, tmp_path)
    assert code == 0, output
    for kill, (code, output) in zip(kills, killed, strict=True):
        assert code == -9, (kill, output)
    assert last == 0, log
    # A killed writer leaves at most a hidden file, which nothing reads.
    assert not [file for file in run.glob("**/*.part*") if not file.name.startswith(".")]
    assert_same_run(run, whole)
    assert read(whole, "run.json")["steps"] > 8


def test_a_terminated_run_is_not_marked_as_finished(tmp_path: Path, cache: Path) -> None:
    arguments = command(tmp_path / "run", cache)
    (stopped, output), (resumed, log) = run_all(
        [{"args": arguments, "kill": [STEP, 8, "SIGTERM"]}, {"args": arguments}], tmp_path
    )
    assert stopped == 128 + 15, output
    assert resumed == 0, log
    assert read(tmp_path / "run", "run.json")["status"] == "finished"


def test_a_run_folder(tmp_path: Path, cache: Path) -> None:
    run = tmp_path / "run"
    options = ("evaluation.rolling=true", "evaluation.baselines=true", "trainer.profiler=simple")
    first = command(run, cache, "trainer.max_epochs=2", *options)
    jobs = [
        {"args": first},
        # Finished: it only reports.
        {"args": first, "kill": [STEP, 1]},
        {"args": [*first, "model.dim=16"]},
        {"args": [*first, "optimizer.lr=0.02"]},
    ]
    (code, output), (again, repeated), *others = run_all(jobs, tmp_path)
    assert code == 0, output
    assert output.splitlines()[-1] == str(run)
    assert "Traceback" not in output
    profile = (run / "profile/fit-profile.txt").read_text()
    assert "RetrievalModule.optimizer_step" in profile
    assert profile.splitlines()[2] in output
    beside = output.splitlines()[-2]
    assert beside.startswith("test/ndcg@10 ")
    assert " popularity " in beside
    assert again == 0, repeated
    assert repeated.splitlines()[-2] == beside
    assert repeated.splitlines()[-1] == str(run)
    for (refused, message), key in zip(
        others, ("model.dim=16", "with optimizer.lr=0.01, but optimizer.lr=0.02 is"), strict=True
    ):
        assert refused == 1
        assert message.startswith("error: ")
        assert key in message
        assert "hydra.run.dir" in message
    state, metrics = read(run, "run.json"), read(run, "metrics.json")
    assert state["status"] == "finished"
    assert {"dataset_fingerprint", "git_commit", "seconds", "steps", "targets_per_second"} <= {*state}
    assert state["peak_memory_bytes"] > 1e8
    for part in ("val", "test", "test_rolling"):
        for name in ("recall", "hit", "ndcg", "mrr"):
            for cutoff in (5, 10, 20, 50, 100):
                assert 0.0 <= metrics[f"{part}/{name}@{cutoff}"] <= 1.0
    assert 0.0 < metrics["test/coverage@10"] <= 1.0
    users = pq.read_table(run / "per_user.parquet").to_pydict()
    assert sum(users["recall@10"]) / len(users["recall@10"]) == pytest.approx(metrics["test/recall@10"], abs=1e-6)
    # Null where a user has nothing in a slice.
    tail = [value for value in users["tail/recall@10"] if value is not None]
    assert 0 < len(tail) < len(users["recall@10"])
    assert sum(tail) / len(tail) == pytest.approx(metrics["test/tail/recall@10"], abs=1e-6)
    (log,) = (run / "logs").glob("*/metrics.csv")
    with log.open() as file:
        logged = {name for row in csv.DictReader(file) for name, value in row.items() if value}
    assert {"val/recall@10", "val/ndcg@10", "epoch", "step"} <= logged
    # Loading runs no code: plain containers and tensors.
    torch.load(run / "checkpoints/last.ckpt", weights_only=True)


def test_a_run_without_test_is_finished_later(tmp_path: Path, cache: Path) -> None:
    whole, half, promoted = tmp_path / "whole", tmp_path / "half", tmp_path / "promoted"
    options = ("trainer.max_epochs=2", "refit=true")
    jobs = [{"args": command(whole, cache, *options)}]
    jobs += [{"args": command(run, cache, *options, "test=false")} for run in (half, half, promoted)]
    for code, output in run_all(jobs, tmp_path):
        assert code == 0, output
    for run in (half, promoted):
        assert read(run, "run.json")["status"] == "selected"
        assert not [name for name in read(run, "metrics.json") if name.startswith("test")]
        assert not (run / "per_user.parquet").exists()
    ((code, output),) = run_all([{"args": command(half, cache, *options)}], tmp_path)
    assert code == 0, output
    assert_same_run(half, whole)
    finish(promoted)
    assert_same_run(promoted, whole)
    assert (promoted / "config.yaml").read_text() == (whole / "config.yaml").read_text()
    # What was looked at is not forgotten.
    ((code, output),) = run_all([{"args": command(half, cache, *options, "test=false")}], tmp_path)
    assert code == 0, output
    assert read(half, "run.json")["status"] == "finished"
    assert (half / "config.yaml").read_text() == (whole / "config.yaml").read_text()


def test_averaged_weights_are_evaluated(tmp_path: Path, cache: Path) -> None:
    run = tmp_path / "run"
    ((code, output),) = run_all([{"args": command(run, cache, *AVERAGED)}], tmp_path)
    assert code == 0, output
    best = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    assert any(not torch.equal(value, best["current_model_state"][name]) for name, value in best["state_dict"].items())
    # The metric that chose the checkpoint is the one that the stored weights have.
    (chosen,) = (state for name, state in best["callbacks"].items() if name.startswith("ModelCheckpoint"))
    assert float(chosen["best_model_score"]) == pytest.approx(read(run, "metrics.json")["val/ndcg@10"], abs=1e-6)


def test_two_processes(tmp_path: Path, cache: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    quiet = (
        "user_tower.encoder.dropout=0",
        "user_tower.unknown_rate=0",
        "item_tower=ids",
        "item_tower.unknown_rate=0",
        "user_tower.use_profile=false",
        "~data.features.interactions",
        "refit=true",
        "evaluation.rolling=true",
        "evaluation.baselines=true",
        "trainer.max_epochs=2",
    )
    both = ("trainer=ddp", "trainer.max_epochs=2")
    jobs = [{"args": command(one, cache, *quiet)}, {"args": command(two, cache, *quiet, *both)}]
    (alone, first), (together, output) = run_all(jobs, tmp_path)
    assert alone == 0, first
    assert together == 0, output
    # One process writes and reports.
    assert output.splitlines()[-1] == str(two)
    assert output.count(str(two)) == 1
    assert {f.relative_to(two) for f in two.rglob("*")} >= {f.relative_to(one) for f in one.rglob("*")}
    assert not list(two.glob("*ddp*"))
    states = [read(run, "run.json") for run in (one, two)]
    assert states[0]["steps"] == states[1]["steps"]
    assert states[0]["selected"] == states[1]["selected"]
    # Each process ranks its share of the requests.
    assert states[0]["popularity"]["popularity"] == pytest.approx(states[1]["popularity"]["popularity"])
    pairs = [weights(run, "best.ckpt") for run in (one, two)]
    for name, value in pairs[0].items():
        if name.endswith("projection.bias"):
            # Attention does not depend on the bias of keys: Adam makes steps of what rounding leaves of its gradient.
            continue
        torch.testing.assert_close(pairs[1][name], value, atol=2e-3, rtol=2e-2, msg=name)
    tables = [pq.read_table(run / "per_user.parquet").to_pydict() for run in (one, two)]
    assert tables[0]["user_id"] == tables[1]["user_id"]
    # Weights differ by rounding alone, which may swap two neighbours.
    found, expected = (read(run, "metrics.json") for run in (two, one))
    assert found.keys() == expected.keys()
    for name in ("test/recall@10", "test/ndcg@20", "test_rolling/recall@10", "val/recall@10"):
        assert found[name] == pytest.approx(expected[name], abs=0.05), name
