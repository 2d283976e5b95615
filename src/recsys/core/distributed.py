"""Communication between the processes of a training."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor


def world_size() -> int:
    """Return the number of training processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Return whether this process writes the run folder. Works before the process group exists."""
    return rank_zero_only.rank == 0  # type: ignore[attr-defined,no-any-return]


def rank() -> int:
    """Return the number of this process."""
    return dist.get_rank() if world_size() > 1 else 0


def barrier() -> None:
    """Wait until all processes get here, so that files of the first one are visible to the others."""
    if world_size() > 1:
        dist.barrier()


def share(value: Any) -> list[Any]:
    """Return the values of all processes, in order of rank. They are pickled, so they may be of any kind."""
    values = [value] * world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def total(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, without gradient."""
    if world_size() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def largest(value: Tensor) -> Tensor:
    """Return the largest of the values of all processes, without gradient."""
    if world_size() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value


def average_sparse(table: Tensor) -> Tensor | None:
    """Return the mean over processes of the sparse gradients of a table [N, D]; None if no process has one."""
    own = table.grad
    rows = torch.empty(0, dtype=torch.int64, device=table.device)
    values = table.new_empty(0, table.shape[1])
    if own is not None:
        own = own.coalesce()
        rows, values = own.indices()[0], own.values()
    rows, values = gather(rows), gather(values.detach()) / world_size()
    return torch.sparse_coo_tensor(rows.unsqueeze(0), values, table.shape) if len(rows) else own


def gather(rows: Tensor) -> Tensor:
    """Return the rows [R, ...] of all processes, in order of rank, with gradient. R may differ between processes.

    The gradient of a row is the sum of its gradients in all processes. So losses on gathered candidates train the
    towers like a single process with the joint batch.
    """
    if world_size() == 1:
        return rows
    return _Gather.apply(rows)  # type: ignore[no-any-return,no-untyped-call]


def exchange(rows: Tensor, counts: list[int]) -> Tensor:
    """Send rows to the processes that they belong to, and return those of this process [W, R, ...], by their sender.

    Args:
        rows: `counts[p]` rows for each process p, in order of the processes.
        counts: number of rows of each process, the same in all processes.
    """
    own = counts[rank()]
    received = rows.new_empty((len(counts) * own, *rows.shape[1:]))
    dist.all_to_all_single(received, rows.contiguous(), [own] * len(counts), counts)
    return received.view(len(counts), own, *rows.shape[1:])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
        dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
        sizes = [int(count) for count in counts]
        ctx.begin, ctx.length = sum(sizes[: dist.get_rank()]), len(rows)
        # `all_gather` requires equal shapes, so every process pads to the longest.
        padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous().clone()
        dist.all_reduce(gradient)
        return gradient[ctx.begin : ctx.begin + ctx.length]
