"""Exact top-k over the whole corpus, in blocks of users that reuse one buffer.

Shapes: R users, N corpus, D dim, K top-k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from recsys.data.batches.batch import RaggedTensor

# Bytes of a block: large enough for an efficient matrix product, and small compared with main memory.
BLOCK_BYTES = 64 << 20
# Fewest users and most columns of a block, which is therefore never larger than 256 MiB.
LEAST_ROWS, MOST_COLUMNS = 16, 4 << 20

# Number of columns that are represented by their maximum during the search.
GROUP = 8


class BlockedTopK:
    """Top-k of scores that a callback writes, block by block, into one buffer.

    The top k of a row lie in the k groups of columns with the largest maxima. So a row is folded into the maxima of its
    groups, and these again, until few values are left to sort. On the way back k groups are searched on each level.
    That is little more than one pass over the scores.

    Args:
        num_items: number of columns, N.
        device: device of the scores.
    """

    def __init__(self, num_items: int, device: torch.device | str = "cpu") -> None:
        self.num_items, self.device = num_items, torch.device(device)
        self._buffer = torch.empty(0, 0, device=self.device)

    def __call__(
        self, num_rows: int, k: int, *, write: Callable[[int, Tensor], None], exclude: RaggedTensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the best k columns of each row.

        Args:
            num_rows: number of rows, R.
            k: results of each row; may exceed the number of columns.
            write: function `write(begin, out)` that fills float32 out [H, N] with the scores of rows
                `begin..begin+H-1`.
            exclude: R lists of columns; row r gets none of list r.

        Returns:
            Scores float32 [R, k] and columns int64 [R, k], best first; -inf and -1 after the last result.
        """
        levels = _num_levels(self.num_items, k)
        unit = GROUP**levels
        width = -(-self.num_items // unit) * unit
        height = min(num_rows, block_height(self.num_items))
        if self._buffer.shape[0] < height or self._buffer.shape[1] != width:
            self._buffer = torch.empty(height, width, device=self.device)
            self._buffer[:, self.num_items :] = -torch.inf
        shape = (num_rows, k)
        scores = torch.full(shape, -torch.inf, device=self.device)
        columns = torch.full(shape, -1, dtype=torch.int64, device=self.device)
        for begin in range(0, num_rows, max(height, 1)):
            block = self._buffer[: min(height, num_rows - begin)]
            write(begin, block[:, : self.num_items])
            if exclude is not None:
                _exclude(block, exclude, begin=begin)
            best, at = _top(block, min(k, self.num_items), levels=levels)
            rows = slice(begin, begin + len(block))
            scores[rows, : best.shape[1]] = best
            columns[rows, : best.shape[1]] = torch.where(best == -torch.inf, -1, at)
        return scores, columns


class ExactTopK:
    """Top-k search of users over a fixed corpus.

    Args:
        items: float32 [N, D], embeddings of the corpus.
    """

    def __init__(self, items: Tensor) -> None:
        self.items = items
        self._parts = items.split(MOST_COLUMNS)
        self._search = BlockedTopK(min(len(items), MOST_COLUMNS), items.device)

    def __call__(self, users: Tensor, k: int, *, exclude: RaggedTensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the best k rows of the corpus for each user.

        Args:
            users: float32 [R, D].
            k: results of each user; may exceed N.
            exclude: R lists of rows; user r gets none of list r.

        Returns:
            Scores float32 [R, k] and rows int64 [R, k], best first; -inf and -1 after the last result.
        """
        found = [self._search_part(users, k, number=number, exclude=exclude) for number in range(len(self._parts))]
        return found[0] if len(found) == 1 else merge_best(found, k)

    def _search_part(
        self, users: Tensor, k: int, *, number: int, exclude: RaggedTensor | None
    ) -> tuple[Tensor, Tensor]:
        items, first = self._parts[number], number * MOST_COLUMNS

        def write(begin: int, out: Tensor) -> None:
            torch.mm(users[begin : begin + len(out)], items.t(), out=out[:, : len(items)])
            out[:, len(items) :] = -torch.inf

        if len(self._parts) > 1 and exclude is not None:
            exclude = _between(exclude, first, first + len(items))
        scores, rows = self._search(len(users), k, write=write, exclude=exclude)
        return scores, torch.where(rows < 0, rows, rows + first)


def merge_best(found: Sequence[tuple[Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    """Return the best k of several results, each scores [R, K] and rows [R, K]. Equal scores keep their order."""
    scores, rows = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return scores.gather(1, order), rows.gather(1, order)


def block_height(num_items: int) -> int:
    """Return the number of rows of scores that are in memory at once."""
    return max(LEAST_ROWS, BLOCK_BYTES // (4 * max(num_items, 1)))


def _num_levels(num_items: int, k: int) -> int:
    """Return how many times columns are folded into groups, which ends when a few times k are left."""
    levels = 0
    while num_items >= 4 * max(k, 1) * GROUP ** (levels + 1):
        levels += 1
    return levels


def _top(block: Tensor, k: int, *, levels: int) -> tuple[Tensor, Tensor]:
    if levels == 0:
        best, at = block.topk(k, dim=1)
        return best, at
    # Group g holds columns g, g + G, g + 2G, ..., so that maxima are taken between contiguous rows.
    num_groups = block.shape[1] // GROUP
    _, groups = _top(block.view(len(block), GROUP, num_groups).amax(1), k, levels=levels - 1)
    columns = (groups.unsqueeze(2) + num_groups * torch.arange(GROUP, device=block.device)).flatten(1)
    best, at = block.gather(1, columns).topk(k, dim=1)
    return best, columns.gather(1, at)


def _between(lists: RaggedTensor, low: int, high: int) -> RaggedTensor:
    """Return lists with the numbers from `low` to below `high`, counted from `low`."""
    inside = (lists.values >= low) & (lists.values < high)
    count = torch.cat([inside.new_zeros(1, dtype=torch.int64), inside.cumsum(0)])
    return RaggedTensor(lists.values[inside] - low, count[lists.offsets])


def _exclude(block: Tensor, exclude: RaggedTensor, *, begin: int) -> None:
    offsets = exclude.offsets[begin : begin + len(block) + 1]
    columns = exclude.values[int(offsets[0]) : int(offsets[-1])]
    row = torch.arange(len(block), device=block.device).repeat_interleave(offsets.diff())
    block[row, columns] = -torch.inf
