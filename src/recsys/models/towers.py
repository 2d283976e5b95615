"""The user tower: a batch of histories -> user embeddings.

Shapes: T events, H histories, P queries, M embeddings of a user, D dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.core.errors import UserError
from recsys.core.schema import UNKNOWN_ITEM, TimeResolution
from recsys.data.batches.batch import Batch, FeatureTensors
from recsys.data.dataset import PreparedDataset
from recsys.models.crossing import MLP, Crossing
from recsys.models.encoders import HistoryEncoder
from recsys.models.features import FeatureEmbedding, hide, take
from recsys.models.interests import Interests, interests_of_prefixes
from recsys.models.items import ItemTower
from recsys.models.layout import Padded
from recsys.models.sequences import Sequences


class UserTower(nn.Module):
    """History encoder, then profile and request features mixed into its state.

    Args:
        encoder: of the history.
        dim: D.
        dataset: schema, and which users have training events.
        use_profile: read the features of users.
        use_user_id: learn an embedding for each user with training events.
        feature_width: of each feature's embedding.
        crossing: the network that mixes profile and request with the state.
        unknown_rate: share of the history's items that training reads as unknown.
        interests: several embeddings of a user, from the encoder's states; null for one, its last state.
        own_items: what embeds the items of histories; null for the item tower, which embeds the candidates.

    Raises:
        UserError: an encoder that reads time, and data without a clock.
    """

    def __init__(
        self,
        encoder: HistoryEncoder,
        dim: int,
        dataset: PreparedDataset,
        use_profile: bool = True,
        use_user_id: bool = False,
        feature_width: int = 32,
        crossing: Crossing = MLP,
        unknown_rate: float = 0.01,
        interests: Interests | None = None,
        own_items: ItemTower | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.unknown_rate = dim, unknown_rate
        self.encoder, self.interests, self.own_items = encoder, interests, own_items
        self.time_unit = _time_unit(encoder, dataset)
        self.start = nn.Parameter(torch.randn(dim) * dim**-0.5)
        schema = dataset.schema
        events, requests = schema.with_role("event", "request"), schema.with_role("request")
        profile = schema.with_role("profile") if use_profile else ()
        self.events = FeatureEmbedding(events, feature_width) if events else None
        self.event_projection = nn.Linear(self.events.out_dim, dim) if self.events is not None else None
        self.profile = FeatureEmbedding(profile, feature_width) if profile else None
        self.requests = FeatureEmbedding(requests, feature_width) if requests else None
        self.users = _UserIds(dataset, feature_width, unknown_rate) if use_user_id else None
        parts = (self.profile, self.requests, self.users)
        context = [width for part in parts if part is not None for width in part.widths]
        self.mixer = crossing([dim, *context], dim) if context else None

    @property
    def num_embeddings(self) -> int:
        """Embeddings of a user, M."""
        return 1 if self.interests is None else self.interests.num_embeddings

    def mask_items(self, item_idx: Tensor) -> Tensor:
        """Items of the history of which, in training, a share is read as unknown."""
        return hide(item_idx, self.unknown_rate, self.training, UNKNOWN_ITEM)

    def forward(self, batch: Batch, items: Tensor) -> Tensor:
        """User embeddings [P, D] or, of several interests, [P, M, D], zeros where a user has fewer.

        `items` [T, D] are the embeddings of the batch's events.
        """
        tokens = self._tokens(items, batch.events)
        source, layout, answer = Sequences.from_batch(batch, self.encoder.is_causal, self.encoder.reads_time)
        states = self.encoder(F.embedding(source, torch.cat([self.start.unsqueeze(0), tokens])), layout)
        there = None
        if self.interests is None:
            states = F.embedding(answer, states)
        else:
            states, there = interests_of_prefixes(
                self.interests, states, layout.lengths, answer, layout.sequence[answer]
            )
        users = {name: take(column, batch.history) for name, column in batch.users.items()} if self.profile else {}
        return self._mix(states, users, batch.requests, batch.user_idx[batch.history], there)

    def forward_padded(
        self,
        items: Tensor,
        lengths: Tensor,
        events: FeatureTensors,
        users: FeatureTensors,
        requests: FeatureTensors,
        user_idx: Tensor,
        time: Tensor | None,
    ) -> Tensor:
        """User embeddings [B, D] or [B, M, D] of histories padded on the right; what the exported tower computes.

        Args:
            items: [B, L, D] embeddings of the events.
            lengths: int64 [B], events of each history, 0..L.
            events: features of the events as rows [B * L], bags padded.
            users: profile features as rows [B], bags padded.
            requests: request features as rows [B], bags padded.
            user_idx: int64 [B], -1 for an unknown user.
            time: int64 [B, L], seconds, of the events, where the encoder reads it.
        """
        tokens = self._tokens(items.flatten(0, 1), events).unflatten(0, items.shape[:2])
        x = torch.cat([self.start.expand(tokens.shape[0], 1, -1), tokens], dim=1)
        if time is not None:
            # The start token has the time of the first event.
            time = torch.cat([time[:, :1], time], dim=1)
            if self.time_unit > 1:
                time = time - torch.remainder(time, self.time_unit)
        states = self.encoder(x, Padded(x, lengths + 1, time))
        if self.interests is None:
            last = lengths.view(-1, 1, 1).expand(-1, 1, states.shape[2])
            return self._mix(states.gather(1, last).squeeze(1), users, requests, user_idx)
        states, there = self.interests(states, lengths.unsqueeze(1) + 1)
        return self._mix(states.squeeze(1), users, requests, user_idx, there.squeeze(1))

    def _tokens(self, items: Tensor, events: FeatureTensors) -> Tensor:
        tokens: Tensor = items * self.dim**0.5
        if self.events is None or self.event_projection is None:
            return tokens
        return tokens + self.event_projection(self.events(events))  # type: ignore[no-any-return]

    def _mix(
        self,
        states: Tensor,
        users: FeatureTensors,
        requests: FeatureTensors,
        user_idx: Tensor,
        there: Tensor | None = None,
    ) -> Tensor:
        if self.mixer is not None:
            parts = []
            if self.profile is not None:
                parts.append(self.profile(users))
            if self.requests is not None:
                parts.append(self.requests(requests))
            if self.users is not None:
                parts.append(self.users(user_idx))
            if states.ndim == 3:
                parts = [part.unsqueeze(1).expand(-1, states.shape[1], -1) for part in parts]
            states = states + self.mixer(torch.cat([states, *parts], dim=-1))
        return states if there is None else states.masked_fill(~there.unsqueeze(2), 0.0)


def _time_unit(encoder: HistoryEncoder, dataset: PreparedDataset) -> int:
    """Seconds that the times of events are rounded down to."""
    resolution = dataset.meta.time_resolution
    if encoder.reads_time and not resolution.has_clock:
        raise UserError(
            f"user_tower: the encoder reads time (use_time=true), found data.time={resolution}; "
            "expected use_time=false with it, or timestamps in seconds or days"
        )
    return 86_400 if resolution is TimeResolution.DAY else 1


class _UserIds(nn.Module):
    """Embedding of users with training events; all others share row 0."""

    rows: Tensor

    def __init__(self, dataset: PreparedDataset, width: int, unknown_rate: float) -> None:
        super().__init__()
        trained = torch.from_numpy(dataset.train_end > dataset.offsets[:-1])
        # The last row answers index -1: an unknown user.
        rows = F.pad(torch.where(trained, trained.cumsum(0), 0), (0, 1))
        self.register_buffer("rows", rows)
        self.table = nn.Embedding(int(trained.sum()) + 1, width)
        self.widths, self.unknown_rate = [width], unknown_rate

    def forward(self, user_idx: Tensor) -> Tensor:
        rows = self.rows[torch.where(user_idx < 0, len(self.rows) - 1, user_idx)]
        return self.table(hide(rows, self.unknown_rate, self.training, UNKNOWN_ITEM))  # type: ignore[no-any-return]
