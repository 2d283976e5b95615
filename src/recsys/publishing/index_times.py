"""The time of an index, and the events that belong to it."""

from __future__ import annotations

import dataclasses
import time
from datetime import UTC, datetime

import numpy as np
from torch import Tensor

from recsys.core.errors import UserError
from recsys.core.index_time import IndexTime
from recsys.core.schema import UNKNOWN_ITEM
from recsys.core.types import Int64Array
from recsys.data.dataset import PreparedDataset
from recsys.experiments.item_biases import ends_before
from recsys.models.blend import Blend, Model, members_of
from recsys.models.two_tower import TwoTower


def parse_moment(when: str | int | None, key: str) -> int | None:
    """Return seconds since 1970 of a date, of a time (UTC unless it has a zone) or of a number of seconds.

    Raises:
        UserError: If the value has another form.
    """
    if when is None or isinstance(when, int):
        return when
    try:
        moment = datetime.fromisoformat(str(when))
    except ValueError as error:
        raise UserError(f"{key}: found '{when}', expected a date, a time or seconds since 1970") from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def choose_index_time(
    now: str | int | None, horizon_days: float | None, *, dataset: PreparedDataset
) -> IndexTime | None:
    """Return the time of an index; None for that of the evaluation.

    Args:
        now: date, time or seconds; `newest` for the second after the newest event; `clock` for the present; None for
            the time of the evaluation.
        horizon_days: days that the index will serve; None for one day.
        dataset: data of the index.

    Raises:
        UserError: If the data has no clock, or a value is wrong.
    """
    if now is None and horizon_days is None:
        return None
    if horizon_days is not None and (isinstance(horizon_days, bool) or not 0 < float(horizon_days) < np.inf):
        raise UserError(f"horizon_days: found {horizon_days}, expected a positive number of days")
    if now is None:
        raise UserError(
            f"horizon_days={horizon_days}: expected now=DATE too, the time at which the index begins to serve"
        )
    if not dataset.meta.time_resolution.has_clock:
        raise UserError(
            f"now={now}: data.time={dataset.meta.time_resolution} has no clock, expected timestamps in seconds or days"
        )
    if now == "newest":
        moment: int | None = int(dataset.time.max()) + 1
    elif now == "clock":
        moment = int(time.time())
    else:
        moment = parse_moment(now, "now")
    assert moment is not None
    first = int(dataset.time.min())
    if moment <= first:
        raise UserError(f"now={now}: the first event is at {_date(first)}, expected a later time")
    return IndexTime(moment, 1.0 if horizon_days is None else float(horizon_days))


def newest_index_time(
    now: str | int | None, horizon_days: float | None, *, dataset: PreparedDataset
) -> IndexTime | None:
    """Return the time of an index of newer data, `now=newest` unless another is given; None if it has no clock."""
    if now in (None, "newest") and not dataset.meta.time_resolution.has_clock:
        return None
    return choose_index_time("newest" if now is None else now, horizon_days, dataset=dataset)


def new_item_biases(model: Model) -> tuple[float | None, ...]:
    """Return `Manifest.new_item_biases`: the fixed part of the bias of an item that has no events yet."""
    biases = []
    parts: list[Model] = [
        *(member.model for member in members_of(model)),
        *([model] if isinstance(model, Blend) else []),
    ]
    for part in parts:
        bias: Tensor | None = part.item_bias
        if isinstance(part, TwoTower) and part.fixed_bias is not None:
            bias = part.fixed_bias
        biases.append(None if bias is None else float(bias[UNKNOWN_ITEM]))
    return tuple(biases)


def with_parts(dataset: PreparedDataset, *, train_until: int | None, since: int, until: int) -> PreparedDataset:
    """Return the events before `until`, split in time, for towers that were trained on earlier data.

    Training events are those up to `train_until`, test events those from `since` on, and validation events those
    between. Trained items keep a training event, even if the data does not reach back to it.
    """
    end = ends_before(dataset, until)
    if (end < dataset.offsets[1:]).any():
        dataset = _cut(dataset, end)
    last = since - 1 if train_until is None else min(train_until, since - 1)
    train_end = ends_before(dataset, last + 1)
    counts = np.bincount(
        np.asarray(dataset.item_idx)[np.asarray(dataset.time) <= last], minlength=dataset.num_items + 1
    )
    counts[0] = 0
    counts[1 : dataset.num_trained + 1] = np.maximum(counts[1 : dataset.num_trained + 1], 1)
    counts[dataset.num_trained + 1 :] = 0
    return dataclasses.replace(dataset, train_end=train_end, val_end=ends_before(dataset, since), train_count=counts)


def _cut(dataset: PreparedDataset, end: Int64Array) -> PreparedDataset:
    lengths = end - dataset.offsets[:-1]
    kept = np.repeat(end, np.diff(dataset.offsets)) > np.arange(len(dataset.time))
    rows = np.flatnonzero(kept)
    events = {f.key: dataset.columns[f.key].take(rows) for f in dataset.schema.owned_by("interactions")}
    return dataclasses.replace(
        dataset,
        meta=dataclasses.replace(dataset.meta, num_events=len(rows)),
        item_idx=np.asarray(dataset.item_idx)[rows],
        time=np.asarray(dataset.time)[rows],
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        columns={**dataset.columns, **events},
        weight=None if dataset.weight is None else np.asarray(dataset.weight)[rows],
    )


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
