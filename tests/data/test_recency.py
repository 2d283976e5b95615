"""Recent popularity relative to that of an average item, against counts by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from folders import events, prepared, write_folder

from recsys.core.index_time import DAY
from recsys.data.dataset import PreparedDataset
from recsys.data.preparation.splits import TemporalSplit
from recsys.data.recency import recency_states

BEGIN = 1_700_000_000


def day(number: float) -> int:
    return BEGIN + round(number * DAY)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """Item 1 has events on days 0, 1 and 3, item 2 on day 1; item 3 is born on day 2, item 4 on day 9."""
    root: Path = tmp_path_factory.mktemp("recency")
    rows = [
        (1, 1, day(0)),
        (2, 1, day(1)),
        (1, 2, day(1)),
        (3, 1, day(3)),
        (1, 3, day(5)),
        (2, 3, day(6)),
        (3, 3, day(7)),
    ]
    items = {"item_id": [1, 2, 3, 4], "made": [day(-5), None, day(2), day(9)], "kind": ["a", "b", "a", "b"]}
    folder = write_folder(root / "data", events(rows), items)
    return prepared(folder, TemporalSplit(0.6, 0.2), columns={"born": "made"})


def test_an_event_counts_half_after_the_half_life(dataset: PreparedDataset) -> None:
    (states,) = recency_states(dataset, np.array([day(4)]), [1.0])
    ids = dataset.item_ids.to_pylist()
    of = {item: states[place] for place, item in enumerate(ids, 1)}
    n = {1: 2**-4 + 2**-3 + 2**-1, 2: 2**-3, 3: 0.0}
    # Two items could be shown at first (1, and 2 without a birth), three from day 2 on.
    each = [2**-4 / 2, 2 * 2**-3 / 2, 2**-1 / 3]
    m = {1: sum(each), 2: sum(each), 3: each[2]}
    for item in (1, 2, 3):
        assert of[item][0] == pytest.approx(np.log((n[item] + 1) / (m[item] + 1)), abs=1e-6)
    assert [of[item][1] for item in (1, 2, 3, 4)] == [0, 0, 1, 1]
    assert of[4][0] == 0.0


def test_states_of_several_moments_equal_those_of_each(dataset: PreparedDataset) -> None:
    times = np.array([day(2), day(4), day(8)])
    together = recency_states(dataset, times, [1.0, 4.0])
    for place, moment in enumerate(times):
        (alone,) = recency_states(dataset, np.array([moment]), [1.0, 4.0])
        np.testing.assert_allclose(together[place], alone, atol=1e-6)


def test_before_the_first_event_nothing_is_known(dataset: PreparedDataset) -> None:
    (states,) = recency_states(dataset, np.array([day(0)]), [1.0, 4.0])
    assert not states[:, :-1].any()
    assert states[:, -1].all()


def test_an_event_at_the_moment_itself_is_not_counted(dataset: PreparedDataset) -> None:
    (states,) = recency_states(dataset, np.array([day(1)]), [1.0])
    place = dataset.item_ids.to_pylist().index(2) + 1
    assert states[place, -1] == 1


def test_parts_of_a_temporal_split_follow_in_time(dataset: PreparedDataset) -> None:
    assert dataset.parts_follow_in_time
    test = dataset.index_time("test")
    assert test is not None
    assert test.now == dataset.part_times("test")[0]
    assert test.horizon_days >= 1
