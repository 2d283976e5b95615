"""The data of a run under Lightning: loaders that know their process."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np

from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.loaders import RequestLoader, TrainingLoader
from recsys.data.batches.targets import Objective
from recsys.data.dataset import PreparedDataset, Requests


class RetrievalData(L.LightningDataModule):
    """Training windows, and the requests of the validation and test parts.

    Args:
        dataset: the prepared data.
        max_history: most recent events that a history keeps.
        batch_size: windows a step, over all processes together.
        predict_first: whether a user's first event is a target, predicted from the empty history.
        objective: what training predicts from how much of a history; null for the next event.
        max_exposures: of what was shown in its time, how much a training window brings as negatives.
        val_users: users that validation during training looks at (a seeded sample); null for all.
        seed: of order and samples.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        max_history: int = 50,
        batch_size: int = 128,
        predict_first: bool = True,
        objective: Objective | None = None,
        max_exposures: int = 0,
        val_users: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.dataset, self.batch_size, self.val_users, self.seed = dataset, batch_size, val_users, seed
        self.builder = BatchBuilder(dataset, max_history, predict_first, objective, max_exposures)
        self._loader: TrainingLoader | None = None
        self._place: dict[str, Any] | None = None

    @property
    def _process(self) -> tuple[int, int]:
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    def train_dataloader(self) -> TrainingLoader:
        """Batches of training windows."""
        self._loader = TrainingLoader(self.builder, self.batch_size, self.seed, *self._process)
        if self._place is not None:
            self._loader.load_state_dict(self._place)
        return self._loader

    def state_dict(self) -> dict[str, Any]:
        """Place in the training data; Lightning's own is lost where a schedule asks for the length of an epoch."""
        return {} if self._loader is None else {"place": self._loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Training goes on from the place where the checkpoint was taken."""
        self._place = state_dict.get("place")

    def val_dataloader(self) -> RequestLoader:
        """Batches of validation requests."""
        requests = self.dataset.requests("val")
        # Only while training: `trainer.validate` at the end looks at everyone.
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        if fitting and self.val_users is not None and self.val_users < len(requests.user_idx):
            chosen = np.sort(np.random.default_rng(self.seed).permutation(len(requests.user_idx))[: self.val_users])
            requests = Requests(*(column[chosen] for column in requests))
        return RequestLoader(self.builder, requests, 1024, *self._process)

    def test_dataloader(self) -> RequestLoader:
        """Batches of test requests."""
        return RequestLoader(self.builder, self.dataset.requests("test"), 1024, *self._process)
