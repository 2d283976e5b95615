"""Description of the data of a release."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from handmade import DAY, handmade

from recsys.publishing.release_writer import _times


@pytest.mark.parametrize(
    ("users", "expected"),
    [
        ([([1, 2], [], [1]), ([1], [2], [1, 2]), ([2], [], [])], {"train_until": 1, "until": 3, "test_begin": 2}),
        ([([1, 2], [1], [])], {"train_until": 1, "until": 2}),
    ],
)
def test_times_of_the_data_by_hand(users: Any, expected: dict[str, int]) -> None:
    run: Any = SimpleNamespace(dataset=handmade(users), state=SimpleNamespace(train_until=None))
    assert _times(run) == {"begin": 0} | {name: days * DAY for name, days in expected.items()}
