"""Loaders of a run under Lightning."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np

from recsys.core import distributed
from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.loaders import RequestLoader, TrainingLoader
from recsys.data.batches.targets import TargetSampling
from recsys.data.dataset import PreparedDataset, Requests


class RetrievalData(L.LightningDataModule):
    """Training windows, and the requests of the validation and test parts.

    Args:
        dataset: the prepared data.
        max_history: number of most recent events that a history keeps.
        batch_size: number of windows in a step, of all processes together.
        predict_first: whether a user's first event is a target, predicted from the empty history.
        target_sampling: choice of the targets, the length of their histories and their weights; the next event, with
            equal weights, by default.
        max_exposures: maximum number of exposures, the latest ones in the time of a training window, that become
            negatives.
        val_users: number of users, a seeded sample, in validations during training; None for all.
        seed: seed of the order and of the samples.
        portions: let each process read the events of its own users alone, a range of them.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        *,
        max_history: int = 50,
        batch_size: int = 128,
        predict_first: bool = True,
        target_sampling: TargetSampling | None = None,
        max_exposures: int = 0,
        val_users: int | None = None,
        seed: int = 0,
        portions: bool = False,
    ) -> None:
        super().__init__()
        self.portions = portions
        self.dataset, self.batch_size, self.val_users, self.seed = dataset, batch_size, val_users, seed
        self.builder = BatchBuilder(
            dataset,
            max_history,
            predict_first=predict_first,
            target_sampling=target_sampling,
            max_exposures=max_exposures,
        )
        self._own: dict[tuple[int, int], BatchBuilder] = {}
        self._loader: TrainingLoader | None = None
        self._place: dict[str, Any] | None = None

    def check_processes(self, world_size: int) -> None:
        """Raise a `UserError` if there are no targets, or fewer windows with targets than processes."""
        TrainingLoader(self.builder, self.batch_size, seed=self.seed, world_size=world_size)

    @property
    def _process(self) -> dict[str, int]:
        trainer = self.trainer
        return {} if trainer is None else {"rank": trainer.global_rank, "world_size": trainer.world_size}

    def train_dataloader(self) -> TrainingLoader:
        """Return batches of training windows."""
        self._loader = TrainingLoader(self._own_builder(), self.batch_size, seed=self.seed, **self._process)
        if self._place is not None:
            self._loader.load_state_dict(self._place)
        return self._loader

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the training data. Lightning loses its own if a schedule needs the length of an epoch."""
        return {} if self._loader is None else {"place": self._loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the place of a checkpoint."""
        self._place = state_dict.get("place")

    def val_dataloader(self) -> RequestLoader:
        """Return batches of validation requests."""
        requests = self.dataset.requests("val")
        # `trainer.validate` at the end of training uses all users.
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        if fitting and self.val_users is not None:
            # Processes that have requests of their own users alone have them in the order of the processes.
            sizes = self._sizes(requests)
            total, first = sum(sizes), sum(sizes[: self._process.get("rank", 0)]) if len(sizes) > 1 else 0
            if self.val_users < total:
                chosen = np.sort(np.random.default_rng(self.seed).permutation(total)[: self.val_users]) - first
                chosen = chosen[(chosen >= 0) & (chosen < len(requests.user_idx))]
                requests = Requests(*(column[chosen] for column in requests))
        return self.answer(requests)

    def test_dataloader(self) -> RequestLoader:
        """Return batches of test requests."""
        return self.answer(self.dataset.requests("test"))

    def answer(self, requests: Requests) -> RequestLoader:
        """Return batches of those of the requests that are for this process: every n-th one, or those of its users.

        Every process calls it, and gets as many batches as the others.

        Args:
            requests: requests as positions in the data set. Those of the batches are positions in the data set of the
                loader's builder.
        """
        builder = self._own_builder()
        portion = builder.dataset.portion
        if portion is None:
            return RequestLoader(builder, requests, **self._process)
        if builder is self.builder:
            return RequestLoader(builder, requests, most=max(self._sizes(requests)))
        owner = np.searchsorted(portion.cuts, requests.user_idx, side="right") - 1
        own = Requests(*(column[owner == portion.rank] for column in requests))
        own = own._replace(end=own.end - self.dataset.offsets[portion.cuts[portion.rank]])
        return RequestLoader(builder, own, most=int(np.bincount(owner).max(initial=0)))

    def _sizes(self, requests: Requests) -> list[int]:
        """Return the number of requests of each process, or one number if every process has all requests."""
        own = len(requests.user_idx)
        return [own] if self.dataset.portion is None or not self._process else distributed.share(own)

    def _own_builder(self) -> BatchBuilder:
        process = self._process
        if not self.portions or not process or self.dataset.portion is not None:
            return self.builder
        key = process["rank"], process["world_size"]
        if key not in self._own:
            self._own[key] = self.builder.on(self.dataset.share(*key))
        return self._own[key]
