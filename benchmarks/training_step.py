"""Our side of `training_speed.py`: the training step of `RetrievalModule`, bare or under Lightning's trainer."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from timing import StepTimer, arguments, endless, report, timed_steps

from recsys.core.schema import Schema, TimeResolution
from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.loaders import TrainingLoader
from recsys.data.dataset import Meta, PreparedDataset
from recsys.models.encoders import Transformer
from recsys.models.items import ItemTower
from recsys.models.towers import UserTower
from recsys.models.two_tower import TwoTower
from recsys.training.frequency import ExactFrequency, target_probabilities
from recsys.training.losses import FullSoftmax, SampledSoftmax
from recsys.training.module import RetrievalModule
from recsys.training.negatives import SamplerInputs, UniformNegatives
from recsys.training.optimizers import AdamW

DIM, BATCH = 64, 128


class Timer(StepTimer, L.Callback):
    pass


def dataset(path: str) -> PreparedDataset:
    with np.load(path) as data:
        items, times, offsets, num_items = (data[k] for k in ("item_idx", "time", "offsets", "num_items"))
    num = int(num_items)
    return PreparedDataset(
        path=Path(path),
        meta=Meta(
            fingerprint="benchmark",
            time_resolution=TimeResolution.SECONDS,
            num_users=len(offsets) - 1,
            num_events=len(items),
            num_trained=num,
            num_seen=num,
            num_known=num,
            num_items=num,
            settings={},
        ),
        schema=Schema(()),
        item_idx=items.astype(np.int32),
        time=times,
        offsets=offsets,
        train_end=offsets[1:],
        val_end=offsets[1:],
        train_count=np.bincount(items, minlength=num + 1),
        has_features=np.zeros(num + 1, bool),
        columns={},
    )


def build(
    data: PreparedDataset, loss: str, window: int, predict_first: bool = True
) -> tuple[RetrievalModule, TrainingLoader]:
    loader = TrainingLoader(BatchBuilder(data, window, predict_first=predict_first), BATCH, seed=0)
    encoder = Transformer(DIM, window, num_blocks=2, num_heads=2, expansion=1, dropout=0.2, activation="relu")
    model = TwoTower(
        UserTower(encoder, DIM, sizes=data.sizes),
        ItemTower(DIM, data.sizes, use_features=False),
        similarity="dot",
        temperature=1.0,
    )
    corpus = torch.arange(1, data.num_items + 1)
    sampled = loss == "sampled"
    probabilities = target_probabilities(data, predict_first)
    module = RetrievalModule(
        model,
        SampledSoftmax() if sampled else FullSoftmax(),
        negatives=UniformNegatives(SamplerInputs(probabilities, corpus, ExactFrequency(probabilities)), 256)
        if sampled
        else None,
        optimizer=AdamW(),
        corpus=corpus,
    )
    return module, loader


def main() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    given = arguments()
    module, loader = build(dataset(given.data), given.loss, given.window, not given.same_targets)
    trainer_settings = {
        "max_epochs": -1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    if given.mode == "fit":
        timer = Timer(lambda batch: len(batch.target_idx), given.seconds)
        trainer = L.Trainer(**trainer_settings, callbacks=[timer])
        trainer.fit(module, loader)
        report(timer.rates)
        return
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    module.train()
    optimizer = module.optimizer_factory.optimizer(module.model)
    batches = endless(loader)

    def step() -> int:
        batch = next(batches)
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()
        return len(batch.target_idx)

    report(timed_steps(step, given.seconds))


if __name__ == "__main__":
    main()
