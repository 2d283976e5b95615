"""The two-tower model, and the similarity of its embeddings."""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.core.index_time import IndexTime
from recsys.core.schema import UNKNOWN_ITEM
from recsys.data.batches.batch import Batch
from recsys.data.dataset import PreparedDataset
from recsys.models.items import ItemTower
from recsys.models.priors import ItemPriors
from recsys.models.towers import UserTower

Similarity = Literal["cosine", "dot"]

MAX_INVERSE_TEMPERATURE = 100.0


class TwoTower(nn.Module):
    """User and item embeddings in one space, with their inner product as the similarity.

    With `cosine` both are scaled to unit length. This is the only place that does so, and therefore training, index and
    serving agree.

    Args:
        user_tower: tower of users.
        item_tower: tower of items.
        similarity: `cosine` or `dot`.
        temperature: divisor that turns similarities into logits.
        learn_temperature: learn the logarithm of the temperature. Its inverse is at most 100, as in CLIP and
            OmniSearchSage.
        item_bias: float32 [N + 1], added to the logits of retrieval but not to those of training; None for no bias.
            Embeddings then have one more dimension, which is the same for every user. Item priors are added to it for
            the time of an index, see `set_item_bias`.
        num_trained: number of items with a training event, which have the item_idx 1 to `num_trained`.
        new_items_scale: factor of the retrieval logits of other items, their bias included.
    """

    item_bias: Tensor | None
    fixed_bias: Tensor | None

    def __init__(
        self,
        user_tower: UserTower,
        item_tower: ItemTower,
        *,
        similarity: Similarity = "cosine",
        temperature: float = 0.05,
        learn_temperature: bool = False,
        item_bias: Tensor | None = None,
        num_trained: int = 0,
        new_items_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if similarity not in ("cosine", "dot"):
            raise ValueError(f"similarity: found '{similarity}', expected 'cosine' or 'dot'")
        if user_tower.dim != item_tower.dim:
            raise ValueError(
                f"dim: found user_tower.dim={user_tower.dim} and item_tower.dim={item_tower.dim}, expected one width"
            )
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature: found {temperature}, expected a positive number")
        self.user_tower, self.item_tower, self.similarity = user_tower, item_tower, similarity
        self.log_inverse_temperature = nn.Parameter(
            torch.tensor(-math.log(temperature)), requires_grad=learn_temperature
        )
        # Not part of a checkpoint, because it is computed when the model is built, and for the time of an index.
        has_priors = self.priors is not None
        if has_priors and item_bias is None:
            raise ValueError("item_bias: found None, expected a bias (zeros at first) for an item tower with priors")
        self.register_buffer("item_bias", item_bias, persistent=False)
        # A copy, since Lightning counts a shared tensor once.
        fixed = None if item_bias is None or not has_priors else item_bias.clone()
        self.register_buffer("fixed_bias", fixed, persistent=False)
        self.num_trained, self.new_items_scale = num_trained, new_items_scale

    @property
    def priors(self) -> ItemPriors | None:
        """Learned functions of the age and recent popularity of items, if the model has them."""
        return getattr(self.item_tower, "priors", None)

    def set_item_bias(self, dataset: PreparedDataset, index_time: IndexTime | None) -> None:
        """Set the bias of items to that of an index: the fixed one, and the item priors at that time.

        Args:
            dataset: items and their events, perhaps newer than those of training.
            index_time: time of the index; None leaves the bias as it is.
        """
        if self.priors is None or index_time is None:
            return
        bias = self.priors.item_bias(dataset, index_time)
        if self.fixed_bias is not None:
            shared = min(len(bias), len(self.fixed_bias))
            bias[:shared] += self.fixed_bias[:shared].cpu()
        self.item_bias = bias.to(self.device)

    @property
    def inverse_temperature(self) -> Tensor:
        """Factor that turns similarities into logits; a scalar."""
        if not self.log_inverse_temperature.requires_grad:
            return self.log_inverse_temperature.exp()
        return self.log_inverse_temperature.exp().clamp(max=MAX_INVERSE_TEMPERATURE)

    def normalize(self, embeddings: Tensor) -> Tensor:
        """Return embeddings [..., D] that can be compared by inner product: of unit length with `cosine`."""
        return F.normalize(embeddings, dim=-1) if self.similarity == "cosine" else embeddings

    @property
    def history_tower(self) -> ItemTower:
        """Item tower of the items of histories: that of the user tower, if it has its own."""
        own = self.user_tower.own_items
        return self.item_tower if own is None else own

    @property
    def dim(self) -> int:
        """Width of the embeddings that retrieval compares."""
        return self.user_tower.dim + (self.item_bias is not None)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.log_inverse_temperature.device

    @property
    def temperature(self) -> float:
        """Divisor that turns scores into logits."""
        return float(1 / self.inverse_temperature)

    @property
    def reads_ids(self) -> bool:
        """True if each trained item has its own embedding."""
        return self.item_tower.reads_ids

    @property
    def reads_features(self) -> bool:
        """True if features place an item without a trained id."""
        return self.item_tower.reads_features

    @property
    def reads_users(self) -> bool:
        """True if each trained user has an embedding."""
        return self.user_tower.users is not None

    @property
    def num_embeddings(self) -> int:
        """Number of embeddings of a user, M."""
        return self.user_tower.num_embeddings

    @property
    def metric(self) -> Similarity:
        """Similarity of retrieval: `dot` with a bias or a scale, because embeddings are then not of unit length."""
        return self.similarity if self.item_bias is None and self.new_items_scale == 1 else "dot"

    def encode_items(self, item_idx: Tensor) -> Tensor:
        """Return the item embeddings [R, dim] of `item_idx` int64 [R], for comparison by inner product."""
        embeddings = self.normalize(self.item_tower(item_idx))
        if self.item_bias is not None:
            rows = torch.where(item_idx < len(self.item_bias), item_idx, UNKNOWN_ITEM)
            bias = self.item_bias[rows] / self.inverse_temperature
            embeddings = torch.cat([embeddings, bias.unsqueeze(1)], dim=1)
        return scale_new_items(self, embeddings, item_idx)

    def encode_users(self, batch: Batch) -> Tensor:
        """Return the user embeddings of the queries, [P, dim] or [P, M, dim], for comparison by inner product."""
        return self.finish_users(self.user_tower(batch, self.history_tower(batch.item_idx)))

    def finish_users(self, states: Tensor) -> Tensor:
        """Return user embeddings for retrieval from the output of the user tower, [P, D] or [P, M, D]."""
        embeddings = self.normalize(states)
        if self.item_bias is None:
            return embeddings
        if states.ndim == 2:
            return F.pad(embeddings, (0, 1), value=1.0)
        # Absent embeddings stay zeros.
        return torch.cat([embeddings, states.any(2, keepdim=True).to(embeddings.dtype)], dim=2)


class ScalesNewItems(Protocol):
    """A model that multiplies the embeddings of items without training events."""

    num_trained: int
    new_items_scale: float


def scale_new_items(model: ScalesNewItems, embeddings: Tensor, item_idx: Tensor) -> Tensor:
    """Return embeddings [R, ...] of `item_idx` int64 [R] with the scale of new items in them."""
    if model.new_items_scale == 1:
        return embeddings
    is_new = (item_idx > model.num_trained) | (item_idx == UNKNOWN_ITEM)
    scale = torch.where(is_new, model.new_items_scale, 1.0).to(embeddings)
    return embeddings * scale.view(-1, *[1] * (embeddings.ndim - 1))


def select_best_interest(users: Tensor, targets: Tensor) -> Tensor:
    """Return the embedding [P, D] of each user that scores its target best, for training.

    This is the label-aware attention of MIND (Li et al. 2019, section 3.4) in the limit of a large power, as in ComiRec
    (Cen et al. 2020): a target trains the interest that it belongs to.

    Args:
        users: normalised embeddings [P, M, D]; absent ones are zeros.
        targets: normalised embeddings [P, D].
    """
    with torch.no_grad():
        scores = (users @ targets.unsqueeze(2)).squeeze(2)
        best = scores.masked_fill(~users.any(2), -torch.inf).argmax(1)
    return users[torch.arange(len(users), device=users.device), best]
