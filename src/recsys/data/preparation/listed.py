"""Features of users or items from their table as a whole in memory: what `drafts` and `layout` do on an engine.

Without joins and sorts on an engine this takes a fraction of the time. It is for data sets that grow.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys.core.schema import Feature
from recsys.data.encoding import plain
from recsys.data.preparation.column_writers import open_writer
from recsys.data.preparation.feature_plans import Plan
from recsys.data.preparation.vocabulary import Entities, frequent_values, write_values


def write_listed(
    table: pa.Table, place: npt.NDArray[np.int64], plans: Mapping[str, Plan], entities: Entities, folder: Path
) -> list[Feature] | None:
    """Write the columns of a table, one row for each dense index, and their vocabularies.

    Args:
        table: the columns of `plans`.
        place: which of `entities` each row of the table is.
        plans: the columns by their names in `table`.
        entities: users or items.
        folder: of the prepared data set.

    Returns:
        The features; None where vectors have more than one length, or none.
    """
    row = np.full(entities.first + len(entities), -1)
    row[entities.first + place] = np.arange(len(place))
    rows = None if np.array_equal(row, np.arange(len(table))) else pa.array(row, mask=row < 0)
    trained = np.concatenate([np.zeros(entities.first, bool), entities.train > 0])
    features = []
    for name, plan in plans.items():
        column = plain(table[name])
        vocabulary, size = None, 1
        if plan.kind in ("categorical", "multi_categorical"):
            vocabulary = frequent_values(column.filter(pa.array(trained[entities.first + place])))
            size = len(vocabulary) + 2
            write_values(vocabulary, "value", folder / f"vocabularies/{plan.owner}.{plan.name}.parquet")
        elif plan.kind == "text":
            size = plan.text_size
        elif plan.kind == "vector":
            lengths = pc.unique(pc.list_value_length(column).drop_null()).to_pylist()
            if len(lengths) > 1 or 0 in lengths:
                return None
            size = int(lengths[0]) if lengths else 1
        feature = Feature(plan.name, plan.owner, plan.kind, plan.role, size)
        writer = open_writer(feature, vocabulary, folder / plan.owner / f"feature.{plan.name}", len(row), plan.divisor)
        writer.add(column if rows is None else column.take(rows))
        features.append(writer.close(trained))
    return features
