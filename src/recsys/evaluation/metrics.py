"""Ranking metrics in one torchmetrics object, which is reduced across processes.

Shapes: R requests, K longest cut-off, S slices, C cut-offs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from recsys.core.columns import Ragged
from recsys.core.distributed import gather, largest
from recsys.data.dataset import Part, PreparedDataset
from recsys.evaluation.slices import AMONG_COLD, SHOWN, SliceTable, is_trained, item_tables, user_tables

CUTOFFS = (5, 10, 20, 50, 100)
NAMES = ("recall", "hit", "ndcg", "mrr")


class RetrievalMetrics(Metric):
    """Recall, hit rate, NDCG and MRR at each cut-off, with coverage, popularity and slices.

    All are means over requests with at least one relevant item. recall = hits / relevant. NDCG has binary gain and is
    relative to min(K, relevant) hits on top. MRR is that of the first hit. Popularity is the number of training events
    of the shown items, relative to the average trained item (ARP of Yin et al. 2012, made relative).

    The recall of a slice of items is the mean over requests with relevant items in it; that of a slice of users, over
    their requests. `among_cold_items/recall` is the recall of the cold items in a list of cold items alone.
    `cold_items/shown` is the share of the shown items that are cold, and `cold_items/relevant`, which has no cut-off,
    the share of all relevant items.

    Args:
        dataset: data set whose slices are measured.
        corpus_size: number of items that can be shown.
        cutoffs: cut-offs, ascending.
        keep_users: keep the metrics of each request, for significance tests.
        part: part of the requests; ages of items are those at its beginning.
    """

    full_state_update = False
    sums: Tensor
    count: Tensor
    slice_sums: Tensor
    slice_counts: Tensor
    shown_popularity: Tensor
    num_shown: Tensor
    num_relevant: Tensor

    def __init__(
        self,
        dataset: PreparedDataset,
        corpus_size: int,
        *,
        cutoffs: Sequence[int] = CUTOFFS,
        keep_users: bool = False,
        part: Part = "test",
    ) -> None:
        super().__init__()
        self.cutoffs, self.corpus_size, self.keep_users = tuple(cutoffs), corpus_size, keep_users
        self._is_cold = ~torch.from_numpy(is_trained(dataset))
        self._item_tables, self._user_tables = item_tables(dataset, part), user_tables(dataset)
        self._has_cold = bool(self._is_cold[1:].any())
        recalls = [name for table in (*self._item_tables, *self._user_tables) for name in table.names]
        self._slice_names = [f"{name}/recall" for name in recalls]
        self._slice_names += [f"{AMONG_COLD}/recall", SHOWN] if self._has_cold else []
        self._train_count = dataset.train_count
        self._mean_count = float(self._train_count.sum() / max(np.count_nonzero(self._train_count), 1)) or 1.0
        num_cutoffs, num_slices = len(self.cutoffs), len(self._slice_names)
        self.add_state("sums", _zeros(len(NAMES), num_cutoffs), dist_reduce_fx="sum")
        self.add_state("count", _zeros(1), dist_reduce_fx="sum")
        self.add_state("slice_sums", _zeros(num_slices, num_cutoffs), dist_reduce_fx="sum")
        self.add_state("slice_counts", _zeros(num_slices), dist_reduce_fx="sum")
        self.add_state("shown_popularity", _zeros(num_cutoffs), dist_reduce_fx="sum")
        self.add_state("num_shown", _zeros(num_cutoffs), dist_reduce_fx="sum")
        # All relevant items, and cold ones.
        self.add_state("num_relevant", _zeros(2), dist_reduce_fx="sum")
        # Number of cut-offs whose lists have shown an item. The list of the longest cut-off holds the others. This is
        # not a state, because torchmetrics would hold the copies of all processes to reduce it.
        self._shown = torch.zeros(dataset.num_items + 1, dtype=torch.uint8)
        # These are not states, because torchmetrics cannot gather lists if one process has counted nothing.
        self._users: list[Tensor] = []
        self._rows: list[Tensor] = []

    def update(
        self, ranked: Tensor, relevant: Ragged, *, user_idx: Tensor, rank_cold: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """Count the results of R requests.

        Args:
            ranked: int64 [R, K] item_idx, best first, 0 after the last result.
            relevant: distinct relevant items of each request; requests without any are not counted.
            user_idx: int64 [R].
            rank_cold: returns the lists of cold items alone, like `ranked`, for some of the R requests, int64 [H]. It
                is called once for those with relevant cold items, even if there are none.
        """
        ranked, user_idx = ranked.cpu()[:, : self.cutoffs[-1]], user_idx.cpu()
        lengths = torch.from_numpy(np.diff(relevant.offsets))
        values = torch.from_numpy(relevant.values.astype(np.int64))
        hits = _hits(ranked, values, lengths=lengths)
        counted = lengths > 0
        users = per_request(hits, lengths, cutoffs=self.cutoffs)[counted]
        self.sums += users.sum(0)
        self.count += counted.sum()
        self.num_relevant += torch.stack([lengths.sum(), self._is_cold[values].sum()])
        parts = [
            self._item_slices(hits, ranked, relevant=relevant, table=table)[counted] for table in self._item_tables
        ]
        recall = users[:, NAMES.index("recall")]
        parts += [_user_slices(recall, user_idx[counted], table=table) for table in self._user_tables]
        if self._has_cold:
            parts.append(self._among_cold(relevant, rank_cold)[counted].unsqueeze(1))
            parts.append(self._share_cold(ranked[counted]).unsqueeze(1))
        slices = torch.cat(parts, dim=1)
        self.slice_sums += slices.nansum(0)
        self.slice_counts += (~slices[:, :, 0].isnan()).sum(0)
        for number, cutoff in enumerate(self.cutoffs):
            shown = ranked[counted, :cutoff].flatten()
            self._shown[shown] = self._shown[shown].clamp(min=len(self.cutoffs) - number)
            counts = torch.from_numpy(self._train_count[shown[shown > 0].numpy()]).double()
            self.shown_popularity[number] += (counts / self._mean_count).sum()
            self.num_shown[number] += len(counts)
        if self.keep_users:
            self._users.append(user_idx[counted])
            self._rows.append(torch.cat([users.flatten(1), slices.flatten(1)], dim=1).float())

    def reset(self) -> None:
        """Set all counts to zero."""
        super().reset()
        self._shown.zero_()
        self._users, self._rows = [], []

    def compute(self) -> dict[str, float]:
        """Return `recall@5`, ..., `coverage@K`, `popularity@K` and `<slice>/recall@K` of slices with requests."""
        sums, count = self.sums.cpu(), max(float(self.count), 1.0)
        result = {
            f"{name}@{cutoff}": float(sums[i, j]) / count
            for i, name in enumerate(NAMES)
            for j, cutoff in enumerate(self.cutoffs)
        }
        shown = largest(self._shown)[1:]
        for j, cutoff in enumerate(self.cutoffs):
            result[f"coverage@{cutoff}"] = int((shown >= len(self.cutoffs) - j).sum()) / self.corpus_size
            result[f"popularity@{cutoff}"] = float(self.shown_popularity[j]) / max(float(self.num_shown[j]), 1.0)
        for i, name in enumerate(self._slice_names):
            touched = float(self.slice_counts[i])
            if touched:
                for j, cutoff in enumerate(self.cutoffs):
                    result[f"{name}@{cutoff}"] = float(self.slice_sums[i, j]) / touched
        if self._has_cold and self.num_relevant[0]:
            result["cold_items/relevant"] = float(self.num_relevant[1] / self.num_relevant[0])
        result["num_users"] = float(self.count)
        return result

    def per_user(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return user_idx int64 [R] and each metric float32 [R]. Needs `keep_users`, and a call in every process.

        The recall of a slice is nan for a request that has no relevant item in it, or whose user is not in it.
        """
        names = [f"{name}@{cutoff}" for name in (*NAMES, *self._slice_names) for cutoff in self.cutoffs]
        users = gather(torch.cat([torch.zeros(0, dtype=torch.int64), *self._users]))
        rows = gather(torch.cat([torch.zeros(0, len(names)), *self._rows]))
        return users, {name: rows[:, column] for column, name in enumerate(names)}

    def _item_slices(self, hits: Tensor, ranked: Tensor, *, relevant: Ragged, table: SliceTable) -> Tensor:
        """Return the recall among the relevant items of each slice, nan if there are none; float64 [R, S, C]."""
        # The last column counts items of no slice.
        of, width = torch.from_numpy(table.of), len(table.names) + 1
        row = torch.arange(len(hits)).repeat_interleave(torch.from_numpy(np.diff(relevant.offsets)))
        size = len(hits) * width

        def count(row: Tensor, items: Tensor) -> Tensor:
            return (row * width + of[items]).bincount(minlength=size).view(len(hits), width)[:, :-1].double()

        relevant_in = count(row, torch.from_numpy(relevant.values.astype(np.int64)))
        at, rank = hits.nonzero(as_tuple=True)
        items = ranked[at, rank]
        found = torch.stack([count(at[rank < cutoff], items[rank < cutoff]) for cutoff in self.cutoffs], dim=2)
        return found / torch.where(relevant_in > 0, relevant_in, torch.nan).unsqueeze(2)

    def _among_cold(self, relevant: Ragged, rank_cold: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Return the recall of cold items in lists of cold items, nan for requests without; float64 [R, C]."""
        recall = torch.full((len(relevant), len(self.cutoffs)), torch.nan, dtype=torch.float64)
        if rank_cold is None:
            return recall
        values = torch.from_numpy(relevant.values.astype(np.int64))
        row = torch.arange(len(relevant)).repeat_interleave(torch.from_numpy(np.diff(relevant.offsets)))
        is_cold = self._is_cold[values]
        wanted = row[is_cold].bincount(minlength=len(relevant))
        rows = wanted.nonzero().flatten()
        ranked = rank_cold(rows).cpu()[:, : self.cutoffs[-1]]
        if len(rows):
            hits = _hits(ranked, values[is_cold], lengths=wanted[rows])
            recall[rows] = per_request(hits, wanted[rows], cutoffs=self.cutoffs)[:, NAMES.index("recall")]
        return recall

    def _share_cold(self, ranked: Tensor) -> Tensor:
        """Return the share of cold items among those shown, 0 for an empty list; float64 [R, C]."""
        is_shown = ranked > 0
        shown, cold = is_shown.cumsum(1), (is_shown & self._is_cold[ranked]).cumsum(1)
        places = [min(cutoff, ranked.shape[1]) - 1 for cutoff in self.cutoffs]
        return cold[:, places] / shown[:, places].clamp(min=1).double()


def per_request(hits: Tensor, num_relevant: Tensor, *, cutoffs: Sequence[int]) -> Tensor:
    """Return recall, hit, NDCG and MRR of each request; float64 [R, 4, C].

    Args:
        hits: bool [R, K], true if the result at a rank is relevant.
        num_relevant: int64 [R], number of relevant items.
        cutoffs: cut-offs, ascending.
    """
    longest = max(*cutoffs, hits.shape[1]) if len(cutoffs) > 1 else max(cutoffs[0], hits.shape[1])
    padded = torch.nn.functional.pad(hits, (0, longest - hits.shape[1])).double()
    discount = 1.0 / torch.log2(torch.arange(2, longest + 2, dtype=torch.float64))
    found, gain = padded.cumsum(1), (padded * discount).cumsum(1)
    ideal = discount.cumsum(0)
    first = torch.where(padded.any(1), padded.argmax(1), longest)
    relevant = num_relevant.clamp(min=1)
    columns = []
    for cutoff in cutoffs:
        recall = found[:, cutoff - 1] / relevant
        ndcg = gain[:, cutoff - 1] / ideal[relevant.clamp(max=cutoff) - 1]
        mrr = torch.where(first < cutoff, 1.0 / (first + 1), 0.0)
        columns.append(torch.stack([recall, (found[:, cutoff - 1] > 0).double(), ndcg, mrr], dim=1))
    return torch.stack(columns, dim=2)


def _hits(ranked: Tensor, relevant: Tensor, *, lengths: Tensor) -> Tensor:
    width = int(max(ranked.max() if ranked.numel() else 0, relevant.max() if len(relevant) else 0)) + 1
    row = torch.arange(len(lengths))
    wanted = row.repeat_interleave(lengths) * width + relevant
    return torch.isin(row.unsqueeze(1) * width + ranked, wanted) & (ranked > 0)


def _user_slices(recall: Tensor, user_idx: Tensor, *, table: SliceTable) -> Tensor:
    """Return the recall [R, C] of requests in each slice of users, nan for other requests; float64 [R, S, C]."""
    of = torch.from_numpy(table.of)[user_idx]
    chosen = [(of == number).unsqueeze(1) for number in range(len(table.names))]
    return torch.stack([recall.where(rows, torch.nan) for rows in chosen], dim=1)


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64)
