"""Ranking metrics in one torchmetrics object, which is reduced across processes.

Shapes: R requests, K longest cut-off, S slices, C cut-offs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from recsys.core.columns import Ragged
from recsys.core.distributed import gather
from recsys.data.dataset import PreparedDataset
from recsys.evaluation.slices import ITEM_SLICES, USER_SLICES, cold_users, item_slices

CUTOFFS = (5, 10, 20, 50, 100)
NAMES = ("recall", "hit", "ndcg", "mrr")


class RetrievalMetrics(Metric):
    """Recall, hit rate, NDCG and MRR at each cut-off, with coverage, popularity and slices.

    All are means over requests with at least one relevant item. recall = hits / relevant. NDCG has binary gain and is
    relative to min(K, relevant) hits on top. MRR is that of the first hit. Popularity is the number of training events
    of the shown items, relative to the average trained item (ARP of Yin et al. 2012, made relative).

    Args:
        dataset: data set whose slices are measured.
        corpus_size: number of items that can be shown.
        cutoffs: cut-offs, ascending.
        keep_users: keep the metrics of each request, for significance tests.
    """

    full_state_update = False
    sums: Tensor
    count: Tensor
    slice_sums: Tensor
    slice_counts: Tensor
    shown: Tensor
    shown_popularity: Tensor
    num_shown: Tensor

    def __init__(
        self,
        dataset: PreparedDataset,
        corpus_size: int,
        *,
        cutoffs: Sequence[int] = CUTOFFS,
        keep_users: bool = False,
    ) -> None:
        super().__init__()
        self.cutoffs, self.corpus_size, self.keep_users = tuple(cutoffs), corpus_size, keep_users
        self._slices = torch.from_numpy(item_slices(dataset))
        self._cold_users = torch.from_numpy(cold_users(dataset))
        counts = torch.from_numpy(dataset.train_count.astype(np.float64))
        self._popularity = counts / counts[counts > 0].mean() if counts.any() else counts
        num_cutoffs, num_slices = len(self.cutoffs), len(ITEM_SLICES) + len(USER_SLICES)
        self.add_state("sums", _zeros(len(NAMES), num_cutoffs), dist_reduce_fx="sum")
        self.add_state("count", _zeros(1), dist_reduce_fx="sum")
        self.add_state("slice_sums", _zeros(num_slices, num_cutoffs), dist_reduce_fx="sum")
        self.add_state("slice_counts", _zeros(num_slices), dist_reduce_fx="sum")
        shown = torch.zeros(num_cutoffs, dataset.num_items + 1, dtype=torch.uint8)
        self.add_state("shown", shown, dist_reduce_fx="max")
        self.add_state("shown_popularity", _zeros(num_cutoffs), dist_reduce_fx="sum")
        self.add_state("num_shown", _zeros(num_cutoffs), dist_reduce_fx="sum")
        # These are not states, because torchmetrics cannot gather lists if one process has counted nothing.
        self._users: list[Tensor] = []
        self._rows: list[Tensor] = []

    def update(self, ranked: Tensor, relevant: Ragged, *, user_idx: Tensor) -> None:
        """Count the results of R requests.

        Args:
            ranked: int64 [R, K] item_idx, best first, 0 after the last result.
            relevant: distinct relevant items of each request; requests without any are not counted.
            user_idx: int64 [R].
        """
        ranked, user_idx = ranked.cpu()[:, : self.cutoffs[-1]], user_idx.cpu()
        lengths = torch.from_numpy(np.diff(relevant.offsets))
        values = torch.from_numpy(relevant.values.astype(np.int64))
        hits = _hits(ranked, values, lengths=lengths)
        counted = lengths > 0
        users = per_request(hits, lengths, cutoffs=self.cutoffs)[counted]
        self.sums += users.sum(0)
        self.count += counted.sum()
        of_items = self._item_slices(hits, ranked, relevant=values, lengths=lengths)[counted]
        of_users = self._user_slices(users[:, NAMES.index("recall")], user_idx[counted])
        slices = torch.cat([of_items, of_users], dim=1)
        self.slice_sums += slices.nansum(0)
        self.slice_counts += (~slices[:, :, 0].isnan()).sum(0)
        for number, cutoff in enumerate(self.cutoffs):
            shown = ranked[counted, :cutoff].flatten()
            self.shown[number, shown] = 1
            self.shown_popularity[number] += self._popularity[shown[shown > 0]].sum()
            self.num_shown[number] += (shown > 0).sum()
        if self.keep_users:
            self._users.append(user_idx[counted])
            self._rows.append(torch.cat([users.flatten(1), slices.flatten(1)], dim=1).float())

    def reset(self) -> None:
        """Set all counts to zero."""
        super().reset()
        self._users, self._rows = [], []

    def compute(self) -> dict[str, float]:
        """Return `recall@5`, ..., `coverage@K`, `popularity@K` and `<slice>/recall@K` of slices with requests."""
        sums, count = self.sums.cpu(), max(float(self.count), 1.0)
        result = {
            f"{name}@{cutoff}": float(sums[i, j]) / count
            for i, name in enumerate(NAMES)
            for j, cutoff in enumerate(self.cutoffs)
        }
        for j, cutoff in enumerate(self.cutoffs):
            result[f"coverage@{cutoff}"] = int(self.shown[j, 1:].sum()) / self.corpus_size
            result[f"popularity@{cutoff}"] = float(self.shown_popularity[j]) / max(float(self.num_shown[j]), 1.0)
        for i, name in enumerate((*ITEM_SLICES, *USER_SLICES)):
            touched = float(self.slice_counts[i])
            if touched:
                for j, cutoff in enumerate(self.cutoffs):
                    result[f"{name}/recall@{cutoff}"] = float(self.slice_sums[i, j]) / touched
        result["num_users"] = float(self.count)
        return result

    def per_user(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return user_idx int64 [R] and each metric float32 [R]. Needs `keep_users`, and a call in every process.

        The recall of a slice is nan for a request that has no relevant item in it, or whose user is not in it.
        """
        names = [f"{name}@{cutoff}" for name in NAMES for cutoff in self.cutoffs]
        names += [f"{name}/recall@{cutoff}" for name in (*ITEM_SLICES, *USER_SLICES) for cutoff in self.cutoffs]
        users = gather(torch.cat([torch.zeros(0, dtype=torch.int64), *self._users]))
        rows = gather(torch.cat([torch.zeros(0, len(names)), *self._rows]))
        return users, {name: rows[:, column] for column, name in enumerate(names)}

    def _item_slices(self, hits: Tensor, ranked: Tensor, *, relevant: Tensor, lengths: Tensor) -> Tensor:
        """Return the recall among the relevant items of each slice, nan if there are none; float64 [R, S, C]."""
        row = torch.arange(len(lengths)).repeat_interleave(lengths)
        num_slices = len(ITEM_SLICES)
        relevant_in = torch.zeros(len(lengths), num_slices, dtype=torch.float64)
        relevant_in.index_put_((row, self._slices[relevant]), torch.ones(1, dtype=torch.float64), accumulate=True)
        shown_in = self._slices[ranked]
        recall = torch.full((len(lengths), num_slices, len(self.cutoffs)), torch.nan, dtype=torch.float64)
        for number in range(num_slices):
            touched = relevant_in[:, number] > 0
            if touched.any():
                running = (hits[touched] & (shown_in[touched] == number)).cumsum(1)
                for column, cutoff in enumerate(self.cutoffs):
                    found = running[:, min(cutoff, running.shape[1]) - 1]
                    recall[touched, number, column] = found / relevant_in[touched, number]
        return recall

    def _user_slices(self, recall: Tensor, user_idx: Tensor) -> Tensor:
        """Return the recall [R, C] of requests in each slice of users, nan for other requests; float64 [R, S, C]."""
        cold = self._cold_users[user_idx]
        return torch.stack([recall.where(chosen.unsqueeze(1), torch.nan) for chosen in (cold, ~cold)], dim=1)


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


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64)
