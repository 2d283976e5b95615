"""Both towers, and how their embeddings are compared."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.core.schema import UNKNOWN_ITEM
from recsys.data.batches.batch import Batch
from recsys.models.items import ItemTower
from recsys.models.towers import UserTower

Similarity = Literal["cosine", "dot"]

MAX_INVERSE_TEMPERATURE = 100.0


class TwoTower(nn.Module):
    """User and item embeddings in one space; relevance is their inner product.

    With `cosine` both are scaled to unit length, here and nowhere else, so that training, index and serving agree.

    Args:
        user_tower, item_tower: the towers.
        similarity: `cosine` or `dot`.
        temperature: logits are similarities divided by it.
        learn_temperature: learn its logarithm; its inverse is capped at 100 (as in CLIP and OmniSearchSage).
        item_bias: float32 [N + 1], added to the logits of retrieval and not to those of training; null for none.
            Embeddings then have one dimension more, which is the same for every user.
    """

    item_bias: Tensor | None

    def __init__(
        self,
        user_tower: UserTower,
        item_tower: ItemTower,
        similarity: Similarity = "cosine",
        temperature: float = 0.05,
        learn_temperature: bool = False,
        item_bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        if similarity not in ("cosine", "dot"):
            raise ValueError(f"similarity: found '{similarity}', expected 'cosine' or 'dot'")
        if temperature <= 0:
            raise ValueError(f"temperature: found {temperature}, expected a positive number")
        self.user_tower, self.item_tower, self.similarity = user_tower, item_tower, similarity
        self.log_inverse_temperature = nn.Parameter(
            torch.tensor(-math.log(temperature)), requires_grad=learn_temperature
        )
        self.register_buffer("item_bias", item_bias)

    @property
    def inverse_temperature(self) -> Tensor:
        """Factor from similarities to logits; scalar."""
        if not self.log_inverse_temperature.requires_grad:
            return self.log_inverse_temperature.exp()
        return self.log_inverse_temperature.exp().clamp(max=MAX_INVERSE_TEMPERATURE)

    def normalize(self, embeddings: Tensor) -> Tensor:
        """Embeddings [..., D] as the inner product wants them."""
        return F.normalize(embeddings, dim=-1) if self.similarity == "cosine" else embeddings

    @property
    def history_tower(self) -> ItemTower:
        """What embeds the items of histories: the item tower, unless the user tower has its own."""
        own = self.user_tower.own_items
        return self.item_tower if own is None else own

    @property
    def dim(self) -> int:
        """Width of the embeddings that retrieval compares."""
        return self.user_tower.dim + (self.item_bias is not None)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.log_inverse_temperature.device

    @property
    def temperature(self) -> float:
        """What scores are divided by to be logits."""
        return float(1 / self.inverse_temperature)

    @property
    def reads_ids(self) -> bool:
        """Whether each trained item has an embedding."""
        return self.item_tower.reads_ids

    @property
    def reads_features(self) -> bool:
        """Whether an item without a trained id is placed by its features."""
        return self.item_tower.reads_features

    @property
    def reads_users(self) -> bool:
        """Whether each trained user has an embedding."""
        return self.user_tower.users is not None

    @property
    def num_embeddings(self) -> int:
        """Embeddings of a user, M."""
        return self.user_tower.num_embeddings

    @property
    def metric(self) -> Similarity:
        """How retrieval compares them: with a bias they are not of unit length, whatever the training's similarity."""
        return self.similarity if self.item_bias is None else "dot"

    def encode_items(self, item_idx: Tensor) -> Tensor:
        """Comparable item embeddings [R, dim] of `item_idx` int64 [R]."""
        embeddings = self.normalize(self.item_tower(item_idx))
        if self.item_bias is None:
            return embeddings
        rows = torch.where(item_idx < len(self.item_bias), item_idx, UNKNOWN_ITEM)
        bias = self.item_bias[rows] / self.inverse_temperature
        return torch.cat([embeddings, bias.unsqueeze(1)], dim=1)

    def encode_users(self, batch: Batch) -> Tensor:
        """Comparable user embeddings of each query of the batch: [P, dim], or [P, M, dim] of several interests."""
        return self.finish_users(self.user_tower(batch, self.history_tower(batch.item_idx)))

    def finish_users(self, states: Tensor) -> Tensor:
        """What the user tower gives, [P, D] or [P, M, D], as embeddings that retrieval compares."""
        embeddings = self.normalize(states)
        if self.item_bias is None:
            return embeddings
        if states.ndim == 2:
            return F.pad(embeddings, (0, 1), value=1.0)
        # Absent embeddings stay zeros.
        return torch.cat([embeddings, states.any(2, keepdim=True).to(embeddings.dtype)], dim=2)


def select_best_interest(users: Tensor, targets: Tensor) -> Tensor:
    """The embedding [P, D] of each user that scores its target best, for training.

    Label-aware attention of MIND (Li et al. 2019, section 3.4) in the limit of a large power, as in ComiRec (Cen et al.
    2020): a target teaches the interest that it belongs to.

    Args:
        users: comparable embeddings [P, M, D], zeros where there is none.
        targets: [P, D].
    """
    with torch.no_grad():
        scores = (users @ targets.unsqueeze(2)).squeeze(2)
        best = scores.masked_fill(~users.any(2), -torch.inf).argmax(1)
    return users[torch.arange(len(users), device=users.device), best]
