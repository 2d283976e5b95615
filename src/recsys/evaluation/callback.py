"""Exact evaluation over the full corpus during a Lightning run. Each process evaluates its share of the requests."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.core.errors import UserError
from recsys.data.batches.batch import Batch
from recsys.data.dataset import Part, PreparedDataset, Requests
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import ModelRanker
from recsys.evaluation.relevance import relevant_items, seen_items


class FullCorpusEvaluation(L.Callback):
    """Logs `val/*` and `test/*` from the user embeddings that the module's steps return.

    Args:
        dataset: data set with histories, relevant items and slices.
        corpus: item_idx of the items that can be shown.
        exclude_seen: leave out items of the history.
        selection_metric: metric that selects the checkpoint. It is an error if no validation request has it, which can
            happen to the metric of a slice.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        corpus: npt.NDArray[np.int64],
        *,
        exclude_seen: bool = True,
        selection_metric: str | None = None,
    ) -> None:
        self.dataset, self.corpus, self.exclude_seen = dataset, corpus, exclude_seen
        self.selection_metric = selection_metric
        self.metrics: RetrievalMetrics | None = None
        self._ranker: ModelRanker | None = None

    def _start(self, module: Any, *, keep_users: bool) -> None:
        self.metrics = RetrievalMetrics(self.dataset, len(self.corpus), keep_users=keep_users)
        self._ranker = ModelRanker(module.model, self.corpus)

    def _update(self, users: Tensor, requests: Requests, *, part: Part) -> None:
        assert self._ranker is not None
        assert self.metrics is not None
        exclude = seen_items(self.dataset, requests) if self.exclude_seen else None
        _, ranked = self._ranker.search(users, self.metrics.cutoffs[-1], exclude=exclude)
        relevant = relevant_items(self.dataset, part, requests=requests, exclude_seen=self.exclude_seen)
        self.metrics.update(ranked, relevant, user_idx=torch.from_numpy(requests.user_idx))

    def _log(self, module: L.LightningModule, part: Part) -> None:
        assert self.metrics is not None
        result = {f"{part}/{name}": value for name, value in self.metrics.compute().items()}
        if part == "val" and self.selection_metric is not None and self.selection_metric not in result:
            raise UserError(f"evaluation.metric={self.selection_metric}: no validation request falls into this slice")
        for name, value in result.items():
            # The metric reduces its sums itself, so logging must not reduce again.
            module.log(name, value, prog_bar=name.endswith(("/recall@10", "/ndcg@10")) and name.count("/") == 1)
        self._ranker = None

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Embed the corpus."""
        self._start(pl_module, keep_users=False)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,  # noqa: ARG002
        pl_module: L.LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: tuple[Batch, Requests],
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """Rank and count a batch of requests."""
        self._update(outputs, batch[1], part="val")

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Log the metrics of validation."""
        self._log(pl_module, "val")

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Embed the corpus."""
        self._start(pl_module, keep_users=True)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,  # noqa: ARG002
        pl_module: L.LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: tuple[Batch, Requests],
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """Rank and count a batch of requests."""
        self._update(outputs, batch[1], part="test")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Log the metrics of the test."""
        self._log(pl_module, "test")
