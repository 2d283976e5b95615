"""Policies that choose the items of an index from the corpus of a run.

Shapes: N items of the corpus, M of them chosen.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys.core.columns import Dense, ragged_positions
from recsys.core.errors import UserError, nearest
from recsys.data.dataset import PreparedDataset

log = logging.getLogger("recsys")

Items = npt.NDArray[np.int64]
_DAY = 86_400


class CorpusPolicy(Protocol):
    """Chooses the items of an index."""

    def choose(self, dataset: PreparedDataset, corpus: Items) -> Items:
        """Return the item_idx of the chosen items, ascending; int64 [M].

        Args:
            dataset: data of the run; events of the test part are not used.
            corpus: item_idx of all items that can be recommended, ascending; int64 [N].

        Raises:
            UserError: If the policy cannot use the data or a file.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Return the settings that the manifest of a release records."""
        ...


class AllItems:
    """Every item that can be recommended."""

    def choose(self, dataset: PreparedDataset, corpus: Items) -> Items:  # noqa: ARG002
        """Return the whole corpus."""
        return corpus

    def describe(self) -> dict[str, Any]:
        """Return the settings that the manifest of a release records."""
        return {"policy": "all"}


class ListedItems:
    """Items of an allow list, without those of a deny list.

    Args:
        allow: file of item ids, one a line; no other items enter. None for all items.
        deny: file of item ids that never enter.
    """

    def __init__(self, allow: str | None = None, deny: str | None = None) -> None:
        self.allow, self.deny = allow, deny

    def choose(self, dataset: PreparedDataset, corpus: Items) -> Items:
        """Return the chosen items; see `CorpusPolicy.choose`."""
        if self.allow is None and self.deny is None:
            raise UserError("corpus=listed: expected corpus.allow=FILE, corpus.deny=FILE or both")
        allowed = (
            corpus if self.allow is None else np.intersect1d(corpus, read_items(self.allow, "allow", dataset=dataset))
        )
        return _without(allowed, self.deny, dataset)

    def describe(self) -> dict[str, Any]:
        """Return the settings that the manifest of a release records."""
        return {"policy": "listed", "allow": self.allow, "deny": self.deny}


class EngagedItems:
    """Items with recent engagement, and a number of the newest other items.

    The engagement of an item is the sum over its events of `0.5^(age / half_life_days)`, where the age is counted back
    from the newest event before the test part. Items enter if their engagement reaches a bound, or is among the
    largest. New items had no time to be engaged with, so the newest of the others enter as well. Pinterest chose its
    corpus by such a sum, which was worth 0.1 to 0.2% of sessions without a change to the model ("Advancements in
    Embedding-Based Retrieval", 2025).

    Args:
        half_life_days: age in days at which an event counts half.
        at_least: minimum engagement of an item; None for no bound.
        top: number of items with the most engagement; None for no bound.
        num_fresh: number of the newest other items that enter as well.
        born: numeric column of items with the time of their creation, in any unit; None for the time of the first
            event. Items without a value are the oldest.
        allow: file of item ids, one a line, that enter in any case.
        deny: file of item ids that never enter.
    """

    def __init__(
        self,
        half_life_days: float = 30.0,
        at_least: float | None = None,
        *,
        top: int | None = None,
        num_fresh: int = 0,
        born: str | None = None,
        allow: str | None = None,
        deny: str | None = None,
    ) -> None:
        if half_life_days <= 0:
            raise UserError(f"corpus.half_life_days={half_life_days}: expected a positive number of days")
        for name, value in (("at_least", at_least), ("top", top), ("num_fresh", num_fresh)):
            if value is not None and value < 0:
                raise UserError(f"corpus.{name}={value}: expected 0 or more")
        self.half_life_days, self.at_least, self.top, self.num_fresh = half_life_days, at_least, top, num_fresh
        self.born, self.allow, self.deny = born, allow, deny

    def choose(self, dataset: PreparedDataset, corpus: Items) -> Items:
        """Return the chosen items; see `CorpusPolicy.choose`."""
        if self.at_least is None and self.top is None:
            raise UserError("corpus=engaged: expected corpus.at_least=SUM, corpus.top=NUMBER or both")
        sums, first = engagement(dataset, self.half_life_days)
        able = corpus[sums[corpus] > 0]
        if self.at_least is not None:
            able = able[sums[able] >= self.at_least]
        best = able[np.argsort(-sums[able], kind="stable")][: self.top]
        others = np.setdiff1d(corpus, best)
        age = first if self.born is None else _born(dataset, self.born)
        fresh = others[np.argsort(-np.nan_to_num(age[others], nan=-np.inf), kind="stable")][: self.num_fresh]
        chosen = np.concatenate([best, fresh])
        if self.allow is not None:
            chosen = np.concatenate([chosen, np.intersect1d(corpus, read_items(self.allow, "allow", dataset=dataset))])
        return _without(np.unique(chosen), self.deny, dataset)

    def describe(self) -> dict[str, Any]:
        """Return the settings that the manifest of a release records."""
        return {"policy": "engaged", **vars(self)}


def choose_items(policy: CorpusPolicy, dataset: PreparedDataset, *, corpus: Items) -> Items:
    """Return the items that a policy chooses.

    Raises:
        UserError: If the policy chooses no item, or cannot use the data or a file.
    """
    chosen = policy.choose(dataset, corpus)
    if not len(chosen):
        raise UserError(f"corpus: {policy.describe()} leaves none of {len(corpus):,} items; expected at least one")
    return chosen


def engagement(
    dataset: PreparedDataset, half_life_days: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the engagement of each item, and the time of its first event (nan if there is none).

    Only events before the test part count. Both arrays are float64, by item_idx.

    Raises:
        UserError: If the times of events are not in days or seconds.
    """
    if not dataset.meta.time_resolution.has_clock:
        raise UserError(
            f"corpus=engaged: data.time={dataset.meta.time_resolution} has no days, which the decay needs; "
            "use corpus=all or corpus=listed, or data.time=seconds|day"
        )
    begin = dataset.offsets[:-1]
    positions = ragged_positions(begin, dataset.val_end - begin)
    items, time = np.asarray(dataset.item_idx[positions]), np.asarray(dataset.time[positions]).astype(np.float64)
    age = (time.max(initial=-np.inf) - time) / _DAY
    size = dataset.num_items + 1
    sums = np.bincount(items, 0.5 ** (age / half_life_days), minlength=size).astype(np.float64)
    first = np.full(size, np.inf)
    np.minimum.at(first, items, time)
    return sums, np.where(np.isinf(first), np.nan, first)


def read_items(file: str, setting: str, *, dataset: PreparedDataset) -> Items:
    """Return the item_idx of the ids in a file, one a line; unknown ids are counted in the log.

    Args:
        file: text file of ids.
        setting: key of `corpus` that names the file, for errors.
        dataset: data set that knows the ids.

    Raises:
        UserError: If the file cannot be read, an id is of another type than the data's, or all ids are unknown.
    """
    try:
        lines = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"corpus.{setting}={file}: not a readable text file ({error})") from error
    texts = [line for line in lines if line]
    try:
        ids = pa.array(texts, pa.string()).cast(dataset.item_ids.type)
    except pa.ArrowInvalid as error:
        raise UserError(f"corpus.{setting}={file}: expected one {dataset.item_ids.type} id a line ({error})") from error
    places = pc.index_in(ids, value_set=dataset.item_ids)
    if texts and places.null_count == len(texts):
        raise UserError(f"corpus.{setting}={file}: none of its {len(texts)} ids is an item of {dataset.path}")
    if places.null_count:
        log.warning("corpus.%s=%s: %d of %d ids are unknown", setting, file, places.null_count, len(texts))
    known = np.array(places.drop_null(), np.int64)
    return np.unique(known) + 1


def _without(items: Items, deny: str | None, dataset: PreparedDataset) -> Items:
    return items if deny is None else np.setdiff1d(items, read_items(deny, "deny", dataset=dataset))


def _born(dataset: PreparedDataset, name: str) -> npt.NDArray[np.float64]:
    """Return the values of a numeric column of items, float64 by item_idx; nan if an item has none."""
    able = {feature.name: feature for feature in dataset.schema.owned_by("items") if feature.kind == "numeric"}
    if name not in able:
        raise UserError(f"corpus.born={name}: there is no such numeric column of items{nearest(name, able)}")
    column = dataset.columns[able[name].key]
    assert isinstance(column, Dense)
    # Standardised values have the same order as the raw ones.
    return np.asarray(column.values, np.float64)
