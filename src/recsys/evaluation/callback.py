"""Exact evaluation over the full corpus during a Lightning run. Each process evaluates its share of the requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt

from recsys.core.errors import UserError
from recsys.data.batches.batch import Batch
from recsys.data.dataset import Part, PreparedDataset, Requests
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import ModelRanker, RequestCounter
from recsys.models.blend import members_of


class FullCorpusEvaluation(L.Callback):
    """Logs `val/*` and `test/*` from the user embeddings that the module's steps return.

    Args:
        dataset: data set with histories, relevant items and slices.
        corpus: item_idx of the items that can be shown.
        exclude_seen: leave out items of the history.
        selection_metric: metric that selects the checkpoint. It is an error if no validation request has it, which can
            happen to the metric of a slice.
        calibrate: changes the bias of items of the model before each validation; None for no change.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        corpus: npt.NDArray[np.int64],
        *,
        exclude_seen: bool = True,
        selection_metric: str | None = None,
        calibrate: Callable[[Any], None] | None = None,
    ) -> None:
        self.dataset, self.corpus, self.exclude_seen = dataset, corpus, exclude_seen
        self.selection_metric, self.calibrate = selection_metric, calibrate
        self.metrics: RetrievalMetrics | None = None
        self._counter: RequestCounter | None = None

    def _start(self, module: Any, loader: Any, *, part: Part) -> None:
        # The bias of other models depends on no time, and to know the time of a part all users are read.
        if any(member.model.priors is not None for member in members_of(module.model)):
            module.model.set_item_bias(self.dataset, self.dataset.index_time(part))
        if part == "val" and self.calibrate is not None:
            self.calibrate(module.model)
        self.metrics = RetrievalMetrics(self.dataset, len(self.corpus), keep_users=part == "test", part=part)
        self._counter = RequestCounter(
            ModelRanker(module.model, self.corpus).search,
            # Requests are positions in this data set, which may hold the users of this process alone.
            loader.builder.dataset,
            part=part,
            metrics=self.metrics,
            exclude_seen=self.exclude_seen,
        )

    def _log(self, module: L.LightningModule, part: Part) -> None:
        assert self.metrics is not None
        result = {f"{part}/{name}": value for name, value in self.metrics.compute().items()}
        if part == "val" and self.selection_metric is not None and self.selection_metric not in result:
            raise UserError(f"evaluation.metric={self.selection_metric}: no validation request falls into this slice")
        for name, value in result.items():
            # The metric reduces its sums itself, so logging must not reduce again.
            module.log(name, value, prog_bar=name.endswith(("/recall@10", "/ndcg@10")) and name.count("/") == 1)
        self._counter = None

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Embed the corpus."""
        self._start(pl_module, trainer.val_dataloaders, part="val")

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Embed the corpus."""
        self._start(pl_module, trainer.test_dataloaders, part="test")

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,  # noqa: ARG002
        pl_module: L.LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: tuple[Batch, Requests],
        *_: Any,
        **__: Any,
    ) -> None:
        """Rank and count a batch of requests."""
        assert self._counter is not None
        self._counter.count(outputs, batch[1])

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Log the metrics of validation."""
        self._log(pl_module, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Log the metrics of the test."""
        self._log(pl_module, "test")
