"""Lightning modules: the training step of two towers, and the evaluation of a trained model."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.core import distributed
from recsys.core.errors import UserError
from recsys.core.schema import UNKNOWN_ITEM
from recsys.data.batches.batch import Batch
from recsys.data.dataset import Requests
from recsys.models.blend import Model
from recsys.models.encoder_check import check_encoder
from recsys.models.items import ItemTower
from recsys.models.sharded_table import NO_UPDATES, build_tables, sharded_tables
from recsys.models.two_tower import TwoTower, select_best_interest
from recsys.training.candidates import add_exposures, describe_candidates
from recsys.training.finite import FiniteWatch
from recsys.training.losses import CorpusLoss, SampledLoss
from recsys.training.negatives import NegativeSampler
from recsys.training.optimizers import AdamW
from recsys.training.prior_terms import TrainingPriors
from recsys.training.sharded_checkpoints import KEY, save_tables, stored_tables


class RetrievalModule(L.LightningModule):
    """The training step of two towers.

    The randomness of a step is a function of (seed, step, rank), so a resumed run has the dropout and the negatives of
    an uninterrupted one.

    Args:
        model: both towers.
        loss: loss over sampled candidates, or over the corpus.
        negatives: sampler of the candidates; None for a loss over the corpus.
        optimizer: builder of the optimizer and its schedule.
        corpus: int64 [N], items that a loss over the corpus reads, ascending.
        clip_norm: bound on the norm of dense gradients; 0 for none.
        seed: seed of dropout and negatives.
        schedule_steps: length of the schedule; None for the steps that the trainer will make.
        priors: item priors of targets and candidates; None for none.

    Raises:
        UserError: If the loss does not work with these negatives. Later: if training diverges.
    """

    def __init__(
        self,
        model: TwoTower,
        loss: SampledLoss | CorpusLoss,
        *,
        negatives: NegativeSampler | None,
        optimizer: AdamW,
        corpus: Tensor,
        clip_norm: float = 0.0,
        seed: int = 0,
        schedule_steps: int | None = None,
        priors: TrainingPriors | None = None,
    ) -> None:
        super().__init__()
        loss.check_negatives(negatives)
        self.priors = priors
        self.model, self.loss, self.negatives = model, loss, negatives
        self.optimizer_factory, self.clip_norm, self.seed = optimizer, clip_norm, seed
        self.schedule_steps = schedule_steps
        self._watch = FiniteWatch(getattr(optimizer, "lr", None), clip_norm)
        if loss.reads_corpus:
            # Row 0 embeds unknown items of histories and is never a candidate.
            self._rows = torch.cat([torch.tensor([UNKNOWN_ITEM]), corpus])
            num_rows = max(int(self._rows.max()), model.item_tower.num_trained) + 1
            self._row_of = torch.zeros(num_rows, dtype=torch.int64)
            self._row_of[self._rows] = torch.arange(len(self._rows))
        # Step and description of the sharded tables that were written last.
        self._written: tuple[int, dict[str, Any]] | None = None
        self.num_targets = 0
        self._sparse = {
            f"model.{name}.weight": module.weight
            for name, module in model.named_modules()
            if isinstance(module, nn.Embedding) and module.sparse
        }
        # DDP reads this. It would reduce their gradients itself, which NCCL cannot.
        self._ddp_params_and_buffers_to_ignore = list(self._sparse)
        # Longest history of the first batch; None before it. The encoder is checked with untrained weights, and with
        # trained ones, because untrained ones may be zero where histories mix.
        self._longest: int | None = None
        self._checks_left = 2

    def configure_model(self) -> None:
        """Create the rows of sharded tables, when the processes of the training know each other."""
        if not sharded_tables(self.model):
            return
        if not hasattr(self.optimizer_factory, "fused_optimizer"):
            raise UserError(
                "optimizer: sharded tables need an optimizer with the method fused_optimizer, such as adamw"
            )
        device = self.trainer.strategy.root_device
        build_tables(self.model, self.optimizer_factory.fused_optimizer(device), device=device)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Check the encoder before the first step."""
        if self._longest is None:
            self._longest = int(batch.lengths.max(initial=0))
            self._check_encoder()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the mean loss over the targets of all processes."""
        batch = self._without_evicted(batch)
        rank, world = self.global_rank, distributed.world_size()
        self._seed(hash((self.seed, self.global_step, rank)) & 0xFFFFFFFF)
        count = distributed.total(torch.tensor(float(len(batch.target_idx)), device=self.device))
        # The loss weights the rows within a process. Processes are weighted by the sum of the weights of their rows.
        own = batch.weight.sum() if batch.weight is not None else torch.tensor(float(len(batch.target_idx)))
        everyone = distributed.total(own.to(self.device))
        losses = self._corpus_loss(batch, self.loss) if self.loss.reads_corpus is True else self._sampled_loss(batch)
        # In lower precision a sum over thousands of exponentials would lose most of them.
        with torch.autocast(self.device.type, enabled=False):
            loss = losses()
        # Processes average their gradients. This factor turns the average into the mean over all targets.
        loss = loss * (own.to(self.device) * world / everyone.clamp(min=torch.finfo(everyone.dtype).tiny))
        mean = distributed.total(loss.detach()) / world
        self._watch.add("loss", mean, step=self.global_step + 1)
        self.num_targets += int(count)
        self.log("train/loss", mean, batch_size=len(batch.target_idx), prog_bar=True)
        if self.model.log_inverse_temperature.requires_grad:
            self.log("train/temperature", 1.0 / self.model.inverse_temperature.detach(), batch_size=1)
        return loss

    def validation_step(self, batch: tuple[Batch, Requests], batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the user embeddings [R, D] or [R, M, D] of the requests, for the evaluation callback."""
        return self.model.encode_users(batch[0])

    def configure_optimizers(self) -> Any:
        """Return the optimizer and its schedule, which advances with every batch."""
        optimizer = self.optimizer_factory.optimizer(self.model)
        if self.schedule_steps is None:
            steps, kind = (
                self.trainer.estimated_stepping_batches,
                getattr(self.optimizer_factory, "schedule", "constant"),
            )
            if math.isinf(steps) and kind != "constant":
                raise UserError(
                    f"optimizer.schedule={kind}: needs the number of steps, and only time or patience ends this "
                    "training; set trainer.max_epochs or trainer.max_steps, or optimizer.schedule=constant"
                )
            self.schedule_steps = None if math.isinf(steps) else int(steps)
        total_steps = self.schedule_steps or sys.maxsize
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.optimizer_factory.factor(step, total_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: Any) -> None:  # noqa: ARG002
        """Average the gradients of sparse tables over processes."""
        for table in self._sparse.values() if distributed.world_size() > 1 else ():
            table.grad = distributed.average_sparse(table)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **settings: Any) -> None:  # noqa: ARG002
        """Clip dense gradients. Adam normalises rows of sparse tables by their own second moments."""
        if self.clip_norm > 0.0:
            dense = [p for p in self.model.parameters() if p.grad is not None and not p.grad.is_sparse]
            norm = nn.utils.clip_grad_norm_(dense, self.clip_norm)
            # With a scaler a norm that is not finite is usual: the step is skipped and the scale reduced.
            plugin = None if self._trainer is None else self._trainer.precision_plugin
            if getattr(plugin, "scaler", None) is None:
                self._watch.add("gradient", norm, step=self.global_step + 1)

    def on_validation_start(self) -> None:
        """Refuse to measure a model that has diverged."""
        self._watch.check_weights(self.model, self.global_step)
        self._check_encoder()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep a model that has diverged from replacing a checkpoint, and write sharded tables beside it."""
        self._watch.check()
        if sharded_tables(self.model):
            if self._written is None or self._written[0] != self.global_step:
                folder = Path(self.trainer.default_root_dir) / "checkpoints"
                self._written = self.global_step, save_tables(self.model, folder, step=self.global_step)
            checkpoint[KEY] = self._written[1]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read the rows of sharded tables that this process owns."""
        path = self.trainer.ckpt_path
        if (tables := stored_tables(checkpoint, Path(str(path)))) is not None:
            tables.load_into(self.model, with_state=True)

    def _check_encoder(self) -> None:
        tower = self.model.user_tower
        if self._checks_left and self._longest is not None:
            check_encoder(tower.encoder, tower.dim, max_history=self._longest, device=self.device)
            self._checks_left -= 1

    def _seed(self, seed: int) -> None:
        # `torch.manual_seed` seeds every kind of device, which takes longer than a small layer.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _corpus_loss(self, batch: Batch, loss: CorpusLoss) -> Callable[[], Tensor]:
        item_tower, user_tower = self.model.item_tower, self.model.user_tower
        row_of, rows = self._row_of.to(self.device), self._rows.to(self.device)
        embeddings = item_tower(rows)
        read = user_tower.mask_items(batch.item_idx)
        if user_tower.own_items is None:
            tokens = F.embedding(row_of[read], embeddings)
        else:
            (tokens,) = _embed(user_tower.own_items, read)
        users = self._normalized(user_tower(batch, tokens)) * self.model.inverse_temperature
        labels = row_of[batch.target_idx] - 1
        # A target outside the corpus (without ids: an item without features) has no embedding to learn.
        known = labels >= 0
        weight = None if batch.weight is None else batch.weight[known]
        users, labels, items = users[known], labels[known], self._normalized(embeddings[1:])
        if self.model.num_embeddings > 1:
            users = select_best_interest(users, F.embedding(labels, items))
        if self.priors is None:
            return functools.partial(loss, users, items, labels=labels, weight=weight)
        prior = self.priors.terms(
            batch.target_time[known], batch.target_idx[known], rows[1:], generator=self._generator()
        )
        return functools.partial(loss, users, items, labels=labels, weight=weight, prior=prior)

    def _sampled_loss(self, batch: Batch) -> Callable[[], Tensor]:
        assert self.negatives is not None
        assert self.loss.reads_corpus is False
        model, sampler = self.model, self.negatives
        generator = self._generator()
        everyones = batch.target_idx[:0]
        if sampler.frequency is not None:
            everyones = distributed.gather(batch.target_idx)
            sampler.frequency.update(everyones)
        drawn = sampler.draw(generator, everyones)
        shown = drawn[:0] if batch.exposures is None else batch.exposures.values
        read = model.user_tower.mask_items(batch.item_idx)
        candidates = batch.target_idx, drawn, shown
        if model.user_tower.own_items is None:
            tokens, *compared = _embed(model.item_tower, read, *candidates)
        else:
            (tokens,), compared = _embed(model.user_tower.own_items, read), _embed(model.item_tower, *candidates)
        targets, extra, exposed = map(self._normalized, compared)
        users = self._normalized(model.user_tower(batch, tokens)) * model.inverse_temperature
        if model.num_embeddings > 1:
            users = select_best_interest(users, targets)
        num_targets = 0
        if sampler.frequency is not None:
            batch_idx, embeddings = self._targets(everyones, distributed.gather(targets), generator=generator)
            num_targets = len(batch_idx)
            drawn, extra = torch.cat([batch_idx, drawn]), torch.cat([embeddings, extra])
        sampled = describe_candidates(sampler, drawn, embeddings=extra, num_targets=num_targets, batch=batch)
        if batch.exposures is not None:
            sampled = add_exposures(sampled, exposed, exposures=batch.exposures, batch=batch)
        if self.priors is not None:
            among = torch.cat([drawn, shown])
            prior = self.priors.terms(batch.target_time, batch.target_idx, among, generator=generator)
            sampled = sampled._replace(prior=prior)
        return functools.partial(self.loss, users, targets, sampled=sampled, weight=batch.weight)

    def _without_evicted(self, batch: Batch) -> Batch:
        """Give weight 0 to targets that have no embedding of their own."""
        # A tower of an outside package may have an embedding for every item.
        if (evicted := getattr(self.model.item_tower, "evicted", None)) is None:
            return batch
        known = (~evicted[batch.target_idx]).float()
        return dataclasses.replace(batch, weight=known if batch.weight is None else batch.weight * known)

    def _normalized(self, embeddings: Tensor) -> Tensor:
        """Return embeddings that can be compared, in float32 if the towers have a lower precision."""
        return self.model.normalize(embeddings.float() if embeddings.element_size() < 4 else embeddings)

    def _generator(self) -> torch.Generator:
        """Return a generator with the same seed on all processes, so that all draw the same items."""
        return torch.Generator(self.device).manual_seed(hash((self.seed, self.global_step)) & 0xFFFFFFFF)

    def _targets(self, item_idx: Tensor, embeddings: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the targets of the step that are used as candidates."""
        assert self.negatives is not None
        most = self.negatives.max_targets
        if most is not None and len(item_idx) > most:
            chosen = torch.randperm(len(item_idx), generator=generator, device=self.device)[:most]
            item_idx, embeddings = item_idx[chosen], F.embedding(chosen, embeddings)
        return item_idx, embeddings


class EmbeddingModule(L.LightningModule):
    """A trained model for a trainer that only evaluates.

    Args:
        model: two towers, or a blend of several models.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def configure_model(self) -> None:
        """Create the rows of sharded tables and fill them from the checkpoint that was named."""
        build_tables(self.model, NO_UPDATES, device=self.trainer.strategy.root_device)

    def test_step(self, batch: tuple[Batch, Requests], batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the user embeddings [R, D] or [R, M, D] of the requests, for the evaluation callback."""
        return self.model.encode_users(batch[0])


def _embed(tower: ItemTower, *groups: Tensor) -> list[Tensor]:
    """Return the item embeddings of several groups of item_idx, each item computed once."""
    joined = torch.cat(groups)
    if tower.is_lookup:
        embeddings = tower(joined)
    else:
        distinct, inverse = torch.unique(joined, return_inverse=True)
        embeddings = F.embedding(inverse, tower(distinct))
    return list(embeddings.split([len(group) for group in groups]))
