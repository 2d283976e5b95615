"""Origins in time: moments at which a choice could have been made, each with the events that followed it.

One validation part is one draw of what happens to be popular when it begins. A choice by its mean over several origins
(rolling-origin evaluation: Tashman 2000) follows that noise less.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from recsys.core.columns import ragged_positions
from recsys.data.dataset import PreparedDataset
from recsys.evaluation.slices import cold_users
from recsys.experiments.item_biases import ends_before


def earlier_origins(dataset: PreparedDataset, most: int) -> list[PreparedDataset]:
    """Return views of the data whose validation part is that of an earlier origin, the latest first.

    The first is the data itself. The validation part of each next one has about as many events (those of one moment
    stay together), and ends where that of the one before begins, so the test part is in none. What is counted in the
    training part of a view (popularity) is exact. Towers know what followed, so they cannot be measured on an earlier
    origin.

    Args:
        dataset: prepared data.
        most: largest number of views. Fewer events give fewer, because each view has at least as many training as
            validation events. Data whose parts do not follow in time has one.
    """
    views = [dataset]
    size = int((dataset.val_end - dataset.train_end).sum())
    if most < 2 or not size or not dataset.parts_follow_in_time:
        return views
    trained = ragged_positions(dataset.offsets[:-1], dataset.train_end - dataset.offsets[:-1])
    time = np.sort(np.asarray(dataset.time)[trained])
    # More than `size` events may be of one day or second, which is one origin and no empty ones.
    moments = dict.fromkeys(int(time[end - size]) for end in range(len(time), 2 * size - 1, -size))
    for moment in [moment for moment in moments if np.searchsorted(time, moment) >= size][: most - 1]:
        begin = ends_before(dataset, moment)
        views.append(dataclasses.replace(dataset, train_end=begin, val_end=views[-1].train_end))
    return views


def new_user_share(views: Sequence[PreparedDataset]) -> float | None:
    """Return the share of users without a history among those of the validation parts, as a mean over the origins.

    Returns:
        None for fewer than two origins, which say no more than validation itself.
    """
    if len(views) < 2:
        return None
    return float(np.mean([cold_users(view)[view.requests("val").user_idx].mean() for view in views]))
