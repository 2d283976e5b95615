"""Prometheus reads the metrics of all processes of a server, and they count what happened."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from recsys.serving.observability.metrics import SHARED_FOLDER, Metrics
from recsys.serving.workers import worker_environment


def exposed(content: bytes) -> dict[str, float]:
    """Series such as `name{label=value}` -> value."""
    series = {}
    for family in text_string_to_metric_families(content.decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sample.labels.items())
            series[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return series


def test_versions_that_met_and_those_that_must_not() -> None:
    metrics = Metrics()
    assert exposed(metrics.expose())["recsys_version_mismatches_total"] == 0
    assert metrics.versions_met("a", "a")
    assert not metrics.versions_met("a", "b")
    metrics.count_answer("/v1/retrieve", 200, seconds=0.003)
    with metrics.timed("tower"):
        pass
    metrics.set_recall("a", 1.5, samples=2)
    metrics.set_recall("b", 0.75, samples=1)
    series = exposed(metrics.expose())
    assert series["recsys_versions_met_total{index=a,user_tower=a}"] == 1
    assert series["recsys_version_mismatches_total"] == 1
    assert series["recsys_requests_total{route=/v1/retrieve,status=200}"] == 1
    assert series["recsys_request_seconds_bucket{le=0.002,route=/v1/retrieve}"] == 0
    assert series["recsys_request_seconds_bucket{le=0.005,route=/v1/retrieve}"] == 1
    assert series["recsys_stage_seconds_count{stage=tower}"] == 1
    assert series["recsys_index_recall{version=a}"] == series["recsys_index_recall{version=b}"] == 0.75
    assert series["recsys_index_recall_samples{version=a}"] == 2
    # An unloaded version is shown no more.
    metrics.set_recall("b", 0.0, samples=0)
    assert [name for name in exposed(metrics.expose()) if "version=b" in name] == []
    assert metrics.expose().endswith(b"\n")


def test_threads_lose_nothing() -> None:
    metrics = Metrics()

    def work() -> None:
        for _ in range(2000):
            metrics.count_answer("/a", 200, seconds=0.5)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metrics.value("recsys_requests_total", route="/a", status="200") == 8000
    assert metrics.value("recsys_request_seconds_count", route="/a") == 8000


WORKER = """
import sys
from recsys.serving.observability.metrics import Metrics
metrics = Metrics()
recall, samples = map(float, sys.argv[1:])
for _ in range(int(samples)):
    metrics.count_answer("/a", 200, 0.003)
metrics.request_samples["written"].inc(samples)
metrics.set_recall("v", recall * samples, samples=samples)
sys.stdout.buffer.write(metrics.expose())
"""


def test_processes_count_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SHARED_FOLDER, raising=False)

    def run(number: int, recall: float, samples: int) -> dict[str, float]:
        with worker_environment(number, count=2, metrics=tmp_path):
            command = [sys.executable, "-c", WORKER, str(recall), str(samples)]
            return exposed(subprocess.run(command, capture_output=True, check=True).stdout)

    run(0, 1.0, 30)
    series = run(1, 0.5, 10)
    assert SHARED_FOLDER not in os.environ
    assert series["recsys_requests_total{route=/a,status=200}"] == 40
    assert series["recsys_request_seconds_bucket{le=0.005,route=/a}"] == 40
    assert series["recsys_request_samples{what=written}"] == 40
    assert series["recsys_index_recall_samples{version=v}"] == 40
    assert series["recsys_index_recall{version=v}"] == 0.875
    # A process in the place of one that died goes on counting where that one was.
    files = sorted(file.name for file in tmp_path.iterdir())
    series = run(1, 0.5, 10)
    assert series["recsys_requests_total{route=/a,status=200}"] == 50
    assert series["recsys_request_samples{what=written}"] == 50
    assert sorted(file.name for file in tmp_path.iterdir()) == files
