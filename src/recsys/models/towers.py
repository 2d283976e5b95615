"""The user tower, which turns a batch of histories into user embeddings.

Shapes: T events, H histories, P queries, M embeddings of a user, D dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.core.errors import UnsuitableDataError
from recsys.core.schema import UNKNOWN_ITEM, TimeResolution
from recsys.core.types import Int64Array
from recsys.data.batches.batch import Batch, FeatureTensors
from recsys.data.dataset import DataSizes
from recsys.models.admission import Admission
from recsys.models.crossing import MLP, Crossing
from recsys.models.encoder_check import check_attributes
from recsys.models.encoders import HistoryEncoder
from recsys.models.features import FeatureEmbedding, mask_codes, take
from recsys.models.interests import Interests, interests_of_prefixes
from recsys.models.items import ItemTower
from recsys.models.layout import Padded
from recsys.models.sequences import Sequences
from recsys.models.sharded_table import Sharding, id_table


class UserTower(nn.Module):
    """A history encoder, and a network that adds profile and request features to its state.

    Args:
        encoder: encoder of the history.
        dim: width of the embeddings, D.
        sizes: schema, resolution of timestamps, and the users with training events.
        use_profile: read the features of users.
        use_user_id: learn an embedding for each user with training events.
        admission: rows of the table of users, if there are fewer than these users; None for one for each.
        id_rows: int64 [U], row of each user in that table; None if weights that are loaded have it.
        feature_width: width of each feature's embedding.
        crossing: builder of the network that mixes profile and request with the state.
        unknown_rate: share of the history's items that training replaces by the unknown item.
        interests: module that makes several embeddings from the encoder's states; None for one, the last state.
        own_items: item tower for the items of histories; None for the one that embeds the candidates.
        sharding: place of the table of users, see `id_table`.

    Raises:
        UnsuitableDataError: If the encoder reads time and the timestamps of the data are not times of a
            clock.
    """

    def __init__(
        self,
        encoder: HistoryEncoder,
        dim: int,
        *,
        sizes: DataSizes,
        use_profile: bool = True,
        use_user_id: bool = False,
        admission: Admission | None = None,
        id_rows: Int64Array | None = None,
        feature_width: int = 32,
        crossing: Crossing = MLP,
        unknown_rate: float = 0.01,
        interests: Interests | None = None,
        own_items: ItemTower | None = None,
        sharding: Sharding = "replicated",
    ) -> None:
        super().__init__()
        check_attributes(encoder)
        if not 0.0 <= unknown_rate <= 1.0:
            raise ValueError(f"unknown_rate: found {unknown_rate}, expected a share between 0 and 1")
        self.dim, self.unknown_rate = dim, unknown_rate
        self.encoder, self.interests, self.own_items = encoder, interests, own_items
        self.time_unit = _time_unit(encoder, sizes)
        self.start = nn.Parameter(torch.randn(dim) * dim**-0.5)
        schema = sizes.schema
        events, requests = schema.with_role("event", "request"), schema.with_role("request")
        profile = schema.with_role("profile") if use_profile else ()
        self.events = FeatureEmbedding(events, feature_width) if events else None
        self.event_projection = nn.Linear(self.events.out_dim, dim) if self.events is not None else None
        self.profile = FeatureEmbedding(profile, feature_width) if profile else None
        self.requests = FeatureEmbedding(requests, feature_width) if requests else None
        self.users = None
        capacity = None if admission is None else admission.capacity
        if use_user_id:
            self.users = UserIds(
                sizes, feature_width, unknown_rate=unknown_rate, sharding=sharding, capacity=capacity, id_rows=id_rows
            )
        elif capacity is not None:
            raise ValueError(f"admission.capacity: found {capacity} with use_user_id=false, expected true, or null")
        parts = (self.profile, self.requests, self.users)
        context = [width for part in parts if part is not None for width in part.widths]
        self.mixer = crossing([dim, *context], dim) if context else None

    @property
    def num_embeddings(self) -> int:
        """Number of embeddings of a user, M."""
        return 1 if self.interests is None else self.interests.num_embeddings

    def mask_items(self, item_idx: Tensor) -> Tensor:
        """Return the items of histories, of which training replaces a share by the unknown item."""
        return mask_codes(item_idx, self.unknown_rate, training=self.training, unknown=UNKNOWN_ITEM)

    def forward(self, batch: Batch, items: Tensor) -> Tensor:
        """Return user embeddings [P, D], or [P, M, D] with several interests; absent embeddings are zeros.

        Args:
            batch: histories and their queries.
            items: [T, D], embeddings of the batch's events.
        """
        tokens = self._tokens(items, batch.events)
        encoder = self.encoder
        source, layout, answer = Sequences.from_batch(batch, is_causal=encoder.is_causal, reads_time=encoder.reads_time)
        states = self.encoder(F.embedding(source, torch.cat([self.start.unsqueeze(0), tokens])), layout)
        present = None
        if self.interests is None:
            states = F.embedding(answer, states)
        else:
            states, present = interests_of_prefixes(
                self.interests, states, lengths=layout.lengths, query=answer, history=layout.sequence[answer]
            )
        users = {name: take(column, batch.history) for name, column in batch.users.items()} if self.profile else {}
        context = self._context(users, batch.requests, user_idx=batch.user_idx[batch.history])
        return self._mix(states, context, present=present)

    def forward_padded(
        self,
        items: Tensor,
        lengths: Tensor,
        *,
        events: FeatureTensors,
        users: FeatureTensors,
        requests: FeatureTensors,
        user_idx: Tensor,
        time: Tensor | None,
    ) -> Tensor:
        """Return user embeddings [B, D] or [B, M, D] of histories padded on the right, as the exported tower does.

        Args:
            items: [B, L, D], embeddings of the events.
            lengths: int64 [B], events of each history, 0..L.
            events: features of the events as rows [B * L], bags padded.
            users: profile features as rows [B], bags padded.
            requests: request features as rows [B], bags padded.
            user_idx: int64 [B], -1 for an unknown user.
            time: int64 [B, L], times of the events in seconds, if the encoder reads them.
        """
        tokens = self._tokens(items.flatten(0, 1), events).unflatten(0, items.shape[:2])
        x = torch.cat([self.start.expand(tokens.shape[0], 1, -1), tokens], dim=1)
        if time is not None:
            # The start token has the time of the first event.
            time = torch.cat([time[:, :1], time], dim=1)
            if self.time_unit > 1:
                time = time - torch.remainder(time, self.time_unit)
        states = self.encoder(x, Padded(x, lengths + 1, time=time))
        context = self._context(users, requests, user_idx=user_idx)
        if self.interests is None:
            last = lengths.view(-1, 1, 1).expand(-1, 1, states.shape[2])
            return self._mix(states.gather(1, last).squeeze(1), context)
        states, present = self.interests(states, lengths.unsqueeze(1) + 1)
        return self._mix(states.squeeze(1), context, present=present.squeeze(1))

    def _tokens(self, items: Tensor, events: FeatureTensors) -> Tensor:
        tokens: Tensor = items * self.dim**0.5
        if self.events is None or self.event_projection is None:
            return tokens
        return tokens + self.event_projection(self.events(events))  # type: ignore[no-any-return]

    def _context(self, users: FeatureTensors, requests: FeatureTensors, *, user_idx: Tensor) -> list[Tensor]:
        """Return embeddings [P, ...] of profile features, request features and user ids, if the tower reads them."""
        parts: list[Tensor] = []
        if self.profile is not None:
            parts.append(self.profile(users))
        if self.requests is not None:
            parts.append(self.requests(requests))
        if self.users is not None:
            parts.append(self.users(user_idx))
        return parts

    def _mix(self, states: Tensor, context: list[Tensor], *, present: Tensor | None = None) -> Tensor:
        """Add a network over states and context to the states, and set absent embeddings to zero."""
        if self.mixer is not None:
            if states.ndim == 3:
                context = [part.unsqueeze(1).expand(-1, states.shape[1], -1) for part in context]
            states = states + self.mixer(torch.cat([states, *context], dim=-1))
        return states if present is None else states.masked_fill(~present.unsqueeze(2), 0.0)


def _time_unit(encoder: HistoryEncoder, sizes: DataSizes) -> int:
    """Return the number of seconds that the times of events are rounded down to."""
    resolution = sizes.time_resolution
    if encoder.reads_time and not resolution.has_clock:
        raise UnsuitableDataError(
            f"user_tower: the encoder reads time (use_time=true), found data.time={resolution}; "
            "expected use_time=false with it, or timestamps in seconds or days"
        )
    return 86_400 if resolution is TimeResolution.DAY else 1


class UserIds(nn.Module):
    """Embedding of users with training events, or of `capacity` of them. All others share row 0."""

    rows: Tensor

    def __init__(
        self,
        sizes: DataSizes,
        width: int,
        *,
        unknown_rate: float,
        sharding: Sharding,
        capacity: int | None,
        id_rows: Int64Array | None,
    ) -> None:
        super().__init__()
        trained = torch.from_numpy(sizes.trained_users)
        rows = torch.where(trained, trained.cumsum(0), 0) if id_rows is None else torch.from_numpy(id_rows)
        # The last entry is that of index -1, an unknown user.
        self.register_buffer("rows", F.pad(rows, (0, 1)))
        num_rows = int(trained.sum()) if capacity is None else capacity
        self.table = id_table(num_rows + 1, width, sharding=sharding)
        self.widths, self.unknown_rate = [width], unknown_rate

    def forward(self, user_idx: Tensor) -> Tensor:
        """Return the embeddings [R, W] of users int64 [R]."""
        rows = self.rows[torch.where(user_idx < 0, len(self.rows) - 1, user_idx)]
        rows = mask_codes(rows, self.unknown_rate, training=self.training, unknown=UNKNOWN_ITEM)
        return self.table(rows)  # type: ignore[no-any-return]
