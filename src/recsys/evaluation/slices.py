"""Slices of items by popularity and age, and of users by what is known about them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from recsys.core.columns import Ragged
from recsys.core.schema import MISSING
from recsys.data.dataset import NO_BIRTH, Part, PreparedDataset

ITEM_SLICES = ("head", "mid", "tail", "cold_items")
# Age of an item in days when the part begins.
AGE_SLICES = (
    "age_0_to_1_days",
    "age_1_to_7_days",
    "age_7_to_30_days",
    "age_30_to_90_days",
    "age_over_90_days",
    "born_later",
)
_AGES = (1, 7, 30, 90)
# Users without and with training events.
USER_SLICES = ("cold_users", "warm_users")
# The cold users that have a value in a feature of users, and the others.
PROFILE_SLICES = ("cold_users_with_profile", "cold_users_without_profile")
# Lists of cold items alone instead of the whole corpus.
AMONG_COLD = "among_cold_items"
SLICES = (*ITEM_SLICES, AMONG_COLD, *AGE_SLICES, *USER_SLICES, *PROFILE_SLICES)
# Share of the shown items that are cold.
SHOWN = "cold_items/shown"
# Metrics to read together, because a model can buy the first with the second.
NEW_ITEMS = ("cold_items/recall", SHOWN)
# All metrics of slices, without their cut-offs.
SLICE_METRICS = (*(f"{name}/recall" for name in SLICES), SHOWN)

_DAY = 86_400


class SliceTable(NamedTuple):
    """A partition of items or users.

    Attributes:
        names: names of the slices.
        of: slice of each item or user as a position in `names`, `len(names)` for none; uint8 [N + 1] or [U].
    """

    names: tuple[str, ...]
    of: npt.NDArray[np.uint8]


def item_slices(dataset: PreparedDataset) -> npt.NDArray[np.uint8]:
    """Return the slice of each item as a position in `ITEM_SLICES`; uint8 [N + 1].

    Head, mid and tail are the items with the first 50%, the next 30% and the last 20% of training events, most frequent
    first. An item that crosses a bound belongs to the slice in which its events begin. Cold items have no training
    event.
    """
    counts = dataset.train_count
    order = np.argsort(-counts, kind="stable")
    ordered = counts[order]
    before = np.cumsum(ordered)
    before -= ordered
    slices = np.full(len(counts), ITEM_SLICES.index("tail"), np.uint8)
    for name, bound in (("mid", 0.8), ("head", 0.5)):
        slices[order[: np.searchsorted(before / max(counts.sum(), 1), bound)]] = ITEM_SLICES.index(name)
    slices[~is_trained(dataset)] = ITEM_SLICES.index("cold_items")
    return slices


def is_trained(dataset: PreparedDataset) -> npt.NDArray[np.bool_]:
    """Return a mask bool [N + 1] of the items with training events; the others are cold."""
    return np.asarray(dataset.train_count > 0)


def item_tables(dataset: PreparedDataset, part: Part) -> list[SliceTable]:
    """Return the partitions of items: by popularity, and by age when `part` begins if the data has births."""
    tables = [SliceTable(ITEM_SLICES, item_slices(dataset))]
    if dataset.born is not None and (begin := part_begin(dataset, part)) is not None:
        is_known = dataset.born != NO_BIRTH
        age = np.where(is_known, begin - np.where(is_known, dataset.born, 0), 0)
        ages = np.where(age < 0, AGE_SLICES.index("born_later"), np.digitize(age, [_DAY * days for days in _AGES]))
        if is_known.any():
            tables.append(SliceTable(AGE_SLICES, np.where(is_known, ages, len(AGE_SLICES)).astype(np.uint8)))
    return tables


def part_begin(dataset: PreparedDataset, part: Part) -> int | None:
    """Return the time of the first event of a part in seconds; None without such events or a clock."""
    times = dataset.part_times(part) if dataset.meta.time_resolution.has_clock else None
    return None if times is None else times[0]


def user_tables(dataset: PreparedDataset) -> list[SliceTable]:
    """Return the partitions of users: by training events, and cold users by profile if the data has profiles."""
    is_cold = cold_users(dataset)
    tables = [SliceTable(USER_SLICES, (~is_cold).astype(np.uint8))]
    if dataset.schema.owned_by("users"):
        profile = np.where(is_cold, ~has_profile(dataset), len(PROFILE_SLICES)).astype(np.uint8)
        tables.append(SliceTable(PROFILE_SLICES, profile))
    return tables


def cold_users(dataset: PreparedDataset) -> npt.NDArray[np.bool_]:
    """Return a mask bool [U] of the users without training events."""
    return np.asarray(dataset.train_end == dataset.offsets[:-1])


def has_profile(dataset: PreparedDataset) -> npt.NDArray[np.bool_]:
    """Return a mask bool [U] of the users with a value in a feature of users."""
    has = np.zeros(dataset.num_users, bool)
    for feature in dataset.schema.owned_by("users"):
        column = dataset.columns[feature.key]
        if isinstance(column, Ragged):
            has |= np.diff(column.offsets) > 0
        elif column.values.dtype.kind == "i":
            has |= np.asarray(column.values != MISSING)
        else:
            # All entries of a missing vector are nan, so its first one decides.
            first = column.values if column.values.ndim == 1 else column.values[:, 0]
            has |= ~np.isnan(np.asarray(first, np.float64))
    return has
