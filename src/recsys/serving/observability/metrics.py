"""Metrics of a server for Prometheus, summed over the processes of the server. Imports no torch.

With `workers>1` the supervisor of the processes sets `PROMETHEUS_MULTIPROC_DIR`. Every process then keeps its values in
files of that folder, and the process that answers `/metrics` sums the files of all of them. A process that is started
again continues the counters of the one that it replaces, so a counter falls only if the whole server is started again.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Generic, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

__all__ = ["CONTENT_TYPE", "SHARED_FOLDER", "WORKER_NUMBER", "Metrics"]

log = logging.getLogger("recsys")

# Environment of a process that shares its metrics: the folder, and a number that no other running process has.
SHARED_FOLDER, WORKER_NUMBER = "PROMETHEUS_MULTIPROC_DIR", "RECSYS_WORKER_NUMBER"
# Upper bounds of latencies in seconds, from the work of one small request to a client's timeout; and of batch sizes.
SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.06, 0.1, 0.2, 0.5, 1, 2, 5)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_RECALL, _RECALL_SUM, _RECALL_SAMPLES = (f"recsys_index_recall{suffix}" for suffix in ("", "_sum", "_samples"))

disable_created_metrics()
if WORKER_NUMBER in os.environ:
    # Files named by this number instead of the process id, so that restarts do not add files.
    _number = int(os.environ[WORKER_NUMBER])
    values.ValueClass = values.MultiProcessValue(process_identifier=lambda: _number)

M = TypeVar("M", bound=MetricWrapperBase)


class _Series(dict[str | tuple[str, ...], M], Generic[M]):
    """Series of a metric by label value, or by a tuple of values; a look-up in a `dict` costs less than `labels()`."""

    def __init__(self, metric: M) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, labels: str | tuple[str, ...]) -> M:
        series = self[labels] = self._metric.labels(*((labels,) if isinstance(labels, str) else labels))
        return series


class _Timed(AbstractContextManager[None]):
    """Observes the time of a block; a generator as context would take three times as long."""

    __slots__ = ("_begin", "_series")

    def __init__(self, series: Histogram) -> None:
        self._series = series

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._series.observe(time.perf_counter() - self._begin)


class Metrics:
    """All metrics of a server. Labels in brackets are given as a key, as in `metrics.routing["retry"].inc()`.

    Attributes:
        registry: collector of the metrics of this process.
        batch: sizes of microbatches, by [stage].
        fallbacks: requests that another attempt answered, by [reason]: `version` if the host no longer held the
            version, `host` if another host answered.
        routing: events in the routing of searches, by [what]: retry, hedge, canary_not_held or mismatch_refused.
        stored_events: acknowledged events.
        event_outcomes: acknowledged events by [what] became of them: stored, repeated or dropped.
        changed_releases: loaded releases whose files have changed on disk.
        unreadable: stored events, profiles and features that counted as missing because they could not be read.
        request_samples: sampled requests by [what] happened to them: written, dropped or failed.
        impressions: answers with an impression id by [what] happened to their record: written, dropped or failed.
        outcomes: acknowledged outcomes of impressions by [what]: stored, repeated, unknown or late.
        recall_missed: sampled searches whose recall was not measured.
        task_errors: programming errors in background tasks, by [task].
    """

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(name, help, labels, registry=registry)

        def histogram(name: str, help: str, *, label: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            return Histogram(name, help, (label,), registry=registry, buckets=buckets)

        requests = counter("recsys_requests_total", "Answers by route and HTTP status.", "route", "status")
        latency = histogram("recsys_request_seconds", "Time from request to answer.", label="route")
        stages = histogram("recsys_stage_seconds", "Time of one stage of a retrieval.", label="stage")
        pairs = "Answers by version of the user tower and of the index."
        met = counter("recsys_versions_met_total", pairs, "user_tower", "index")
        refused = "Answers that were refused because user tower and index were of two versions."
        self._mismatches = counter("recsys_version_mismatches_total", refused)
        fallbacks = counter("recsys_fallbacks_total", "Requests that another attempt answered, by reason.", "reason")
        routing = counter(
            "recsys_routing_total",
            "Searches by event on their way: retry, hedge (a silent host), canary_not_held, mismatch_refused.",
            "what",
        )
        batch = histogram("recsys_batch_size", "Requests in one microbatch.", label="stage", buckets=SIZES)
        self.stored_events = counter("recsys_events_total", "Acknowledged events.")
        changed = "Loaded releases whose files have changed on disk."
        self.changed_releases = counter("recsys_release_changes_total", changed)
        outcomes = counter("recsys_event_outcomes_total", "Acknowledged events: stored, repeated or dropped.", "what")
        shown = "Answers with an impression id by what happened to the record: written, dropped, failed."
        self.impressions = _Series(counter("recsys_impressions_total", shown, "what"))
        joined = "Acknowledged outcomes of impressions: stored, repeated, unknown, late."
        self.outcomes = _Series(counter("recsys_outcomes_total", joined, "what"))
        self.unreadable = counter("recsys_unreadable_total", "Stored events and features that could not be read.")
        tasks = counter("recsys_task_errors_total", "Programming errors in background tasks, by task.", "task")
        kept = "Sampled requests by outcome: written, dropped (the queue was full), failed (the disk)."
        samples = Gauge("recsys_request_samples", kept, ("what",), registry=registry, multiprocess_mode="sum")
        self._requests, self._latency, self._stages = _Series(requests), _Series(latency), _Series(stages)
        self._met, self.fallbacks, self.routing = _Series(met), _Series(fallbacks), _Series(routing)
        self.event_outcomes = _Series(outcomes)
        self.batch, self.request_samples, self.task_errors = _Series(batch), _Series(samples), _Series(tasks)
        for what in ("written", "dropped", "failed"):
            self.request_samples[what].inc(0)

        self._certificate: Gauge | None = None

        def recall(name: str, help: str) -> Gauge:
            return Gauge(name, help, ("version",), registry=registry, multiprocess_mode="livesum")

        self._recall_sum = recall(_RECALL_SUM, "Sum of the recall of the latest sampled searches, by version.")
        self._recall_samples = recall(_RECALL_SAMPLES, "Number of searches in that sum, by version.")
        missed = "Sampled searches that were not measured: the queue was full, or the measurement failed."
        self.recall_missed = Gauge("recsys_index_recall_missed", missed, registry=registry, multiprocess_mode="sum")

    def count_answer(self, route: str, status: int, seconds: float) -> None:
        """Count an answer. Each route is a time series, so it must be one of the server, not a path of a caller."""
        self._requests[route, str(status)].inc()
        self._latency[route].observe(seconds)

    def versions_met(self, user_tower: str, index: str, *, answers: int = 1) -> bool:
        """Count answers by their versions; return True if the versions are equal, so that the answer is valid."""
        if user_tower != index:
            self._mismatches.inc(answers)
            return False
        self._met[user_tower, index].inc(answers)
        return True

    def timed(self, stage: str) -> AbstractContextManager[None]:
        """Measure a stage of a retrieval: events, encode, tower, host or answer."""
        return _Timed(self._stages[stage])

    @contextmanager
    def keep_going(self, task: str) -> Iterator[None]:
        """Log an exception of the block with its traceback, count it in `recsys_task_errors_total`, and suppress it.

        Use it around one round of a repeating task, after expected failures were handled. Without it, a host or an
        alias would be lost until the process is restarted.
        """
        try:
            yield
        except Exception:
            self.task_errors[task].inc()
            log.exception("%s failed, and is tried again", task)

    def set_recall(self, version: str, total: float, *, samples: int) -> None:
        """Replace sum and number of the latest recalls of a version; a version without samples is not shown."""
        self._recall_sum.labels(version).set(total)
        self._recall_samples.labels(version).set(samples)

    def set_certificate(self, end: float) -> None:
        """Show the time at which the certificate of the server ends; a server without TLS has no such series."""
        if self._certificate is None:
            help = "Time at which the certificate of the server ends, in seconds since 1970."
            name = "recsys_certificate_ends_seconds"
            self._certificate = Gauge(name, help, registry=self.registry, multiprocess_mode="min")
        self._certificate.set(end)

    def value(self, name: str, **labels: str) -> float:
        """Return the value of one series of this process, 0 if there is none yet."""
        return self.registry.get_sample_value(name, labels) or 0.0

    def expose(self) -> bytes:
        """Return the body of `/metrics`, summed over all processes of the server."""
        source = MultiProcessCollector(None) if SHARED_FOLDER in os.environ else self.registry
        return generate_latest(_WithMeanRecall(source))


class _WithMeanRecall(Collector):
    """Adds the mean recall of each version over all processes."""

    def __init__(self, source: Collector) -> None:
        self._source = source

    def collect(self) -> Iterable[Metric]:
        families = {family.name: family for family in self._source.collect()}
        mean = GaugeMetricFamily(_RECALL, "Mean recall of the index against exact search.", labels=["version"])
        totals, counts = (
            {sample.labels["version"]: sample.value for sample in families[name].samples} if name in families else {}
            for name in (_RECALL_SUM, _RECALL_SAMPLES)
        )
        for name in (_RECALL_SUM, _RECALL_SAMPLES):
            if name in families:
                kept = [sample for sample in families[name].samples if counts.get(sample.labels["version"])]
                families[name].samples = kept
        for version, count in counts.items():
            if count:
                mean.add_metric([version], totals.get(version, 0.0) / count)
        return [*families.values(), mean]
