"""A blend of several two-tower models, with embeddings side by side so that their logits add up."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from recsys.core.columns import ragged_positions
from recsys.core.index_time import IndexTime
from recsys.core.schema import UNKNOWN_ITEM
from recsys.data.batches.batch import Batch, FeatureTensors
from recsys.data.dataset import PreparedDataset
from recsys.models.features import take
from recsys.models.two_tower import Similarity, TwoTower, scale_new_items


class Member(NamedTuple):
    """One model of a blend.

    Attributes:
        model: trained model with one embedding a user.
        weight: weight of its logits in the sum.
        max_history: number of most recent events that it reads; None for all.
    """

    model: TwoTower
    weight: float
    max_history: int | None


class Blend(nn.Module):
    """A weighted sum of the members' logits, `sum_m w_m u_m . v_m / temperature_m`, as one inner product.

    Models that read a history in different ways (as a sequence, or as a set) err on different users, and their sum is
    better than each: a product of experts (Hinton 2002, section 1) over the corpus. Item embeddings contain the weights
    and temperatures, and user embeddings are those of the members side by side.

    Args:
        members: models of the blend, at least one.
        item_bias: float32 [N + 1], added to the logits of the items; None for no bias. Embeddings then have one more
            dimension, which is the same for every user.
        new_items_scale: factor of the logits of items without training events, their bias included.
    """

    num_embeddings = 1
    item_bias: Tensor | None

    def __init__(
        self, members: Sequence[Member], item_bias: Tensor | None = None, *, new_items_scale: float = 1.0
    ) -> None:
        super().__init__()
        for member in members:
            if member.model.num_embeddings > 1:
                raise ValueError(f"blend: a member has {member.model.num_embeddings} embeddings a user, expected one")
        self.models = nn.ModuleList(member.model for member in members)
        self.members = tuple(members)
        self.num_trained, self.new_items_scale = members[0].model.num_trained, new_items_scale
        # Not part of a checkpoint, because it is computed from counts when the model is built.
        self.register_buffer("item_bias", item_bias, persistent=False)

    @property
    def dim(self) -> int:
        """Width of the embeddings: the sum over members, and one for the bias."""
        return sum(member.model.dim for member in self.members) + (self.item_bias is not None)

    @property
    def metric(self) -> Similarity:
        """Similarity of retrieval, `dot`, because embeddings of several models are not of unit length."""
        return "dot"

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.members[0].model.device

    @property
    def temperature(self) -> float:
        """Divisor that turns scores into logits: 1, because scores are sums of logits."""
        return 1.0

    @property
    def user_tower(self) -> nn.ModuleList:
        """User towers of the members."""
        return nn.ModuleList(member.model.user_tower for member in self.members)

    @property
    def item_tower(self) -> nn.ModuleList:
        """Item towers of the members."""
        return nn.ModuleList(member.model.item_tower for member in self.members)

    @property
    def reads_ids(self) -> bool:
        """True if a member has an embedding for each trained item."""
        return any(member.model.reads_ids for member in self.members)

    @property
    def reads_features(self) -> bool:
        """True if features place an item without a trained id in a member."""
        return any(member.model.reads_features for member in self.members)

    @property
    def reads_users(self) -> bool:
        """True if a member has an embedding for each trained user."""
        return any(member.model.reads_users for member in self.members)

    def encode_items(self, item_idx: Tensor) -> Tensor:
        """Return the item embeddings [R, dim] of `item_idx` int64 [R], for comparison by inner product."""
        parts = [
            model.encode_items(item_idx) * (weight * model.inverse_temperature) for model, weight, _ in self.members
        ]
        if self.item_bias is not None:
            rows = torch.where(item_idx < len(self.item_bias), item_idx, UNKNOWN_ITEM)
            parts.append(self.item_bias[rows].unsqueeze(1))
        return scale_new_items(self, torch.cat(parts, dim=1), item_idx)

    def encode_users(self, batch: Batch) -> Tensor:
        """Return the user embeddings [P, dim] of requests, which have one query at the end of each history."""
        return self.join(
            [model.encode_users(keep_latest_events(batch, max_history)) for model, _, max_history in self.members]
        )

    def set_item_bias(self, dataset: PreparedDataset, index_time: IndexTime | None) -> None:
        """Set the biases of all members for the time of an index; see `TwoTower.set_item_bias`."""
        for member in self.members:
            member.model.set_item_bias(dataset, index_time)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return user embeddings [P, dim] from those of the members, each [P, D_m]."""
        ones = [] if self.item_bias is None else [torch.ones_like(parts[0][:, :1])]
        return torch.cat([*parts, *ones], dim=1)


Model = TwoTower | Blend


def members_of(model: Model) -> tuple[Member, ...]:
    """Return the members of a blend. A single model is its only member."""
    return model.members if isinstance(model, Blend) else (Member(model, 1.0, None),)


@contextmanager
def kept_biases(model: Model) -> Iterator[list[Model]]:
    """Give a model and its members, which the block gets, the biases back that they had when the block began."""
    parts: list[Model] = [model, *(member.model for member in members_of(model))]
    kept = [(part, part.item_bias, getattr(part, "fixed_bias", None)) for part in parts]
    try:
        yield parts
    finally:
        for part, bias, fixed in kept:
            part.item_bias = bias
            if isinstance(part, TwoTower):
                part.fixed_bias = fixed


@torch.inference_mode()
def write_bias(model: Model, embeddings: Tensor, *, item_idx: Tensor) -> None:
    """Write the present item biases of a model into embeddings [R, dim] that `encode_items` returned for `item_idx`."""

    def at(part: Model, bias: Tensor) -> Tensor:
        rows = torch.where(item_idx < len(bias), item_idx, UNKNOWN_ITEM)
        scaled = scale_new_items(part, bias[rows], item_idx)
        return scaled if part is model else scale_new_items(model, scaled, item_idx)

    end = 0
    for member in members_of(model):
        one = member.model
        end += one.dim
        if one.item_bias is not None:
            scale = member.weight if isinstance(model, Blend) else 1 / one.inverse_temperature
            embeddings[:, end - 1] = at(one, one.item_bias) * scale
    if isinstance(model, Blend) and model.item_bias is not None:
        embeddings[:, end] = at(model, model.item_bias)


@torch.no_grad()
def item_vectors(model: Model, item_idx: Tensor) -> Tensor:
    """Return the outputs of all item towers for `item_idx` int64 [R] side by side, as vectors of an item space."""
    return torch.cat([member.model.item_tower(item_idx) for member in members_of(model)], dim=1)


def keep_latest_events(batch: Batch, max_history: int | None) -> Batch:
    """Return a batch of requests with the latest `max_history` events of each history; None for all."""
    if max_history is None:
        return batch
    lengths = batch.lengths.clip(max=max_history)
    if (lengths == batch.lengths).all():
        return batch
    assert len(batch.query) == len(lengths), "expected one query a history, at its end"
    kept = torch.from_numpy(ragged_positions(batch.lengths.cumsum() - lengths, lengths)).to(batch.item_idx.device)
    events: FeatureTensors = {name: take(column, kept) for name, column in batch.events.items()}
    query = torch.from_numpy(lengths.cumsum()) + torch.arange(len(lengths))
    return dataclasses.replace(
        batch,
        item_idx=batch.item_idx[kept],
        time=batch.time[kept],
        lengths=lengths,
        events=events,
        query=query.to(batch.query.device),
    )
