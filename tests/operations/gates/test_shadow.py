"""Figures of replayed requests, computed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import DAY, handmade
from publishing import Published

from recsys.data.dataset import PreparedDataset
from recsys.experiments.trained_run import load_run
from recsys.operations.gates.event_window import EventWindow
from recsys.operations.gates.evidence import Evidence, JudgedRelease, NothingServedError
from recsys.operations.gates.judged_requests import choose_requests
from recsys.operations.gates.replay import Replay, ReplayedAnswer, replay
from recsys.operations.gates.shadow import Shadow, ShadowHits
from recsys.operations.gates.staging import open_release
from recsys.operations.gates.verdict import Outcome
from recsys.release.runtime.retriever import Answer
from recsys.serving.http.messages import RetrieveRequest
from recsys.serving.observability.samples import RequestSample

SETTINGS: dict[str, Any] = {
    "min_requests": 2, "max_increase": 0.1, "min_overlap": 0.5, "max_popularity_ratio": 1.5,
    "min_score_spread_ratio": 0.5, "max_latency_ratio": 1.5, "cutoff": 2,
}  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> PreparedDataset:
    """Users 70 to 72, items 10 to 60: one event a day, each user's own day 0 the first."""
    made = handmade([([1, 1, 2], [3], [4, 5]), ([1], [], [6]), ([1, 1], [4], [])], path=tmp_path)
    (tmp_path / "vocabularies").mkdir()
    pq.write_table(pa.table({"item_id": [10, 20, 30, 40, 50, 60]}), tmp_path / "vocabularies/items.parquet")
    pq.write_table(pa.table({"user_id": [70, 71, 72]}), tmp_path / "vocabularies/users.parquet")
    return made


def sample(
    at: float = 0.0, user: int | None = None, version: str = "old", ids: Sequence[int] = (), **fields: Any
) -> RequestSample:
    request = RetrieveRequest(**{"user_id": user, "k": 2, **fields})
    return RequestSample(at, request, None if user is None else [], {}, version, ids)


def given(
    ids: Sequence[int], scores: Sequence[float] = (), unknown: float = np.nan, seconds: float = 0.001
) -> ReplayedAnswer:
    values = np.array(scores if len(scores) else np.linspace(1, 0.5, len(ids)), np.float32)
    return ReplayedAnswer(Answer(list(ids), values, 1, []), "", unknown, seconds)


REFUSED = ReplayedAnswer(None, "refused: request.query: no such feature", np.nan, np.nan)


def judged(replayed: Replay, data: PreparedDataset, **settings: Any) -> dict[str, Outcome]:
    served = SimpleNamespace(retriever=SimpleNamespace(version="old"))
    evidence: Any = SimpleNamespace(replay=replayed, judged=SimpleNamespace(dataset=data), served=served)
    return {outcome.check: outcome for outcome in Shadow(**SETTINGS | settings).judge(evidence)}


def test_lists_by_hand(data: PreparedDataset) -> None:
    samples = [sample(ids=[10, 20]), sample(ids=[10, 60], version="older"), sample(ids=[30, 40])]
    ours = [given([10, 30], [3, 1], 0.5, 0.003), given([10, 20], [2, 2], 0.0, 0.001), given([10], [1], np.nan, 0.004)]
    theirs = [given([10, 20], [4, 2], 0.25, 0.001), given([20, 30], [3, 1], 0.0, 0.002), given([30, 40], [1, 1])]
    found = judged(Replay(samples, ours, theirs), data)
    assert {check: outcome.value for check, outcome in found.items()} == pytest.approx(
        {
            # Of the served version's two answers both are given again.
            "as answered": 1.0,
            "errors": 0.0,
            # One item of six.
            "missing items": 1 / 6,
            "unknown history items": 0.25,
            # One of two, one of two, none of two.
            "overlap": 1 / 3,
            "different items": 3,
            # Train events of items 10, 20, 30, 40, 60: 5, 1, 0, 0, 0. Shown: 10, 30, 10, 20, 10.
            "popularity": 16 / 5,
            # (3 - 1) / 2 and 0; a list of one has no spread.
            "score spread": 0.5,
            # 3, 1/2 and 4.
            "times as long": 3.0,
        }
    )
    assert found["popularity"].threshold == pytest.approx(1.5 * (5 + 1 + 1) / 6)
    assert found["score spread"].threshold == pytest.approx(0.5 * (2 / 3 + 1 + 0) / 3)
    assert found["different items"].threshold == pytest.approx(4 / 1.5)
    assert found["unknown history items"].threshold == pytest.approx(0.125 + 0.1)
    failed = {check for check, outcome in found.items() if outcome.status == "fail"}
    assert failed == {"missing items", "unknown history items", "overlap", "popularity", "times as long"}


def test_equal_sides_pass(data: PreparedDataset) -> None:
    side = [given([10, 20], unknown=0.5), given([], unknown=0.0), REFUSED]
    found = judged(Replay([sample(ids=[10, 20])] * 3, side, side), data)
    assert {outcome.status for check, outcome in found.items() if check != "as answered"} == {"pass"}
    # A third of what was answered is given again: servers have other items. It is no fault of the candidate.
    assert (found["as answered"].status, found["as answered"].value) == ("untested", pytest.approx(1 / 3))


