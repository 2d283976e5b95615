"""Exact top-k over the whole corpus, in blocks of users that reuse one buffer."""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.data.batch import RaggedTensor

# Large enough for an efficient matrix product, small beside main memory.
BLOCK_BYTES = 64 << 20


class ExactTopK:
    """Scores users against a fixed corpus and keeps the best.

    The top k of a row lie in the k column groups with the largest maxima, so only those are sorted: one pass over the
    scores for the maxima instead of a selection over all of them.

    Args:
        items: float32 [N, D], comparable embeddings of the corpus.
    """

    def __init__(self, items: Tensor) -> None:
        self.items = items
        self._buffer: Tensor | None = None

    def __call__(self, users: Tensor, k: int, exclude: RaggedTensor | None = None) -> tuple[Tensor, Tensor]:
        """The best k rows of the corpus for each user.

        Args:
            users: float32 [R, D].
            k: results; the corpus may hold fewer.
            exclude: rows of the corpus that a user must not get; R rows.

        Returns:
            scores float32 [R, k] and rows int64 [R, k], best first; where a user has fewer results the score is -inf
            and the row -1.
        """
        num_items = len(self.items)
        size = _group_size(num_items, k)
        num_groups = -(-num_items // size)
        width = size * num_groups
        height = max(16, min(len(users), BLOCK_BYTES // (4 * width)))
        if self._buffer is None or self._buffer.shape[0] < height or self._buffer.shape[1] != width:
            self._buffer = torch.empty(height, width, dtype=self.items.dtype, device=self.items.device)
        scores, rows = [], []
        for begin in range(0, len(users), height):
            part = users[begin : begin + height]
            block = self._buffer[: len(part)]
            torch.mm(part, self.items.t(), out=block[:, :num_items])
            block[:, num_items:] = -torch.inf
            if exclude is not None:
                _exclude(block, exclude, begin)
            best, at = _top_of_groups(block, size, num_groups, min(k, num_items))
            rows.append(torch.where(best == -torch.inf, -1, at))
            scores.append(best)
        if not scores:
            return self.items.new_zeros(0, k), torch.zeros(0, k, dtype=torch.int64, device=self.items.device)
        return _widen(torch.cat(scores), k, -torch.inf), _widen(torch.cat(rows), k, -1)


def _group_size(num_items: int, k: int) -> int:
    # Sorting costs num_items / size + k * size per row, least near the root; tiny corpora are sorted whole.
    size = int((num_items / max(k, 1)) ** 0.5)
    return size if size >= 4 else 1


def _top_of_groups(block: Tensor, size: int, num_groups: int, k: int) -> tuple[Tensor, Tensor]:
    if size == 1:
        best, at = block.topk(k, dim=1)
        return best, at
    # Group g holds columns g, g + G, g + 2G, ...: maxima are taken between contiguous rows.
    maxima = block.view(len(block), size, num_groups).amax(1)
    groups = maxima.topk(min(k, num_groups), dim=1, sorted=False).indices
    columns = (groups.unsqueeze(2) + num_groups * torch.arange(size, device=block.device)).flatten(1)
    best, at = block.gather(1, columns).topk(k, dim=1)
    return best, columns.gather(1, at)


def _exclude(block: Tensor, exclude: RaggedTensor, begin: int) -> None:
    offsets = exclude.offsets[begin : begin + len(block) + 1]
    columns = exclude.values[int(offsets[0]) : int(offsets[-1])]
    row = torch.arange(len(block), device=block.device).repeat_interleave(offsets.diff())
    block[row, columns] = -torch.inf


def _widen(results: Tensor, k: int, fill: float) -> Tensor:
    if results.shape[1] == k:
        return results
    return torch.nn.functional.pad(results, (0, k - results.shape[1]), value=fill)
