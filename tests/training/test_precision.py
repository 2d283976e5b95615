from __future__ import annotations

from pathlib import Path

import pytest
import torch
from worlds import compose, write_world

from recsys.core.errors import UserError
from recsys.experiments.train import train
from recsys.training.module import RetrievalModule

CALLBACK = "+callbacks.matmul_precision={_target_: recsys.training.precision.MatmulPrecision, precision: %s}"


def settings(path: Path, precision: str) -> list[str]:
    world = write_world(path / "data")
    return [
        "data=parquet", f"data.root={world}", f"data.cache={path}/cache", "split=leave_last_out", "model.dim=8",
        "history.max_events=6", "logger=csv", "user_tower=mean", "trainer.max_epochs=2", "test=false",
        "+trainer.enable_progress_bar=false", CALLBACK % precision,
    ]  # fmt: skip


def test_steps_have_the_precision_and_evaluation_the_highest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for name in ("training_step", "validation_step"):
        step = getattr(RetrievalModule, name)

        def watched(module: RetrievalModule, *given: object, name: str = name, step: object = step) -> object:
            seen.append((name, torch.get_float32_matmul_precision()))
            return step(module, *given)  # type: ignore[operator]

        monkeypatch.setattr(RetrievalModule, name, watched)
    train(compose("train", settings(tmp_path, "high")), tmp_path / "run")
    assert set(seen) == {("training_step", "high"), ("validation_step", "highest")}
    assert torch.get_float32_matmul_precision() == "highest"


def test_another_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="precision: found 'low', expected 'highest', 'high' or 'medium'"):
        train(compose("train", settings(tmp_path, "low")), tmp_path / "run")
