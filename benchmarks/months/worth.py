"""What a release is worth on the day after it was made."""

from __future__ import annotations

import dataclasses

import numpy as np

from recsys.data.dataset import PreparedDataset
from recsys.operations.gates.evidence import Side, TestRequests
from recsys.release.runtime.retriever import Retriever

METRICS = ("recall@10", "recall@100")


def requests_since(dataset: PreparedDataset, moment: int) -> TestRequests:
    """Everyone who does something from a moment on, with all that they did before as history; wanted is what is new."""
    before = np.concatenate([[0], np.cumsum(np.asarray(dataset.time) < moment)])
    begin, end = dataset.offsets[:-1], dataset.offsets[1:]
    # Events of a user lie in the order of time.
    cut = begin + before[end] - before[begin]
    view = dataclasses.replace(dataset, train_end=cut, val_end=cut)
    return TestRequests(view, view.requests("test"), exclude_seen=True)


def worth(release: Retriever, asked: TestRequests) -> dict[str, float]:
    """Metrics of the release, through its exported tower and its index; items that it does not know are misses."""
    metrics = Side(release, asked).metrics
    return {name: float(metrics[name]) for name in METRICS}
