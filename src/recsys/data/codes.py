"""Ids and features as trained towers know them, to prepare newer data for the same towers."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys.core.schema import FIRST_CODE, OWNERS, Schema


@dataclass(frozen=True, kw_only=True)
class Codes:
    """Rows of ids and codes of values that trained towers read.

    Data that is prepared with them keeps the item_idx, user_idx and codes of the towers. Further items and users follow
    after the known ones; further values of a category count as unknown, as in serving.

    Attributes:
        schema: features, with the sizes, means and deviations of training.
        item_ids: row r is item_idx r + 1.
        num_trained: items 1..num_trained have training events.
        vocabularies: `Feature.key` -> values of a categorical feature (row r is code r + 2).
        user_ids: row r is user_idx r; None if the towers do not know users.
        trained_users: bool, users of `user_ids` with an embedding of their own; None if the towers do not know users.
    """

    schema: Schema
    item_ids: pa.Array
    num_trained: int
    vocabularies: Mapping[str, pa.Array]
    user_ids: pa.Array | None = None
    trained_users: npt.NDArray[np.bool_] | None = None

    def first(self, num_items: int, num_users: int) -> Codes:
        """Return the codes of towers before newer data added items and users to them."""
        users, trained = self.user_ids, self.trained_users
        return dataclasses.replace(
            self,
            item_ids=self.item_ids.slice(0, num_items),
            user_ids=None if users is None else users.slice(0, num_users),
            trained_users=None if trained is None else trained[:num_users],
        )

    @property
    def settings(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Settings under `data.features` that give newer data the same features."""
        settings: dict[str, dict[str, dict[str, Any]]] = {owner: {} for owner in OWNERS}
        for feature in self.schema.features:
            options: dict[str, Any] = {"kind": feature.kind, "role": feature.role}
            if feature.encoder:
                options |= {"kind": feature.encoder_kind, "encoder": feature.encoder}
            elif feature.kind == "text":
                options["buckets"] = feature.size - FIRST_CODE
            settings[feature.owner][feature.name] = options
        return settings

    @property
    def digest(self) -> str:
        """Digest of everything that prepared data depends on."""
        running = hashlib.sha256(repr((self.schema, self.num_trained)).encode())
        arrays = [self.item_ids, *([] if self.user_ids is None else [self.user_ids])]
        for array in (*arrays, *(self.vocabularies[key] for key in sorted(self.vocabularies))):
            running.update(f"{array.type} {len(array)}".encode())
            for buffer in pa.concat_arrays([array]).buffers():
                if buffer is not None:
                    running.update(buffer)
        return running.hexdigest()
