"""The search of grids: what it finds, what it leaves out, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from recsys.baselines.tuning import Axis, Settings, axes_of, search
from recsys.core.errors import UserError


def traced(score: Any) -> tuple[Any, list[Settings]]:
    tried: list[Settings] = []

    def scored(settings: Settings) -> float:
        tried.append(settings)
        return score(**settings)

    return scored, tried


def test_follows_one_axis_while_it_rises() -> None:
    score, tried = traced(lambda l2: -abs(l2 - 20))
    assert search({"l2": 200}, [Axis("l2", [2, 6, 20, 60, 200, 600, 2000])], score=score) == {"l2": 20}
    # One step too far on each side; neither 2 nor 2000.
    assert [settings["l2"] for settings in tried] == [200, 600, 60, 20, 6]


def test_known_values_are_not_scored_again() -> None:
    score, tried = traced(lambda x: x)
    assert search({"x": 2}, [Axis("x", [1, 2, 3, 4])], score=score) == {"x": 4}
    # In the second round the value before the best is known already.
    assert [settings["x"] for settings in tried] == [2, 3, 4]


def test_every_value_of_an_axis_that_falls_and_rises() -> None:
    score, tried = traced(lambda days: {None: 3, 365: 2, 30: 1, 7: 5, 1: 4}[days])
    values = [1, 7, 30, 365, None]
    assert search({"days": None}, [Axis("days", values)], score=score) == {"days": None}
    assert len(tried) == 2
    tried.clear()
    assert search({"days": None}, [Axis("days", values, every=True)], score=score) == {"days": 7}
    assert len(tried) == 5


def test_settings_depend_on_each_other() -> None:
    # The best b for a = 0 is 0, for a = 2 it is 3: two rounds.
    score, tried = traced(lambda a, b: 10 * a - (b - 1.5 * a) ** 2)
    axes = [Axis("b", [0, 1, 2, 3, 4]), Axis("a", [0, 1, 2])]
    assert search({"a": 0, "b": 0}, axes, score=score) == {"a": 2, "b": 3}
    assert len(tried) == len({tuple(settings.items()) for settings in tried})


def test_the_first_of_equal_settings_wins() -> None:
    assert search({"x": 2}, [Axis("x", [1, 2, 3], every=True)], score=lambda _: 1.0) == {"x": 2}


def test_an_empty_grid_returns_the_start() -> None:
    score, tried = traced(lambda: 1.0)
    assert search({}, [], score=score) == {}
    assert tried == [{}]


GRID = {"a": {"values": [1, 2]}, "b": {"values": [0.5, None], "every": True, "time": ["seconds", "day"]}}
START = {"_target_": "somewhere", "a": 1, "b": None, "c": 0}


def test_axes_that_make_sense_for_the_data() -> None:
    assert axes_of("als", GRID, start=START, time="day") == [Axis("a", [1, 2]), Axis("b", [0.5, None], every=True)]
    assert axes_of("als", GRID, start=START, time="none") == [Axis("a", [1, 2])]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"aa": {"values": [1]}}, r"grids.als.aa: generator 'als' has no such setting; did you mean 'a'\?"),
        ({"zzz": {"values": [1]}}, "no such setting; valid: a, b, c"),
        ({"a": [1, 2]}, r"grids.als.a: found \[1, 2\], expected \{values: \[...\]\}"),
        ({"a": {"values": 1}}, r"grids.als.a: found .*, expected \{values: \[...\]\}"),
        ({"a": {"values": [1], "tme": ["day"]}}, "'grids.als.a.tme'; did you mean 'time'"),
        (
            {"a": {"values": [2, 3]}},
            r"generator.als.a=1: the search begins there, but grids.als.a.values=\[2, 3\] lack it; .* ~grids.als.a",
        ),
    ],
)
def test_refuses(grid: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        axes_of("als", grid, start=START, time="seconds")
