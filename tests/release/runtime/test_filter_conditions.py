"""Ranges and negations of filters against the same conditions in Python."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recsys.core.errors import UserError
from recsys.release.runtime.item_ids import ItemFilter

YEARS = [1990, 1997, None, 2001, 2001]
DAYS = [date(2020, 1, day) for day in range(1, 6)]
TIMES = [datetime(2020, 1, day) for day in range(1, 6)]
TAGS = [["a"], ["a", "b"], [], None, ["c"]]
TABLE = pa.table(
    {
        "item_idx": range(5),
        "year": pa.array(YEARS, pa.int32()),
        "price": pa.array([1.5, 2.0, np.inf, None, -1.0]),
        "day": DAYS,
        "at": pa.array(DAYS).cast(pa.timestamp("us")),
        "zoned": pa.array(DAYS).cast(pa.timestamp("ms", "UTC")),
        "exact": pa.array(DAYS).cast(pa.timestamp("ns")),
        "coarse": pa.array(DAYS).cast(pa.timestamp("s")),
        "days": pa.array([TIMES[:2], TIMES[4:], [], None, TIMES[:1]], pa.list_(pa.timestamp("ns", "UTC"))),
        "unsigned": pa.array([0, 5, None, 2**63, 2**64 - 1], pa.uint64()),
        "signed": pa.array([0, 5, None, 2**63 - 1, -(2**63)], pa.int64()),
        "kind": ["x", "y", None, "x", "z"],
        "tags": TAGS,
        "sizes": [[1], [5, 9], [], None, [3]],
    }
)


@pytest.mark.parametrize(
    ("wanted", "passing"),
    [
        ({"year": {"gte": 1997}}, [1, 3, 4]),
        ({"year": {"gt": 1997, "lte": 2001}}, [3, 4]),
        ({"year": {"lt": 1997.5}}, [0, 1]),
        ({"year": {"not": 2001}}, [0, 1, 2]),
        ({"year": {"not": [1990, 1997], "lt": 3000}}, [3, 4]),
        ({"price": {"gte": 2}}, [1, 2]),
        ({"price": {"lt": 0}}, [4]),
        ({"day": {"gt": "2020-01-03"}}, [3, 4]),
        ({"kind": {"not": ["x", "z"]}}, [1, 2]),
        ({"tags": {"not": "a"}}, [2, 3, 4]),
        ({"tags": {"not": ["a", "c"]}, "year": {"gte": 0}}, [3]),
        ({"sizes": {"gt": 4}}, [1]),
        ({"sizes": {"lte": 3}}, [0, 4]),
        ({"kind": "x", "year": {"gte": 2000}}, [3]),
        # No integer is equal to a number between two of them.
        ({"year": 1997.5}, []),
        ({"year": [1997.0, 2000.5]}, [1]),
        ({"year": {"not": 1997.5}}, [0, 1, 2, 3, 4]),
        ({"year": {"lt": 3_000_000_000}}, [0, 1, 3, 4]),
        ({"at": {"gte": "2020-01-03"}}, [2, 3, 4]),
        ({"at": {"gte": "2020-01-03T00:00:00Z"}}, [2, 3, 4]),
        ({"at": {"gt": "2020-01-03T02:00:00.000+02:00"}}, [3, 4]),
        ({"zoned": {"gte": "2020-01-03"}}, [2, 3, 4]),
        ({"zoned": "2020-01-03T02:00:00+02:00"}, [2]),
        # Bounds beyond the nanoseconds of 64 bits, and between two units of a column.
        ({"exact": {"lt": "9999-12-31", "gte": "2020-01-04"}}, [3, 4]),
        ({"exact": {"gte": "0001-01-01T00:00:00+14:00"}}, [0, 1, 2, 3, 4]),
        ({"exact": {"gt": "9999-12-31"}}, []),
        ({"exact": ["9999-12-31", "2020-01-02"]}, [1]),
        ({"days": {"gt": "2020-01-04", "lt": "9999-12-31"}}, [1]),
        ({"coarse": {"lt": "2020-01-02T00:00:00.5"}}, [0, 1]),
        ({"coarse": {"lte": "2020-01-02T00:00:00.5"}}, [0, 1]),
        ({"coarse": {"gt": "2020-01-03T00:00:00.5"}}, [3, 4]),
        ({"coarse": {"gte": "2020-01-03T00:00:00.5"}}, [3, 4]),
        ({"coarse": ["2020-01-03T00:00:00.5", "2020-01-04"]}, [3]),
        ({"zoned": {"lt": "2020-01-02T00:00:00.000001"}}, [0, 1]),
        ({"unsigned": {"gte": -1}}, [0, 1, 3, 4]),
        ({"unsigned": {"lte": -1}}, []),
        ({"unsigned": {"gt": -0.5, "lt": 2**64 - 1}}, [0, 1, 3]),
        ({"unsigned": {"lt": 1e30}}, [0, 1, 3, 4]),
        ({"signed": {"lt": 2**63}}, [0, 1, 3, 4]),
        ({"signed": {"gt": 5.5, "lt": 1e30}}, [3]),
        ({"signed": {"gte": -(2.0**70), "lt": 2**63 - 1}}, [0, 1, 4]),
    ],
)
def test_conditions(wanted: Any, passing: list[int]) -> None:
    allowed = ItemFilter(TABLE)(wanted)
    assert allowed is not None
    assert allowed.rows.tolist() == passing


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"year": {"gtee": 1}}, r"filter.year.gtee: no such condition; did you mean 'gte'\?"),
        ({"year": {}}, "filter.year: found no condition"),
        ({"year": {"gte": [1, 2]}}, r"filter.year.gte: found \[1, 2\], expected one number or time"),
        ({"year": {"gte": True}}, "filter.year.gte: found"),
        ({"year": {"gte": "soon"}}, "filter.year: found"),
        ({"kind": {"gte": "a"}}, "filter.kind.gte: the column is string, expected one of numbers or times"),
        ({"day": {"gte": "soon"}}, "filter.day: found"),
        ({"yaer": {"gte": 1}}, r"filter.yaer: the release's items have no such column; did you mean 'year'\?"),
        ({"year": {"gte": float("nan")}}, "filter.year: found"),
        ({"price": True}, "filter.price: found"),
        ({"at": {"gte": "2020-01-03T25:00:00Z"}}, "filter.at: found"),
        ({"at": {"gte": 5}}, "filter.at: found"),
    ],
)
def test_wrong_conditions(wanted: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ItemFilter(TABLE)(wanted)


def test_filters_of_many_values_are_not_kept() -> None:
    found = ItemFilter(TABLE)
    for number in range(3):
        found({"kind": ["x", *map(str, range(number, 2000))]})
        found({"kind": ["x", str(number)]})
    assert found._cached.cache_info().currsize == 3
