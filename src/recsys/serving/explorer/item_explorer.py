"""Titles, pictures and details of a release's items, search by name, and explanations. Imports no torch.

Shapes: N items of a release, D dim.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys.core.types import Float32Array
from recsys.data.encoding import plain
from recsys.release.files import read_embeddings, read_table
from recsys.release.manifest import ITEMS, Manifest
from recsys.release.runtime.item_ids import IdMap
from recsys.serving.explorer.messages import ExplainedItem, ItemCard, ItemId, NameMatch, PastItem, Reason

# Column names that hold titles and pictures; the first one that the items have is used. Case does not matter.
TITLES = ("title", "name", "item_name", "product_title")
PICTURES = ("image_url", "image", "picture", "picture_url", "thumbnail", "thumbnail_url", "img", "url")
# Limits of the details of an item: columns, values of a list, characters of a text.
_NUM_DETAILS, _NUM_VALUES, _NUM_CHARACTERS = 3, 4, 60
# Number of matches that are ranked. The others follow in the order of the release, the most frequent item first.
_NUM_RANKED = 500
_ADDRESS = re.compile(r"https?://\S+")
_PICTURE_FILE = re.compile(r"https?://\S+\.(?:jpe?g|png|webp|gif|avif)(?:\?\S*)?", re.IGNORECASE)


class ItemExplorer:
    """The items of one release, for people: cards, search by name, and explanations of recommendations.

    `rows` maps outside ids to rows of `items` and of `embeddings` [N, D]; -1 for an unknown id. The scores of
    the release are of `similarity`, cosine or dot.
    """

    def __init__(
        self,
        items: pa.Table,
        embeddings: Float32Array,
        *,
        rows: Callable[[Sequence[object]], npt.NDArray[Any]],
        similarity: str = "dot",
    ) -> None:
        self._items, self._embeddings, self._rows, self.similarity = items, embeddings, rows, similarity
        self._ids = plain(items["item_id"])
        self._has_string_ids = pa.types.is_string(self._ids.type)
        texts = [field.name for field in items.schema if _is_text(field.type) and field.name != "item_id"]
        self.title_column = _first(TITLES, texts)
        self.picture_column = self._picture_column(texts)
        shown = {"item_id", "item_idx", self.title_column, self.picture_column}
        self._details = [f.name for f in items.schema if f.name not in shown and _is_detail(f.type)][:_NUM_DETAILS]
        self._dates = {name for name in self._details if _holds_seconds(items[name])}

    @classmethod
    def open(cls, folder: Path, known_items: IdMap) -> ItemExplorer:
        """Return the explorer of a verified release, with the ids of its vocabulary of items."""
        manifest = Manifest.load(folder)
        items = read_table(folder, ITEMS, manifest)
        # Entry 0 belongs to ids that the vocabulary lacks.
        row_of_item = np.full(len(known_items) + 1, -1)
        row_of_item[np.asarray(items["item_idx"])] = np.arange(len(items))
        return cls(
            items,
            read_embeddings(folder, manifest),
            rows=lambda ids: row_of_item[known_items.rows(ids) + 1],
            similarity=manifest.similarity,
        )

    @property
    def num_items(self) -> int:
        """Number of items of the release."""
        return len(self._ids)

    def card(self, item_id: ItemId) -> ItemCard:
        """Return the card of an item; an unknown item has its id only."""
        return self.cards([item_id])[0]

    def cards(self, item_ids: Sequence[ItemId]) -> list[ItemCard]:
        """Return the card of each item."""
        rows = self._rows(item_ids)
        known = self._items.take(pa.array(rows[rows >= 0])).to_pylist()
        found = iter(known)
        return [
            self._card(next(found)) if row >= 0 else ItemCard(item_id)
            for item_id, row in zip(item_ids, rows, strict=True)
        ]

    def search(self, text: str, limit: int = 10) -> list[ItemCard]:
        """Return items whose id or title begins with the text, then those whose title contains all its words."""
        return self.cards(self._matches(text)[:limit])

    def find(self, name: str) -> NameMatch:
        """Return the item that best matches a pasted id or title, and the number of matching items.

        A known id is that item. Otherwise the order is: equal title, title that begins with the name, title that
        contains all words. The most frequent item comes first among equals.
        """
        name = name.strip()
        item_id = self._parse_id(name)
        if item_id is not None and self._rows([item_id])[0] >= 0:
            return NameMatch(name, self.card(item_id), 1)
        matches = self._matches(name, with_ids=False)
        return NameMatch(name, self.card(matches[0]) if matches else None, len(matches))

    def _parse_id(self, text: str) -> ItemId | None:
        """Return a text as an id of this release's type, or None if it cannot be one."""
        if self._has_string_ids:
            return text
        return int(text) if re.fullmatch(r"-?[0-9]{1,19}", text) else None

    def explain(
        self, history: Sequence[ItemId], item_ids: Sequence[ItemId], *, num_reasons: int = 3
    ) -> list[ExplainedItem]:
        """Return each item with the items of the history that are nearest to it, by cosine of their embeddings.

        Items without an embedding are left out on both sides, and an item does not explain itself.
        """
        distinct = list(dict.fromkeys(history))
        rows = self._rows(distinct)
        known = [item for item, row in zip(distinct, rows, strict=True) if row >= 0]
        past = self._directions(rows[rows >= 0])
        targets = self._rows(item_ids)
        similarities = self._directions(targets) @ past.T
        explained = []
        for card, target, similar in zip(self.cards(item_ids), targets, similarities, strict=True):
            # One more, because the item itself may be among them.
            order = np.argsort(-similar, kind="stable")[: num_reasons + 1].tolist() if target >= 0 else []
            near = [Reason(known[at], round(float(similar[at]), 4)) for at in order if similar[at] > 0]
            reasons = [reason for reason in near if reason.item_id != card.item_id][:num_reasons]
            explained.append(ExplainedItem(card.item_id, card.title, card.picture, card.details, reasons))
        return explained

    def past(self, item_ids: Sequence[ItemId], times: Sequence[int | None]) -> list[PastItem]:
        """Return the cards of a history with their times (UTC seconds)."""
        return [
            PastItem(card.item_id, card.title, card.picture, card.details, time)
            for card, time in zip(self.cards(item_ids), times, strict=True)
        ]

    def _directions(self, rows: npt.NDArray[Any]) -> Float32Array:
        vectors = np.asarray(self._embeddings[rows], np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True).astype(np.float32)
        directions: Float32Array = vectors / np.maximum(lengths, np.float32(1e-12))
        return directions

    @cached_property
    def _titles(self) -> pa.Array | None:
        return None if self.title_column is None else pc.utf8_lower(plain(self._items[self.title_column]))

    @cached_property
    def _id_texts(self) -> pa.Array:
        return pc.utf8_lower(self._ids.cast(pa.string()))

    def _matches(self, text: str, with_ids: bool = True) -> list[ItemId]:
        text = text.strip().lower()
        if not text:
            return []
        mask = np.zeros(len(self._ids), bool)
        if with_ids:
            mask |= _true(pc.starts_with(self._id_texts, text))
        if self._titles is not None:
            holds = np.ones(len(self._ids), bool)
            for word in set(text.split()):
                holds &= _true(pc.match_substring(self._titles, word))
            mask |= holds
        rows = np.flatnonzero(mask)
        near, far = rows[:_NUM_RANKED], rows[_NUM_RANKED:]
        ranks = [self._rank(text, row) for row in near.tolist()]
        ordered = np.concatenate([near[np.argsort(ranks, kind="stable")], far]).astype(np.int64)
        ids: list[ItemId] = self._ids.take(pa.array(ordered)).to_pylist()
        return ids

    def _rank(self, text: str, row: int) -> int:
        title = self._titles[row].as_py() if self._titles is not None else None
        names = [self._id_texts[row].as_py(), *([title] if title else [])]
        if text in names:
            return 0
        if any(name.startswith(text) for name in names):
            return 1
        return 2 if title and re.search(rf"\b{re.escape(text)}", title) else 3

    def _card(self, row: dict[str, Any]) -> ItemCard:
        title = row[self.title_column] if self.title_column else None
        picture = row[self.picture_column] if self.picture_column else None
        values = {name: _date(row[name]) if name in self._dates else row[name] for name in self._details}
        details = {name: text for name, value in values.items() if (text := _detail(value)) is not None}
        return ItemCard(row["item_id"], title, picture if picture and _ADDRESS.fullmatch(picture) else None, details)

    def _picture_column(self, texts: list[str]) -> str | None:
        name = _first(PICTURES, texts)
        if name is None:
            return None
        # A column `url` may hold addresses of pages. It is used only if its values look like picture files.
        pattern = _PICTURE_FILE if name.lower() == "url" else _ADDRESS
        examples = self._items[name].drop_null().slice(0, 20).to_pylist()
        return name if any(pattern.fullmatch(value) for value in examples) else None


