"""The gate on the age of a release, computed by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from days import days_of_events

from recsys.operations.gates.artifact import Fresh
from recsys.operations.gates.event_window import DAY, EventWindow

TOWERS = ("user_tower.safetensors", "item_tower.safetensors")


def release(begin: int, until: int, data: str = "new", weights: str = "new") -> Any:
    """A release of data between two days, with digests of data and weights."""
    manifest = SimpleNamespace(
        data={"begin": begin * DAY, "until": until * DAY},
        dataset_fingerprint=data,
        files={name: SimpleNamespace(sha256=weights) for name in TOWERS},
    )
    return SimpleNamespace(retriever=SimpleNamespace(manifest=manifest))


@pytest.mark.parametrize(
    ("candidate", "failed"),
    [
        (release(0, 10), []),
        # Seven tenths of the nine days that the served one spans are 6.3.
        (release(3, 10), []),
        (release(4, 10), ["past"]),
        (release(0, 8), ["newest event"]),
        (release(0, 6), ["newest event", "past", "days behind"]),
        (release(0, 10, weights="old"), ["new weights"]),
        (release(0, 9, data="old", weights="old"), []),
    ],
)
def test_age_of_the_data_and_new_weights(candidate: Any, failed: list[str]) -> None:
    window = EventWindow(days_of_events([95] + [100] * 9))
    evidence: Any = SimpleNamespace(candidate=candidate, served=release(0, 9, "old", "old"), window=window)
    outcomes = list(Fresh(max_days_behind=3, min_span_ratio=0.7).judge(evidence))
    assert [outcome.check for outcome in outcomes if outcome.status == "fail"] == failed
    assert len(outcomes) >= 3


def test_a_release_without_times_is_untested() -> None:
    silent = release(0, 9)
    silent.retriever.manifest.data = {}
    window = EventWindow(days_of_events([95] + [100] * 9))
    evidence: Any = SimpleNamespace(candidate=silent, served=release(0, 9, "old", "old"), window=window)
    assert [o.status for o in Fresh(max_days_behind=3, min_span_ratio=0.7).judge(evidence)][0] == "untested"
