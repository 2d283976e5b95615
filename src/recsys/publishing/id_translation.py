"""Translation of histories of one data set into the codes of a release that was made from another."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys.core.columns import Column, Dense, Ragged
from recsys.core.errors import UserError
from recsys.core.schema import MISSING, UNKNOWN, Feature
from recsys.data.dataset import PreparedDataset
from recsys.release.runtime.retriever import Retriever
from recsys.release.runtime.user_tower import Histories

log = logging.getLogger("recsys")


class Translation:
    """Maps ids, categories and standardised numbers through their outside values.

    Ids and values that the release does not know become unknown. Features that the data does not have are missing.

    Args:
        dataset: data set of the histories.
        retriever: opened release.

    Raises:
        UserError: If ids or features of the data are of another type than those of the release.
    """

    def __init__(self, dataset: PreparedDataset, retriever: Retriever) -> None:
        self._dataset, self._retriever = dataset, retriever
        for name in ("user_id_type", "item_id_type"):
            found, expected = getattr(dataset.schema, name), getattr(retriever.schema, name)
            if found != expected:
                raise UserError(f"data.root: {name.removesuffix('_type')} is {found}, but {expected} in the release")
        known = retriever.known_items.rows_of(dataset.item_ids)
        self._items = np.concatenate([[0], known + 1])
        self._users = retriever.query_encoder.user_rows(dataset.user_ids)
        self._features: dict[str, tuple[Feature, Feature | None]] = {}
        self._codes: dict[str, npt.NDArray[np.int32]] = {}
        own = {feature.key: feature for feature in dataset.schema.features}
        for feature in retriever.schema.with_role("event", "request", "profile"):
            self._features[feature.key] = (feature, self._same(feature, own.get(feature.key)))

    def _same(self, feature: Feature, found: Feature | None) -> Feature | None:
        if found is None:
            log.warning(
                "data.root: has no feature %s, which the release reads; it is missing for every user", feature.key
            )
            return None
        if found.kind != feature.kind or (feature.kind in ("vector", "text") and found.size != feature.size):
            raise UserError(
                f"data.root: {feature.key} is {found.kind} of size {found.size}, "
                f"but {feature.kind} of size {feature.size} in the release"
            )
        if feature.has_vocabulary:
            values = self._dataset.vocabulary(found)
            codes = self._retriever.query_encoder.encoder(feature).encode(values).values
            self._codes[feature.key] = np.concatenate([[MISSING, UNKNOWN], codes]).astype(np.int32)
        return found

    def items(self, items: Ragged) -> Ragged:
        """Return items of the data as items of the release, 0 for those that it does not know."""
        return Ragged(self._items[items.values].astype(np.int32), items.offsets)

    def histories(self, histories: Histories) -> Histories:
        """Return histories in the codes of the release."""
        return Histories(
            item_idx=self._items[histories.item_idx],
            lengths=histories.lengths,
            user_idx=np.where(histories.user_idx >= 0, self._users[np.maximum(histories.user_idx, 0)], -1),
            time=histories.time,
            events=self._columns(
                "interactions", histories.events, num_rows=len(histories.item_idx), roles=("event", "request")
            ),
            users=self._columns("users", histories.users, num_rows=len(histories.lengths), roles=("profile",)),
            requests=self._columns(
                "interactions", histories.requests, num_rows=len(histories.lengths), roles=("request",)
            ),
        )

    def _columns(
        self, owner: str, columns: Mapping[str, Column], *, num_rows: int, roles: tuple[str, ...]
    ) -> dict[str, Column]:
        translated: dict[str, Column] = {}
        for feature, found in self._features.values():
            if feature.owner == owner and feature.role in roles:
                column = columns.get(feature.name)
                if found is None or column is None:
                    column = self._retriever.query_encoder.encoder(feature).encode(pa.nulls(num_rows))
                else:
                    column = self._column(feature, found, column)
                translated[feature.name] = column
        return translated

    def _column(self, feature: Feature, found: Feature, column: Column) -> Column:
        if feature.has_vocabulary:
            codes = self._codes[feature.key][column.values]
            return Dense(codes) if isinstance(column, Dense) else _distinct(codes, column.offsets, feature.size)
        if feature.kind == "numeric":
            values = (column.values.astype(np.float64) * found.std + found.mean - feature.mean) / feature.std
            return Dense(values.astype(np.float32))
        return column


def _distinct(codes: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64], size: int) -> Ragged:
    """Return bags of distinct codes, as the encoder makes them: several unknown values become one."""
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    keys = np.unique(owner * size + codes)
    counts = np.bincount(keys // size, minlength=len(offsets) - 1)
    return Ragged((keys % size).astype(np.int32), np.concatenate([[0], np.cumsum(counts)]))