def _first(names: Sequence[str], columns: Sequence[str]) -> str | None:
    folded = {column.lower(): column for column in columns}
    return next((folded[name] for name in names if name in folded), None)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_detail(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_text(kind.value_type)
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return bool(_is_text(kind) or is_number or pa.types.is_date(kind) or pa.types.is_timestamp(kind))


def _holds_seconds(column: pa.ChunkedArray) -> bool:
    """Return whether all values are integers that are Unix times of the years 2000 to 2099."""
    if not pa.types.is_integer(column.type) or column.null_count == len(column):
        return False
    first, last = pc.min_max(column).as_py().values()
    times = range(946_684_800, 4_102_444_800)
    return first in times and last in times


def _date(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _detail(value: Any) -> str | None:
    if value is None or value == []:
        return None
    if isinstance(value, list):
        more = ", …" if len(value) > _NUM_VALUES else ""
        value = ", ".join(str(part) for part in value[:_NUM_VALUES]) + more
    if isinstance(value, float):
        text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    else:
        text = value.date().isoformat() if isinstance(value, datetime) else str(value)
    return text if len(text) <= _NUM_CHARACTERS else f"{text[: _NUM_CHARACTERS - 1]}…"


def _true(found: pa.Array) -> npt.NDArray[np.bool_]:
    return np.asarray(found.fill_null(False)).astype(bool)
