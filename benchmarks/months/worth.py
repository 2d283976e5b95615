"""Accuracy of a release on the day after it was made."""

from __future__ import annotations

import dataclasses

import numpy as np

from recsys.data.dataset import PreparedDataset
from recsys.operations.gates.evidence import JudgedRelease
from recsys.operations.gates.judged_requests import JudgedRequests
from recsys.release.runtime.retriever import Retriever

METRICS = ("recall@10", "recall@100")


def requests_since(dataset: PreparedDataset, moment: int) -> JudgedRequests:
    """Return a request for each user with events from a moment on; earlier events are the history."""
    before = np.concatenate([[0], np.cumsum(np.asarray(dataset.time) < moment)])
    begin, end = dataset.offsets[:-1], dataset.offsets[1:]
    # The events of a user are sorted by time.
    cut = begin + before[end] - before[begin]
    view = dataclasses.replace(dataset, train_end=cut, val_end=cut)
    return JudgedRequests(view, view.requests("test"), exclude_seen=True)


def worth(release: Retriever, asked: JudgedRequests) -> dict[str, float]:
    """Return the metrics of the release, through its exported tower and index. Items unknown to it are misses."""
    metrics = JudgedRelease(release, asked).metrics
    return {name: float(metrics[name]) for name in METRICS}
