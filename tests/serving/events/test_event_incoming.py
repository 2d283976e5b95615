"""Events as they are posted."""

from __future__ import annotations

import json
import sys
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.core.errors import UserError
from recsys.core.schema import Feature
from recsys.release.runtime.feature_values import ValueType
from recsys.serving.events import Event, ignore, parse_events
from recsys.serving.events.merging import decode_events, encode_events

NOW = 1_700_000_000
NAMES = {
    "rating": ValueType(Feature("rating", "interactions", "numeric", "event", 1)),
    "device": ValueType(Feature("device", "interactions", "categorical", "event", 9), pa.string()),
    "tags": ValueType(Feature("tags", "interactions", "multi_categorical", "event", 9), pa.string()),
    "floor": ValueType(Feature("floor", "interactions", "categorical", "event", 9), pa.int64()),
    "query": ValueType(Feature("query", "interactions", "text", "request", 9)),
    "place": ValueType(Feature("place", "interactions", "vector", "event", 2)),
}


def parse(**fields: Any) -> list[tuple[Any, Event]]:
    return parse_events({"user_id": 5, "item_id": "a", **fields}, NAMES, now=NOW)


def test_one_event_and_a_list() -> None:
    assert parse() == [(5, Event("a", NOW, {}))]
    posted = [
        {"user_id": "5", "item_id": 7, "timestamp": 0, "rating": 4.5, "tags": ["x", None]},
        {"user_id": 5, "item_id": "7", "timestamp": None, "device": "phone"},
    ]
    assert parse_events(posted, NAMES, now=NOW) == [
        ("5", Event(7, 0, {"rating": 4.5, "tags": ["x", None]})),
        (5, Event("7", NOW, {"device": "phone"})),
    ]
    assert parse_events([], NAMES, now=NOW) == []


def test_forms_of_a_time() -> None:
    for given_time, expected in (
        (12.9, 12),
        ("1970-01-02", 86_400),
        ("1970-01-02T02:00:00+02:00", 86_400),
        (NOW + 300, NOW + 300),
    ):
        ((_, event),) = parse(timestamp=given_time)
        assert (event.timestamp, type(event.timestamp)) == (expected, int)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"timestamp": -1}, "timestamp: found -1, expected seconds from 0"),
        ({"timestamp": -0.5}, "timestamp: found -0.5"),
        ({"timestamp": "1969-12-31"}, "timestamp: found '1969-12-31', expected seconds from 0"),
        ({"timestamp": 1_700_000_000_000}, "timestamp: found 1700000000000, expected seconds"),
        ({"timestamp": 10**400}, "^timestamp: found"),
        ({"timestamp": float("nan")}, "timestamp: found nan, expected integer seconds"),
        ({"timestamp": True}, "timestamp: found True"),
        ({"timestamp": "now"}, "timestamp: found 'now'"),
        ({"timestamp": [1]}, "timestamp: found \\[1\\]"),
        ({"user_id": None}, "user_id: found None, expected an integer of 64 bits or a string"),
        ({"user_id": True}, "user_id: found True"),
        ({"user_id": 2**63}, "user_id: found 9223372036854775808"),
        ({"item_id": 1.0}, "item_id: found 1.0"),
        ({"item_id": "\ud800"}, "item_id: found '\\\\ud800'"),
        ({"item_id": ["a"]}, "item_id: found"),
        ({"devise": "x"}, "devise: no such feature of events; did you mean 'device'?"),
        ({"device": {"a": 1}}, "device: found {'a': 1}, expected a number, a string or a list of them"),
        ({"device": "\ud800"}, "device: found"),
        ({"rating": 2**63}, "rating: found"),
        ({"tags": [["x"]]}, "tags: found"),
        ({"timestamp": NOW + 301}, "timestamp: found 1700000301, which is 301 s ahead of the server's clock"),
        (
            {"timestamp": "9999-12-31T23:59:59Z"},
            "timestamp: .* ahead of the server's clock; expected at most 300",
        ),
        ({"user_id": ""}, "user_id: found ''"),
        ({"item_id": ""}, "item_id: found ''"),
        ({"item_id": "a\x00"}, "item_id: found"),
        ({"device": 3}, "device: found 3, expected a string"),
        ({"device": ["x"]}, "device: found"),
        ({"rating": "4"}, "rating: found '4', expected a finite number"),
        ({"rating": float("inf")}, "rating: found inf"),
        ({"floor": "4"}, "floor: found '4', expected an integer"),
        ({"floor": True}, "floor: found True"),
        ({"query": 4}, "query: found 4, expected a string"),
        ({"tags": ["x", 4]}, "tags: found .*, expected a string or a list of them"),
        ({"place": [1.0]}, "place: found .*, expected a list of 2 numbers"),
        ({"place": [1.0, None]}, "place: found"),
    ],
)
def test_invalid_input_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(**fields)
    good = {"user_id": 5, "item_id": "a"}
    with pytest.raises(UserError, match=r"^\[1\]\."):
        parse_events([good, {**good, **fields}], NAMES, now=NOW)


def test_an_event_of_more_than_4096_bytes_is_refused() -> None:
    for size in (4050, 4070):
        posted = {"user_id": 5, "item_id": "a", "device": "x" * size}
        if len(json.dumps(posted, separators=(",", ":"))) <= 4096:
            assert len(parse_events([posted], NAMES, now=NOW)) == 1
        else:
            with pytest.raises(UserError, match=r"\[0\]: found an event of 41.. bytes, expected at most 4096"):
                parse_events([posted], NAMES, now=NOW)


@pytest.mark.parametrize("posted", [None, 3, "x", [None], [[]], [{"user_id": 1}], {"item_id": 1}])
def test_other_json_than_events_is_refused(posted: Any) -> None:
    with pytest.raises(UserError):
        parse_events(posted, NAMES, now=NOW)


@pytest.mark.parametrize("field", ["user_id", "timestamp", "rating"])
def test_values_nested_as_deep_as_the_stack_are_refused(field: str) -> None:
    value: Any = 1
    for _ in range(sys.getrecursionlimit()):
        value = [value]
    with pytest.raises(UserError, match="^events: found values nested too deeply"):
        parse(**{field: value})


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "ü", "\ud800", "2020-01-01", 2**64]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["user_id", "rating", "x"]), inner),
    max_leaves=5,
)


@given(st.fixed_dictionaries({}, optional={n: anything for n in ("user_id", "item_id", "timestamp", "rating", "tags")}))
def test_accepted_events_can_be_stored(posted: Any) -> None:
    try:
        ((_, event),) = parse_events(posted, NAMES, now=NOW)
    except UserError:
        return
    (stored,) = decode_events(encode_events([event]), 1, unreadable=ignore)
    assert json.dumps(stored) == json.dumps(event)
