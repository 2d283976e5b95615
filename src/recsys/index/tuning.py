"""Choice of the search effort of an approximate index, by its measured recall of the exact top-k."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.index.ann_index import Effort, Tunable
from recsys.index.topk import exact_search

# A sweep ends if doubling the breadth adds less recall than this, because then the codes limit the recall.
SATURATED = 0.001
# Bisection ends when the ratio of its bounds is below this.
PRECISION = 1.1
# Multiples of the breadth of an earlier index that are tried first.
NEAR = (1.0, 1.15, 1.4, 2.0)


@dataclass(frozen=True)
class Measurement:
    """Recall and speed at one effort.

    Attributes:
        recall: share of the exact top-k that was found, the mean over queries.
        queries_per_second: speed of one batch with all threads, on the machine that built the index.
    """

    breadth: int
    refine: int
    recall: float
    queries_per_second: float


@dataclass(frozen=True)
class Tuning:
    """Result of `tune`. The manifest of a release records `to_json()`.

    Attributes:
        reached: true if the chosen effort reaches the recall target.
        chosen: fastest effort that reaches the target; if none does, the one of highest recall.
        curve: all measurements, in order of (refine, breadth).
    """

    recall_target: float
    k: int
    num_queries: int
    reached: bool
    chosen: Measurement
    curve: tuple[Measurement, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain containers."""
        return {**asdict(self), "curve": [asdict(measure) for measure in self.curve]}


def tune(
    index: Tunable,
    embeddings: Float32Array,
    *,
    queries: Float32Array,
    recall_target: float = 0.98,
    k: int = 100,
    start: Effort | None = None,
) -> Tuning:
    """Set `index.effort` to the fastest one whose recall of the exact top-k reaches the target (above 0, at most 1).

    For each refine factor the breadth doubles until the target is reached, and is then bisected. The target counts as
    reached if the mean recall exceeds it by one standard error, so that other queries of the same kind reach it too.
    The queries must be like those of serving: user embeddings, not item embeddings. If the effort `start`, that of an
    earlier index, or one little above it reaches the target, no other is measured.
    """
    if not 0 < recall_target <= 1:
        raise UserError(f"recall_target: found {recall_target}, expected a share above 0 and at most 1")
    if not len(queries):
        raise UserError("queries to tune the index: found none, expected at least one")
    k = min(k, index.num_items)
    if index.is_exact:
        exact = Measurement(breadth=0, refine=1, recall=1.0, queries_per_second=_speed(index, queries, k))
        return Tuning(recall_target, k, num_queries=len(queries), reached=True, chosen=exact, curve=(exact,))
    sweep = _Sweep(index, embeddings, queries=queries, recall_target=recall_target, k=k)
    fastest, is_found = 0.0, start is not None and sweep.finds_near(start)
    for refine in () if is_found else index.refine_factors:
        speed = sweep.find(refine)
        if speed < fastest:
            # More candidates no longer save breadth.
            break
        fastest = speed
    reaching = [m for m in sweep.measured.values() if sweep.reaches(m)]
    chosen = (
        max(reaching, key=lambda m: m.queries_per_second)
        if reaching
        else max(sweep.measured.values(), key=lambda m: (m.recall, m.queries_per_second))
    )
    index.effort = Effort(chosen.breadth, chosen.refine, k)
    curve = tuple(sorted(sweep.measured.values(), key=lambda m: (m.refine, m.breadth)))
    return Tuning(recall_target, k, num_queries=len(queries), reached=bool(reaching), chosen=chosen, curve=curve)


class _Sweep:
    """Measurements of one index, each effort once."""

    def __init__(
        self, index: Tunable, embeddings: Float32Array, *, queries: Float32Array, recall_target: float, k: int
    ) -> None:
        self.index, self.queries, self.recall_target, self.k = index, queries, recall_target, k
        exact, _ = exact_search(embeddings, np.ascontiguousarray(queries, np.float32), k=k)
        # An item with the score of the k-th counts as found, because any of several equal items is as good. The margin
        # is there because scores differ in their last bits if additions are made in another order.
        self.threshold = exact[:, -1] - 1e-6 * np.maximum(np.abs(exact[:, 0]), np.abs(exact[:, -1]))
        self.measured: dict[tuple[int, int], Measurement] = {}
        self.errors: dict[tuple[int, int], float] = {}

    def finds_near(self, start: Effort) -> bool:
        """Measure an effort, and larger ones up to twice the breadth, until one reaches the target."""
        least, most = self.index.least_breadth(self.k), self.index.max_breadth
        if not least <= start.breadth <= most or start.refine not in self.index.refine_factors or start.k != self.k:
            return False
        breadths = dict.fromkeys(min(round(start.breadth * factor), most) for factor in NEAR)
        return any(self.reaches(self.measure(breadth, start.refine)) for breadth in breadths)

    def find(self, refine: int) -> float:
        """Sweep the breadth at one refine factor. Return the queries a second at the target, or 0 if out of reach."""
        failed, breadth = 0, self.index.least_breadth(self.k)
        previous: Measurement | None = None
        while True:
            measure = self.measure(breadth, refine)
            if self.reaches(measure):
                break
            saturated = previous is not None and breadth >= 16 and measure.recall - previous.recall < SATURATED
            if breadth == self.index.max_breadth or (saturated and measure.recall > 0.5):
                return 0.0
            failed, previous = breadth, measure
            breadth = min(2 * breadth, self.index.max_breadth)
        failed = max(failed, self.index.least_breadth(self.k) - 1)
        while breadth - failed > 1 and breadth > PRECISION * failed:
            middle = (failed + breadth) // 2
            if self.reaches(self.measure(middle, refine)):
                breadth = middle
            else:
                failed = middle
        return self.measured[breadth, refine].queries_per_second

    def measure(self, breadth: int, refine: int) -> Measurement:
        if (breadth, refine) not in self.measured:
            self.index.effort = Effort(breadth, refine, self.k)
            start = time.perf_counter()
            scores, _ = self.index.search(self.queries, self.k)
            seconds = time.perf_counter() - start
            recalls = (scores >= self.threshold[:, None]).mean(axis=1)
            self.errors[breadth, refine] = float(recalls.std()) / len(recalls) ** 0.5
            self.measured[breadth, refine] = Measurement(
                breadth, refine, float(recalls.mean()), len(self.queries) / max(seconds, 1e-9)
            )
        return self.measured[breadth, refine]

    def reaches(self, measure: Measurement) -> bool:
        """Return true if the recall exceeds the target by a standard error, or is 1."""
        margin = self.errors[measure.breadth, measure.refine]
        return measure.recall == 1 or measure.recall - margin >= self.recall_target


def _speed(index: Tunable, queries: Float32Array, k: int) -> float:
    start = time.perf_counter()
    index.search(queries, k)
    return len(queries) / max(time.perf_counter() - start, 1e-9)
