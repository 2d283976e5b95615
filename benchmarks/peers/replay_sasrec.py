"""Training speed of RePlay's SASRec (`replay.nn.sequential`), built and fed as its documentation does.

Run by `benchmarks/training_speed.py` in an interpreter that has RePlay.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import lightning as L
import pyarrow as pa
import pyarrow.parquet as pq
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import ParquetModule, TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.nn.lightning import LightningModule
from replay.nn.lightning.optimizer import OptimizerFactory
from replay.nn.loss import CESampled
from replay.nn.sequential import SasRec
from replay.nn.transform import UniformNegativeSamplingTransform
from replay.nn.transform.template import make_default_sasrec_transforms
from timing import StepTimer, arguments, endless, histories, report, timed_steps

DIM, BATCH = 64, 128


class Timer(StepTimer, L.Callback):
    pass


def main() -> None:
    warnings.simplefilter("ignore")
    given = arguments()
    users, num_items = histories(given.data)
    users = [items - 1 for items in users if len(items) > 1]
    item = TensorFeatureInfo(
        "item_id",
        is_seq=True,
        feature_type=FeatureType.CATEGORICAL,
        embedding_dim=DIM,
        padding_value=num_items,
        cardinality=num_items,
        feature_hint=FeatureHint.ITEM_ID,
        feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")],
    )
    schema = TensorSchema([item])
    transforms = {"train": make_default_sasrec_transforms(schema)["train"]}
    model = SasRec.from_params(
        schema, embedding_dim=DIM, num_heads=2, num_blocks=2, max_sequence_length=given.window, dropout=0.2
    )
    if given.loss == "sampled":
        transforms["train"].append(UniformNegativeSamplingTransform(num_items, num_negative_samples=256))
        model = SasRec(body=model.body, loss=CESampled(ignore_index=num_items))
    module = LightningModule(model, optimizer_factory=OptimizerFactory())
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "train.parquet")
        pq.write_table(pa.table({"item_id": pa.array([u.tolist() for u in users], pa.list_(pa.int64()))}), path)
        data = ParquetModule(
            batch_size=BATCH,
            # One more than the window: the labels are the sequence shifted by one.
            metadata={"train": {"item_id": {"shape": given.window + 1, "padding": num_items}}},
            transforms=transforms,
            train_path=path,
        )
        if given.mode == "fit":
            timer = Timer(lambda batch: int(batch["target_padding_mask"].sum()), given.seconds)
            trainer = L.Trainer(
                max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                enable_model_summary=False, limit_val_batches=0, callbacks=[timer],
            )  # fmt: skip
            trainer.fit(module, datamodule=data)
            report(timer.rates)
            return
        data.setup("fit")
        batches = endless(data.train_dataloader())
        module.to(given.device)
        optimizer = module.configure_optimizers()
        module.train()

        def step() -> int:
            batch = next(batches)
            batch = {name: value.to(given.device) if hasattr(value, "to") else value for name, value in batch.items()}
            batch = data.compiled_transforms["train"](batch)
            optimizer.zero_grad()
            module(batch)["loss"].backward()
            optimizer.step()
            return int(batch["target_padding_mask"].sum())

        report(timed_steps(step, given.seconds, given.device))


if __name__ == "__main__":
    main()
