"""The exposition is what Prometheus reads, and counts what happened."""

from __future__ import annotations

import threading

import pytest

from recsys.serving.observability.exposition import Counter, Gauge, Histogram
from recsys.serving.observability.metrics import Metrics


def test_counters() -> None:
    counter = Counter("c_total", "What\nhappened.", ("route", "status"))
    counter.add("/a", "200")
    counter.add("/a", "200", by=2)
    counter.add('q"\\\n', "404")
    assert counter.expose() == [
        "# HELP c_total What\\nhappened.",
        "# TYPE c_total counter",
        'c_total{route="/a",status="200"} 3',
        'c_total{route="q\\"\\\\\\n",status="404"} 1',
    ]
    assert Counter("n_total", "None.").expose()[-1] == "n_total 0"
    with pytest.raises(ValueError, match="c_total: found labels"):
        counter.add("/a")


def test_histograms_add_up_from_bucket_to_bucket() -> None:
    histogram = Histogram("h_seconds", "Times.", (0.1, 1), ("stage",))
    # A value on a bound belongs to it: buckets say "at most".
    for value in (0.05, 0.1, 0.5, 7):
        histogram.observe(value, "tower")
    assert histogram.expose()[2:] == [
        'h_seconds_bucket{stage="tower",le="0.1"} 2',
        'h_seconds_bucket{stage="tower",le="1"} 3',
        'h_seconds_bucket{stage="tower",le="+Inf"} 4',
        'h_seconds_sum{stage="tower"} 7.65',
        'h_seconds_count{stage="tower"} 4',
    ]
    with pytest.raises(ValueError, match="expected ascending"):
        Histogram("h", "Times.", (1, 0.1))


def test_gauges_are_set_or_read() -> None:
    gauge = Gauge("g", "A level.", ("version",))
    gauge.set(0.5, "a")
    gauge.set(0.25, "a")
    assert gauge.expose()[2:] == ['g{version="a"} 0.25']
    held = {("v",): 1.0}
    read = Gauge("r", "Read.", ("version",), lambda: held)
    held["w",] = 2.5
    assert read.expose()[2:] == ['r{version="v"} 1', 'r{version="w"} 2.5']


def test_threads_lose_nothing() -> None:
    counter, histogram = Counter("c_total", "."), Histogram("h", ".", (1.0,))

    def work() -> None:
        for _ in range(5000):
            counter.add()
            histogram.observe(0.5)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.value() == 20_000
    assert histogram.expose()[-1] == "h_count 20000"


def test_versions_that_met_and_those_that_must_not() -> None:
    metrics = Metrics()
    assert "recsys_version_mismatches_total 0\n" in metrics.expose().decode()
    assert metrics.versions_met("a", "a")
    assert not metrics.versions_met("a", "b")
    metrics.answered("/v1/retrieve", 200, 0.003)
    with metrics.timed("tower"):
        pass
    metrics.gauge("recsys_index_recall", "Of the index.", lambda: {("a",): 0.98}, ("version",))
    text = metrics.expose().decode()
    assert 'recsys_versions_met_total{user_tower="a",index="a"} 1\n' in text
    assert "recsys_version_mismatches_total 1\n" in text
    assert 'recsys_requests_total{route="/v1/retrieve",status="200"} 1\n' in text
    assert 'recsys_request_seconds_bucket{route="/v1/retrieve",le="0.002"} 0\n' in text
    assert 'recsys_request_seconds_bucket{route="/v1/retrieve",le="0.005"} 1\n' in text
    assert 'recsys_stage_seconds_count{stage="tower"} 1\n' in text
    assert 'recsys_index_recall{version="a"} 0.98\n' in text
    assert text.endswith("\n")