def test_refused_requests_and_empty_lists(data: PreparedDataset) -> None:
    served = [given([10, 20])] * 4
    found = judged(Replay([sample()] * 4, [REFUSED, *served[1:]], served), data)
    assert (found["errors"].value, found["errors"].status) == (0.25, "fail")
    assert "such as refused: request.query: no such feature" in found["errors"].reason
    assert found["missing items"].value == 0.25
    found = judged(Replay([sample()] * 4, [given([])] * 4, served), data)
    assert (found["missing items"].value, found["missing items"].status) == (1.0, "fail")
    assert found["overlap"].status == "fail"
    found = judged(Replay([sample()] * 4, [REFUSED] * 4, served), data)
    assert (found["errors"].status, found["lists"].status) == ("fail", "untested")


def test_few_requests_and_none(data: PreparedDataset) -> None:
    (outcome,) = judged(Replay([], [], []), data).values()
    assert (outcome.status, outcome.reason[:33]) == ("untested", "skipped: no requests were sampled")
    (outcome,) = judged(Replay([sample()], [given([1])], [given([1])]), data).values()
    assert outcome.reason == "1 sampled requests, expected 2"


def test_hits_are_of_events_after_the_request(data: PreparedDataset) -> None:
    samples = [
        # User 70 does 40 on day 4 and 50 on day 5, in the test part; 30 on day 3 is before it.
        sample(1.5 * DAY, 70), sample(4.5 * DAY, 70), sample(5.5 * DAY, 70),
        sample(0.5 * DAY, 71), sample(0.5 * DAY, 71, exclude=[60]), sample(0.5 * DAY, 71, history=[{"item_id": 60}]),
        sample(0.5 * DAY, 71, history=[{"item_id": 60}], exclude_seen=False),
        # No events of the test part; nobody; somebody else.
        sample(0.0, 72), sample(0.0), sample(0.0, 99),
    ]  # fmt: skip
    samples = [
        one if one.request.history is None else RequestSample(one.at, one.request, None, {}, one.version, ())
        for one in samples
    ]
    ours = [given([40]), given([40]), given([50]), given([60]), *[given([60])] * 3, *[given([10])] * 3]
    theirs = [given([30]), given([10, 50]), *[given([50])] * 8]
    candidate, served = Replay(samples, ours, theirs).hits(data)
    # User 70: (1, 0) then (0, 1); user 71: (1, 0) twice, the second where what was seen may come again.
    assert candidate.tolist() == [0.5, 1.0]
    assert served.tolist() == [0.5, 0.0]


def test_fewer_hits_stop(data: PreparedDataset) -> None:
    def outcome(ours: np.ndarray, theirs: np.ndarray, has_times: bool = True) -> Outcome:
        stub = SimpleNamespace(samples=[sample()], hits=lambda _: (ours, theirs))
        window, judged = SimpleNamespace(has_times=has_times), SimpleNamespace(dataset=data)
        evidence: Any = SimpleNamespace(replay=stub, judged=judged, window=window)
        (found,) = ShadowHits(non_inferiority_margin=0.08, significance_level=0.05, detectable_loss=0.5).judge(evidence)
        return found

    rng = np.random.default_rng(0)
    served = (rng.random(400) < 0.5).astype(float)
    assert outcome(served, served).status == "pass"
    assert outcome(served * (rng.random(400) < 0.7), served).status == "fail"
    # Three users who differ say nothing.
    assert outcome(np.array([1.0, 0, 1]), np.array([0.0, 1, 1])).status == "untested"
    assert outcome(served[:0], served[:0]).reason.startswith("no user of a sampled request has events")
    assert outcome(served, served, has_times=False).reason == "the data set has no times"


def test_real_releases_replay_the_same_requests(published: Published) -> None:
    one, other = (open_release(published.store, version) for version in published.versions)
    run = load_run(published.runs[0])
    users = run.dataset.user_ids.to_pylist()[:8]
    samples = [sample(0.0, user, k=5 + n) for n, user in enumerate(users)]
    samples.append(sample(0.0, None, history=[{"item_id": "i001"}, {"item_id": "nobody"}], filter={"category": "x"}))
    samples.append(sample(0.0, None, filter={"colour": "x"}))
    replayed = replay(samples, one, served=other)
    for retriever, side in ((one, replayed.candidate), (other, replayed.served)):
        for made, found in zip(samples[:-1], side, strict=False):
            (answer,) = retriever.retrieve(
                [made.query(retriever.query_encoder)], made.request.k, exclude_seen=True, filter=made.request.filter
            )
            assert found.item_ids == answer.item_ids
            assert found.seconds > 0
        assert side[8].unknown == 0.5
        assert np.isnan(side[0].unknown)
        assert side[9].answer is None
        assert "filter" in side[9].problem
    judged = choose_requests(run.dataset, True, most=5)
    evidence = Evidence(
        run=run,
        judged=judged,
        candidate=JudgedRelease(one, judged),
        served_side=None,
        window=EventWindow(run.dataset),
        now=0,
        samples=samples,
    )
    with pytest.raises(NothingServedError):
        [*Shadow(**SETTINGS).judge(evidence)]
