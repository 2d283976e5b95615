"""Metrics of two processes, each with its share of the requests."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
from handmade import handmade, ragged
from torch import distributed

from recsys.evaluation.metrics import RetrievalMetrics

DATA = handmade([([1, 2], [], [3]), ([2, 1], [], [3]), ([1], [], [2])])
RANKED = torch.tensor([[3, 0], [1, 3], [2, 3]])
RELEVANT = ragged([3], [3], [2])


def count(rank: int, world_size: int, num_requests: int) -> RetrievalMetrics:
    metrics = RetrievalMetrics(DATA, 3, cutoffs=(1, 2), keep_users=True)
    rows = torch.arange(rank, num_requests, world_size)
    if len(rows):
        metrics.update(RANKED[rows], RELEVANT.take(rows.numpy()), user_idx=rows)
    return metrics


def process(rank: int, world_size: int, meeting: Path, expected: dict[int, dict[str, float]]) -> None:
    distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=world_size)
    # With one request the second process has none.
    for num_requests, values in expected.items():
        metrics = count(rank, world_size, num_requests)
        assert metrics.compute() == pytest.approx(values)
        for _ in range(2):  # what was gathered is not counted again
            users, columns = metrics.per_user()
            assert sorted(users.tolist()) == list(range(num_requests))
            assert columns["mrr@2"][users.argsort()].tolist() == [1, 0.5, 1][:num_requests]
    distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_count_together(tmp_path: Path) -> None:
    expected = {num_requests: count(0, 1, num_requests).compute() for num_requests in (3, 1)}
    # Forked processes need not import torch again.
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=process, args=(rank, 2, tmp_path / "meeting", expected)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
