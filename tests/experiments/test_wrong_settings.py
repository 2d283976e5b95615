"""A wrong setting of training is answered by one message with its key, what was found and what is expected."""

from __future__ import annotations

import shlex
from pathlib import Path

import pyarrow as pa
import pytest
from handmade import training_only
from worlds import write_world

from recsys.core.errors import UserError
from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.datamodule import RetrievalData
from recsys.data.batches.targets import TargetSampling
from recsys.experiments.assembly import (
    build_callbacks,
    build_data,
    build_module,
    build_towers,
    complete,
    instantiate,
    open_data,
)
from recsys.experiments.compose import compose_run


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world") / "data")


def build(world: Path, words: list[str]) -> None:
    """Do everything that a training does before its first step."""
    usual = ["data=parquet", f"data.root={world}", f"data.cache={world.parent}/cache", "split=leave_last_out"]
    config, _, _ = compose_run([*usual, "model.dim=8", "user_tower=mean", "logger=csv", *words])
    dataset = open_data(config)
    build_data(config, dataset)
    build_module(config, dataset, model=build_towers(config, dataset))
    complete(instantiate(config.trainer), callbacks=build_callbacks(config, world.parent))


ACTION = "data.features.interactions.action.role=event history.action_weights.action"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("evaluation.val_users=0", "evaluation.val_users: found 0, expected at least 1, or null for all"),
        ("history.action_weights=weight", "history.action_weights: found weight, expected {COLUMN: {VALUE: WEIGHT}}"),
        ("history.action_weights=3", "history.action_weights: found 3, expected {COLUMN"),
        (f"{ACTION}=3", "history.action_weights.action=3: expected {value: weight}"),
        (f"{ACTION}.save=-1", "history.action_weights.action.save: found -1, expected a number of 0 or more"),
        ("history.max_events=0", "history.max_events: found 0, expected at least 1"),
        ("history.max_events=abc", "history.max_events: found 'abc', expected an integer"),
        ("history.window_days=week", "history.window_days: found week, expected a positive number, or null"),
        ("batch_size=0", "batch_size: found 0, expected at least 1"),
        ("max_batch_size=0", "max_batch_size: found 0"),
        ("history.gap_days=-1", "history.gap_days: found -1, expected 0 or more"),
        ("history.half_life_days=0", "history.half_life_days: found 0, expected a positive number, or null"),
        ("history.order=backwards", "history.order: found 'backwards', expected 'time' or 'random'"),
        ("model.similarity=foo", "model.similarity: found 'foo'"),
        ("model.prior_shift.weight=-1", "model.prior_shift.weight: found -1, expected a positive number"),
        ("batch_size=-5", "batch_size: found -5, expected at least 1"),
        ("clip_norm=-1", "clip_norm: found -1, expected at least 0"),
        ("seed=-1", "seed: found -1, expected 0 to 4294967295"),
        ("model.dim=0", "model.dim: found 0, expected at least 1"),
        ("model.temperature=0", "model.temperature: found 0, expected a positive number"),
        ("item_tower.dim=16", "model.dim: found user_tower.dim=8 and item_tower.dim=16, expected one width"),
        ("item_tower.sparse=maybe", "item_tower.sparse: found 'maybe', expected true, false or auto"),
        ("user_tower.feature_width=0", "user_tower.feature_width: found 0, expected at least 1"),
        ("user_tower.unknown_rate=3", "user_tower.unknown_rate: found 3, expected a share between 0 and 1"),
        (
            "user_tower=transformer user_tower.encoder.num_heads=0",
            "user_tower.encoder.num_heads: found 0, expected a divisor of dim 8",
        ),
        ("optimizer.lr=-1", "optimizer.lr: found -1, expected a finite number of 0 or more"),
        ("optimizer.lr=nan", "optimizer.lr: found nan, expected a finite number of 0 or more"),
        ("optimizer.lr=abc", "optimizer.lr: found 'abc', expected a number"),
        ("optimizer.betas=[a,b]", "optimizer.betas: found ['a', 'b'], expected two numbers"),
        ("optimizer.schedule=exp", "optimizer.schedule: found 'exp', expected 'constant', 'linear' or 'cosine'"),
        ("optimizer=3", "optimizer=3: expected the name of an option; valid: adamw"),
        ("callbacks=null", "callbacks=null: expected the name of an option; valid: default, ema"),
        ("callbacks.early_stopping.monitor=val/foo", "callbacks.early_stopping.monitor: found 'val/foo'; valid: "),
        ("callbacks.early_stopping.mode=up", "callbacks.early_stopping: lightning.pytorch.callbacks.EarlyStopping: "),
        ("callbacks=ema callbacks.ema.decay=2", "callbacks.ema.decay: found 2, expected a number from 0 to below 1"),
        ("loss.logq=of", "loss.logq: found 'of', expected 'off', 'classic' or 'corrected'"),
        ("negatives.num_negatives=-4", "negatives.num_negatives: found -4, expected at least 1"),
        ("negatives.max_targets=0", "negatives.max_targets: found 0, expected at least 1"),
        ("trainer.devices=0", "trainer.devices: found 0, expected at least 1"),
        ("trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch: found 0, expected at least 1"),
        (
            "trainer=ddp trainer.devices=999",
            "trainer.devices: found 999 processes for 60 training histories with targets, expected at most 60",
        ),
        ("trainer.accelerator=quantum", "trainer: lightning.pytorch.trainer.trainer.Trainer: You selected an invalid"),
    ],
)
def test_the_key_is_named(world: Path, words: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        build(world, shlex.split(words))
    assert str(raised.value).startswith(message)


def test_data_without_a_single_target_is_refused() -> None:
    data = RetrievalData(training_only([[(1, 0)], [(2, 0)]]), predict_first=False)
    with pytest.raises(UserError, match="history.predict_first=false: found no user with the 2 training events"):
        data.check_processes(1)


def test_weights_that_leave_no_target_are_refused() -> None:
    dataset = training_only([[(1, 0), (2, 1)]])
    # The column `context` has a value of its own for each event.
    object.__setattr__(dataset, "vocabulary", lambda _: pa.array(["0", "1"]))

    def builder(weights: dict[str, float]) -> BatchBuilder:
        return BatchBuilder(dataset, 5, target_sampling=TargetSampling(action_weights={"context": weights}))

    builder({"0": 0.0})
    with pytest.raises(UserError, match="every training event has the weight 0 as a target"):
        builder({"0": 0.0, "1": 0.0})
