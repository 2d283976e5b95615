"""What a server tells of itself at `/metrics`. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from recsys.serving.observability.exposition import Counter, Gauge, Histogram, Labels

# Of latencies, from the bare work of a small request to a client's timeout.
SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.06, 0.1, 0.2, 0.5, 1, 2, 5)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """All metrics of one process.

    Attributes:
        requests: answers by route and status.
        latency: whole requests, by route.
        stage: parts of a retrieve: events (histories and profiles), encode (features to codes), tower, host (the
            search, with the way to another process where it is one), answer (to JSON).
        met: pairs of versions, user tower and index, that met in answers.
        mismatches: answers whose two versions differ. None is ever given to a caller: they are refused, and counted.
        fallbacks: requests that were answered, but not in the first way, by reason: `version` (the host no longer held
            it), `host` (another host was asked).
        batch: requests that one run of tower or index answered together, by stage.
        stored_events: acknowledged.
    """

    def __init__(self) -> None:
        self.requests = Counter("recsys_requests_total", "Answers, by route and HTTP status.", ("route", "status"))
        self.latency = Histogram("recsys_request_seconds", "Time from request to answer.", SECONDS, ("route",))
        self.stage = Histogram("recsys_stage_seconds", "Time of a stage of retrieval.", SECONDS, ("stage",))
        self.met = Counter(
            "recsys_versions_met_total", "Answers, by the versions that met in them.", ("user_tower", "index")
        )
        self.mismatches = Counter(
            "recsys_version_mismatches_total", "Answers refused because user tower and index were of two versions."
        )
        self.fallbacks = Counter("recsys_fallbacks_total", "Requests not answered in the first way.", ("reason",))
        self.batch = Histogram("recsys_batch_size", "Requests that were answered together.", SIZES, ("stage",))
        self.stored_events = Counter("recsys_events_total", "Events acknowledged.")
        self._metrics: list[Counter | Gauge | Histogram] = [
            self.requests, self.latency, self.stage, self.met, self.mismatches, self.fallbacks, self.batch,
            self.stored_events,
        ]  # fmt: skip

    def gauge(
        self, name: str, help: str, read: Callable[[], dict[Labels, float]], labels: tuple[str, ...] = ()
    ) -> None:
        """Add a gauge that is read when the metrics are asked for."""
        self._metrics.append(Gauge(name, help, labels, read))

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answer. `route` is one of the server's own, never what a caller made up: each is a series."""
        self.requests.add(route, str(status))
        self.latency.observe(seconds, route)

    def versions_met(self, user_tower: str, index: str, answers: int = 1) -> bool:
        """Count answers of a pair of versions; whether they are one, so that the answers may be given."""
        if user_tower != index:
            self.mismatches.add(by=answers)
            return False
        self.met.add(user_tower, index, by=answers)
        return True

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Measure a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stage.observe(time.perf_counter() - start, stage)

    def expose(self) -> bytes:
        """The body of `/metrics`."""
        return "".join(f"{line}\n" for metric in self._metrics for line in metric.expose()).encode()
