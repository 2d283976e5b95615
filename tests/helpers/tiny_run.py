"""The command of a training run of a few seconds, and the comparison of two runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

STEP = "recsys.training.module:RetrievalModule.training_step"


def command(run: Path, cache: Path, *overrides: str) -> list[str]:
    """A run of four epochs of five steps or so, on a few simulated users."""
    return [
        "train.py",
        "data.num_users=40",
        "data.num_items=30",
        "data.num_events=600",
        "data.num_categories=3",
        "data.topics_per_category=2",
        "data.vector_width=4",
        f"data.cache={cache}",
        "model.dim=8",
        "user_tower.encoder.num_blocks=1",
        "history.max_events=10",
        "batch_size=16",
        "optimizer.lr=0.01",
        "optimizer.warmup_steps=3",
        "optimizer.schedule=cosine",
        "trainer.max_epochs=4",
        "+trainer.enable_progress_bar=false",
        "callbacks.last.every_n_train_steps=3",
        "callbacks.last.train_time_interval=null",
        "logger=csv",
        "evaluation.baselines=false",
        f"hydra.run.dir={run}",
        *overrides,
    ]


def read(run: Path, name: str) -> dict[str, Any]:
    return json.loads((run / name).read_text())  # type: ignore[no-any-return]


def weights(run: Path, name: str) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / name, weights_only=True)["state_dict"]  # type: ignore[no-any-return]


def assert_same_run(found: Path, expected: Path) -> None:
    """Bit for bit."""
    assert read(found, "metrics.json") == read(expected, "metrics.json")
    assert pq.read_table(found / "per_user.parquet") == pq.read_table(expected / "per_user.parquet")
    states = [read(run, "run.json") for run in (found, expected)]
    for key in ("status", "dataset_fingerprint", "selected", "steps", "schedule_steps"):
        assert states[0].get(key) == states[1].get(key), key
    for name in ("best.ckpt", "last.ckpt"):
        one, other = weights(found, name), weights(expected, name)
        assert one.keys() == other.keys()
        for key in one:
            assert torch.equal(one[key], other[key]), (name, key)
