"""Titles and categories of items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.core.columns import Dense, Ragged
from recsys.core.errors import UserError, nearest
from recsys.core.schema import FIRST_CODE
from recsys.data.dataset import PreparedDataset
from recsys.data.sources.files import open_file
from recsys.data.sources.keys import key_column
from recsys.data.sources.literal_columns import read_columns
from recsys.evaluation.slices import ITEM_SLICES, item_slices
from recsys.experiments.assembly import source_of
from recsys.experiments.trained_run import TrainedRun

_TITLES = ("title", "name")
# Maximum number of categories that a reader can tell apart.
_MOST_VALUES = 60


class ItemDescriptions:
    """Titles and categories of the items of a run.

    Titles come from the source, because a column of distinct values is not a feature and therefore not prepared.

    Args:
        run: finished run.
        title: column of the items table that names an item; by default `title` or `name`, and else the item's id.

    Raises:
        UserError: If the items table has no such column, or the column holds neither strings nor numbers.
    """

    def __init__(self, run: TrainedRun, title: str | None = None) -> None:
        self.dataset = run.dataset
        self._titles = self.dataset.item_ids.cast(pa.string())
        files = source_of(run.config).items
        names: list[str] = []
        if files:
            with open_file(files[0]) as opened:
                names = pq.read_schema(opened).names
        if title is not None and title not in names:
            raise UserError(f"title: the items table has no column '{title}'{nearest(title, names)}")
        chosen = title or next((name for name in _TITLES if name in names), None)
        if chosen is not None:
            self._titles = self._read(files, key_column(run.config.data.columns, "items", names), chosen)

    def _read(self, files: Sequence[str], item_id: str, title: str) -> pa.Array:
        shards = [read_columns(file, [item_id, title]) for file in files]
        table = pa.concat_tables(shards, promote_options="permissive")
        ids = table[item_id].combine_chunks().cast(self.dataset.item_ids.type)
        rows = pc.index_in(self.dataset.item_ids, value_set=ids)
        try:
            found = table[title].combine_chunks().cast(pa.string()).take(rows)
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
            raise UserError(f"title: column '{title}' is {table[title].type}, expected strings or numbers") from error
        return pc.coalesce(found, self._titles)

    def title(self, item_idx: int) -> str:
        """Return the title of an item, or its id if it has no title."""
        return "unknown item" if item_idx <= 0 else str(self._titles[item_idx - 1].as_py())

    def search(self, text: str) -> npt.NDArray[np.int64]:
        """Return the item_idx of items with `text` in the title, ignoring case, most trained first."""
        found = pc.match_substring(self._titles, text, ignore_case=True).to_numpy(zero_copy_only=False)
        return np.flatnonzero(found) + 1

    def examples(self, num: int = 8) -> npt.NDArray[np.int64]:
        """Return the item_idx of some trained items, from the most to the least trained."""
        return np.unique(np.geomspace(1, self.dataset.num_trained, num).astype(np.int64))

    def categories(self, name: str | None = None) -> tuple[str, npt.NDArray[np.object_]]:
        """Return a feature's name and its value for each item, None if the item has none; object [N + 1].

        Args:
            name: item feature with a vocabulary; the first value of a bag counts. By default the feature with the
                fewest values (three at least), or popularity if there is none.

        Raises:
            UserError: If there is no such feature.
        """
        features = {f.name: f for f in self.dataset.schema.owned_by("items") if f.has_vocabulary}
        if name is not None and name not in features:
            raise UserError(f"category: no feature of items with a vocabulary is '{name}'{nearest(name, features)}")
        usual = [f for f in features.values() if 3 <= f.size - FIRST_CODE <= _MOST_VALUES]
        feature = features[name] if name is not None else min(usual, key=lambda f: f.size, default=None)
        if feature is None:
            return "popularity", np.array(ITEM_SLICES, object)[item_slices(self.dataset)]
        codes = _first_codes(self.dataset, feature.key)
        vocabulary = self.dataset.vocabulary(feature)
        assert vocabulary is not None
        values = np.array([None, None, *map(str, vocabulary.to_pylist())], object)
        return feature.name, values[codes]


def _first_codes(dataset: PreparedDataset, key: str) -> npt.NDArray[np.int64]:
    column = dataset.columns[key]
    if isinstance(column, Dense):
        return np.asarray(column.values).astype(np.int64)
    assert isinstance(column, Ragged)
    begin, end = np.asarray(column.offsets[:-1]), np.asarray(column.offsets[1:])
    codes = np.zeros(len(begin), np.int64)
    filled = end > begin
    codes[filled] = np.asarray(column.values)[begin[filled]]
    return codes
