"""Several embeddings of a user, one for each group of events in the history.

The groups depend on the whole history, so no causal form can answer every position in one pass. Each query is answered
from its own prefix. Prefixes of one history share its tokens; only the weights are computed for each query.

Shapes: H histories, L tokens of one (the start token, then its events), Q queries of one, M embeddings, D dim.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.models.dropout import Dropout

# Histories up to this length are padded to it, longer ones to twice this length, and so on.
SHORTEST_ROW = 8
# A token with at least this cosine similarity to the start of an interest is the same item, and starts no other.
SAME = 0.9999


class Interests(Protocol):
    """A module that makes several embeddings from the tokens of a prefix.

    Attributes:
        num_embeddings: M.
    """

    num_embeddings: int

    def __call__(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings [H, Q, M, D], and a mask bool [H, Q, M] of those that exist; the first always does.

        Args:
            tokens: [H, L, D].
            lengths: int64 [H, Q], number of tokens that each query sees, at least 1.
        """
        ...


class Capsules(nn.Module):
    """Behaviour-to-interest routing (MIND: Li et al. 2019, arXiv 1904.08030, section 3.3).

    Events `u = S x` are routed to capsules `c` in several iterations of `w = softmax over capsules of b`,
    `c = squash(sum w u)`, `b += c.u`. An MLP follows, as in MIND. A history of n events has max(1, min(M, log2 n))
    capsules.

    MIND starts from random logits. Here the start depends on the events only, so that the same history has the same
    embeddings everywhere: the first capsule starts as the most recent event, and each further one as the event that is
    least similar to all starts so far (farthest-point clustering, Gonzalez 1985). If all events left repeat a start,
    there are no further capsules. The start token is routed only if there is no event.

    Args:
        dim: width of the embeddings, D.
        num_embeddings: most embeddings of a user, M, at least 2.
        num_iterations: iterations of the routing.
        hidden: width of the MLP's hidden layer.
        dropout: rate of dropout on the capsules.
    """

    def __init__(
        self, dim: int, num_embeddings: int = 4, *, num_iterations: int = 3, hidden: int = 128, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if num_embeddings < 2:
            raise ValueError(f"num_embeddings: found {num_embeddings}, expected at least 2; one needs no interests")
        if num_iterations < 1:
            raise ValueError(f"num_iterations: found {num_iterations}, expected at least 1")
        self.num_embeddings, self.num_iterations = num_embeddings, num_iterations
        self.bilinear = nn.Linear(dim, dim, bias=False)
        # An orthogonal map keeps similarities, so that the starts depend on the similarities of the item embeddings.
        nn.init.orthogonal_(self.bilinear.weight)
        self.dropout = Dropout(dropout)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings and the mask of those that exist; see `Interests`."""
        events = self.bilinear(tokens)
        place = torch.arange(tokens.shape[1], device=tokens.device)
        lengths = lengths.unsqueeze(2)
        # The start token takes the place of events if there are none.
        valid = (place < lengths) & ((place > 0) | (lengths == 1))
        # As in MIND's code, gradients flow through the routed events but not through the routing weights.
        with torch.no_grad():
            starts, present = self._starts(events, lengths, valid=valid)
            absent = torch.zeros(present.shape, device=tokens.device).masked_fill(~present, -torch.inf).unsqueeze(3)
            logits = _by_history(_squash(starts), events.transpose(1, 2)) + absent
            for _ in range(self.num_iterations - 1):
                capsules = _squash(_by_history(_weights(logits, valid), events))
                logits = logits + _by_history(capsules, events.transpose(1, 2))
            weights = _weights(logits, valid)
        capsules = _squash(_by_history(weights, events)) * tokens.shape[2] ** 0.5
        capsules = self.dropout(capsules)
        return capsules + self.mlp(capsules), present

    def _starts(self, events: Tensor, lengths: Tensor, *, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return the events [H, Q, M, D] that capsules start as, and a mask bool [H, Q, M] of capsules that exist."""
        unit = F.normalize(events, dim=2)
        similarity = unit @ unit.transpose(1, 2)
        num_events = (lengths - 1).squeeze(2)
        chosen = [num_events]
        present = [torch.ones_like(num_events, dtype=torch.bool)]
        # A token that cannot start a capsule counts as infinitely similar to the starts.
        nearest = torch.where(valid, -torch.inf, torch.inf)
        for number in range(1, self.num_embeddings):
            of_last = similarity.gather(1, chosen[-1].unsqueeze(2).expand(-1, -1, similarity.shape[2]))
            nearest = torch.maximum(nearest, of_last)
            chosen.append(nearest.argmin(2))
            present.append((num_events >= 2 ** (number + 1)) & (nearest.amin(2) < SAME))
        at = torch.stack(chosen, 2).flatten(1).unsqueeze(2).expand(-1, -1, events.shape[2])
        return events.gather(1, at).unflatten(1, (-1, self.num_embeddings)), torch.stack(present, 2)


def _by_history(queries: Tensor, shared: Tensor) -> Tensor:
    """Multiply [H, Q, M, A] by a matrix [H, A, B] that the queries of a history share; [H, Q, M, B]."""
    return (queries.flatten(1, 2) @ shared).unflatten(1, queries.shape[1:3])  # type: ignore[no-any-return]


def _weights(logits: Tensor, valid: Tensor) -> Tensor:
    return logits.softmax(2) * valid.unsqueeze(2)


def _squash(x: Tensor) -> Tensor:
    """Scale a vector to a length below 1 that grows with its length (Sabour et al. 2017, equation 1)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * (norm / (1.0 + norm * norm))  # type: ignore[no-any-return]


def interests_of_prefixes(
    interests: Interests, states: Tensor, *, lengths: npt.NDArray[np.int64], query: Tensor, history: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the embeddings [P, M, D] of queries over packed histories, and a mask bool [P, M] of those that exist.

    Args:
        interests: module that makes the embeddings.
        states: [N, D], tokens of H histories one after another.
        lengths: int64 [H] on the host, tokens of each history.
        query: int64 [P], last token that each query sees.
        history: int64 [P], history that each query belongs to.
    """
    device = states.device
    starts = np.cumsum(lengths) - lengths
    owner, last = history.cpu().numpy(), query.cpu().numpy()
    order = np.argsort(owner, kind="stable")
    counts = np.bincount(owner, minlength=len(lengths))
    first = np.cumsum(counts) - counts
    size = np.ceil(np.log2(np.maximum(lengths, SHORTEST_ROW)))
    place = np.empty(len(owner), np.int64)
    embeddings, present, done = [], [], 0
    for bucket in np.unique(size[counts > 0]):
        members = np.flatnonzero((size == bucket) & (counts > 0))
        columns = np.arange(lengths[members].max())
        rows = starts[members, None] + np.minimum(columns, lengths[members, None] - 1)
        slots = np.arange(counts[members].max())
        asked = slots < counts[members, None]
        queries = order[first[members, None] + np.minimum(slots, counts[members, None] - 1)]
        seen = torch.from_numpy(last[queries] - starts[members, None] + 1).to(device)
        tokens = F.embedding(torch.from_numpy(rows).to(device), states)
        found = interests(tokens, seen)
        inside = torch.from_numpy(asked).to(device)
        embeddings.append(found[0][inside])
        present.append(found[1][inside])
        place[queries[asked]] = done + np.arange(asked.sum())
        done += int(asked.sum())
    if not done:
        return states.new_zeros(0, interests.num_embeddings, states.shape[1]), torch.zeros(0, 0, dtype=torch.bool)
    at = torch.from_numpy(place).to(device)
    return torch.cat(embeddings).index_select(0, at), torch.cat(present)[at]
