"""Training speed of RecTools' SASRecModel.

Run by `benchmarks/training_speed.py` in an interpreter that has RecTools.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet
from timing import StepTimer, arguments, endless, histories, report, timed_steps


class Timer(StepTimer, Callback):
    pass


def main() -> None:
    warnings.simplefilter("ignore")
    given = arguments()
    users, _ = histories(given.data)
    lengths = np.array([len(items) for items in users])
    table = pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(len(users)), lengths),
            Columns.Item: np.concatenate(users),
            Columns.Weight: 1.0,
            # Only the order counts.
            Columns.Datetime: pd.to_datetime(np.arange(lengths.sum()), unit="s"),
        }
    )
    timer = Timer(lambda batch: int((batch["y"] != 0).sum()), given.seconds)

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[timer],
        )  # fmt: skip

    model = SASRecModel(
        n_blocks=2,
        n_heads=2,
        n_factors=64,
        dropout_rate=0.2,
        session_max_len=given.window,
        batch_size=128,
        loss="softmax" if given.loss == "full" else "sampled_softmax",
        n_negatives=256,
        item_net_block_types=(IdEmbeddingsItemNet,),
        get_trainer_func=trainer,
    )
    dataset = Dataset.construct(table)
    if given.mode == "fit":
        model.fit(dataset)
        report(model.fit_trainer.callbacks[0].rates)
        return
    # What `fit` does before it calls Lightning.
    model._build_model_from_dataset(dataset)
    batches = endless(model.data_preparator.get_dataloader_train())
    module = model.lightning_model
    module._xavier_normal_init()
    module.train()
    optimizer = module.configure_optimizers()

    def step() -> int:
        batch = next(batches)
        optimizer.zero_grad()
        module.loss_calculator(module.get_batch_logits(batch), batch["y"], batch["yw"]).backward()
        optimizer.step()
        return int((batch["y"] != 0).sum())

    report(timed_steps(step, given.seconds))


if __name__ == "__main__":
    main()
