"""Gates on the release itself: its index, its metrics, its latency, its size and its age."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from recsys.data.dataset import Requests
from recsys.operations.gates.event_window import DAY
from recsys.operations.gates.evidence import Evidence, JudgedRelease, K
from recsys.operations.gates.verdict import Outcome, at_least, at_most, failed, untested
from recsys.publishing.recommenders import ReleaseRecommender, RunRecommender
from recsys.release.runtime.user_tower import pad


@dataclass(frozen=True, kw_only=True)
class SameAsTrained:
    """Stop a candidate whose release does not find what the trained towers find by exact search.

    Export, index, order of the items and vocabularies are each verified when a release is made. This gate checks them
    together from end to end, and does not rely on the recall that the manifest gives.
    """

    min_recall: float
    max_requests: int

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return one outcome."""
        run, retriever = evidence.run, evidence.candidate.retriever
        if retriever.manifest.chosen_metrics is not None:
            run = dataclasses.replace(run, corpus=np.sort(np.asarray(retriever.items["item_idx"])))
        requests = Requests(*(column[: self.max_requests] for column in run.dataset.requests("test")))
        # With a larger k, any index would find most of a small corpus.
        k = min(K, max(1, len(run.corpus) // 10))
        _, exact = RunRecommender(run).rank(requests, k, exclude_seen=run.config.exclude_seen, request_features={})
        _, rows = ReleaseRecommender(retriever, run.dataset).rank(
            requests, k, exclude_seen=run.config.exclude_seen, request_features={}
        )
        item_idx = np.concatenate([[0], np.asarray(retriever.items["item_idx"])])
        found = item_idx[rows + 1]
        wanted = exact + 1
        hits = ((wanted[:, :, None] == found[:, None, :]) & (wanted[:, :, None] > 0)).any(2).sum()
        recall = float(hits / max(1, (wanted > 0).sum()))
        reason = f"of the exact top {k} of the trained towers, {len(requests.user_idx)} users"
        fits = {"min_recall": recall}
        yield at_least(f"index recall@{k}", recall, threshold=self.min_recall, reason=reason, fits=fits)


@dataclass(frozen=True, kw_only=True)
class Reproduces:
    """Stop a candidate whose release does not reach the metrics that training measured at its end.

    The packed model may differ from the measured one if a checkpoint was replaced, a configuration was edited or a
    vocabulary changed. If a corpus policy chose the items of the index, the model must reach the run's metrics over all
    items, and the release must reach those over the chosen items.
    """

    metrics: Sequence[str]
    max_relative_difference: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return one outcome for each metric."""
        same = evidence.run.dataset.meta.fingerprint == evidence.judged.dataset.meta.fingerprint
        if not same or len(evidence.judged.requests.user_idx) < len(evidence.run.dataset.requests("test").user_idx):
            yield untested("as measured", "the requests differ from those of the run's own test part")
            return
        manifest = evidence.candidate.retriever.manifest
        chosen = manifest.chosen_metrics
        for name in self.metrics:
            found, measured = evidence.candidate.metrics[name], evidence.run.metrics.get(f"test/{name}")
            if chosen is not None:
                yield self._compare(f"{name} of the chosen items", found, measured=chosen.get(name))
                found = manifest.corpus.get("test", {}).get("all", {}).get(name, np.nan)
            yield self._compare(name, found, measured=measured)

    def _compare(self, check: str, found: float, *, measured: float | None) -> Outcome:
        if measured is None:
            return untested(check, "the run has no such metric")
        difference, bound = abs(found - measured), self.max_relative_difference * measured
        fits = {"max_relative_difference": difference / (measured or np.nan)}
        return at_most(check, difference, threshold=bound, reason=f"difference to {measured:.4f}", fits=fits)


@dataclass(frozen=True, kw_only=True)
class TowerLatency:
    """Stop a candidate whose exported user tower is much slower than that of the served release.

    The user tower runs once for each request, before anything else. Both towers are timed alternately on the same
    users, one user at a time on one thread, and compared by their medians, so that a busy machine slows both alike.
    """

    max_ratio: float
    slack_ms: float
    num_requests: int

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return one outcome."""
        sides = evidence.candidate, evidence.served
        inputs = [_single_requests(side, self.num_requests) for side in sides]
        spent: list[list[float]] = [[], []]
        for number in range(-min(10, self.num_requests), self.num_requests):
            for which, side in enumerate(sides):
                request = inputs[which][number % len(inputs[which])]
                begin = time.perf_counter()
                side.retriever.tower.run(request)
                if number >= 0:
                    spent[which].append(1000 * (time.perf_counter() - begin))
        found, served = (float(np.median(times)) for times in spent)
        bound = max(self.max_ratio * served, served + self.slack_ms)
        reason, fits = f"one user on one thread; served {served:.3f} ms", {"max_ratio": found / served}
        yield at_most("median ms", found, threshold=bound, reason=reason, fits=fits)


def _single_requests(side: JudgedRelease, most: int) -> list[dict[str, np.ndarray]]:
    requests = side.judged.requests
    chosen = np.linspace(0, len(requests.user_idx) - 1, min(most, len(requests.user_idx), 100)).astype(np.int64)
    tower = side.retriever.tower
    return [
        pad(side.recommender.histories(Requests(*(column[[row]] for column in requests))), tower.inputs)
        for row in chosen
    ]


@dataclass(frozen=True, kw_only=True)
class Size:
    """Stop a candidate whose release is much larger than the served one, or has a much smaller or larger corpus.

    Hosts hold several releases in memory at once. A sudden change in the size of the corpus is usually a fault of
    preparation.
    """

    max_bytes_ratio: float
    min_items_ratio: float
    max_items_ratio: float
    min_kept_items: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return one outcome for bytes and three for items."""
        ours, theirs = (side.retriever.manifest for side in (evidence.candidate, evidence.served))
        found, served = (sum(entry.bytes for entry in m.files.values()) / 2**20 for m in (ours, theirs))
        reason = f"{self.max_bytes_ratio:g} times the served {served:.1f}"
        fits = {"max_bytes_ratio": found / served}
        yield at_most("MiB", found, threshold=self.max_bytes_ratio * served, reason=reason, fits=fits)
        held, usual, reason = ours.num_items, theirs.num_items, f"served {theirs.num_items:,}"
        fits = {"min_items_ratio": held / usual}
        yield at_least("fewest items", held, threshold=self.min_items_ratio * usual, reason=reason, fits=fits)
        fits = {"max_items_ratio": held / usual}
        yield at_most("most items", held, threshold=self.max_items_ratio * usual, reason=reason, fits=fits)
        served_ids = evidence.served.retriever.items["item_id"].combine_chunks()
        held_ids = evidence.candidate.retriever.items["item_id"].combine_chunks()
        if served_ids.type != held_ids.type:
            reason = f"ids are {held_ids.type}, served {served_ids.type}"
            yield failed("kept items", 0.0, threshold=self.min_kept_items, reason=reason)
            return
        kept = 1 - pc.index_in(served_ids, value_set=held_ids).null_count / len(served_ids)
        reason, fits = "share of the served items that the candidate has", {"min_kept_items": kept}
        yield at_least("kept items", kept, threshold=self.min_kept_items, reason=reason, fits=fits)


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """Stop a candidate whose data is older than that of the served release, or reaches back less far.

    An old run, or a run on a folder that no longer gets new events, passes every comparison with the served model,
    because it is a copy of it.
    """

    max_days_behind: float
    min_span_ratio: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return outcomes for the newest event, the span of the data, and the weights."""
        ours, theirs = (side.retriever.manifest for side in (evidence.candidate, evidence.served))
        until, served = ours.data.get("until"), theirs.data.get("until")
        if until is None or served is None:
            yield untested("newest event", "a release has no times of its data")
        else:
            reason = "days after the newest event of the served release's data"
            yield at_least("newest event", (until - served) / DAY, threshold=0.0, reason=reason)
            span, usual = (
                (data["until"] - data.get("begin", data["until"])) / DAY for data in (ours.data, theirs.data)
            )
            reason = f"days from the oldest event to the newest; {usual:.1f} of the served release's data"
            fits = {"min_span_ratio": span / (usual or np.nan)}
            yield at_least("past", span, threshold=self.min_span_ratio * usual, reason=reason, fits=fits)
        if until is not None and evidence.window.has_times:
            behind = (int(evidence.window.time.max()) - until) / DAY
            reason, fits = "from its newest event to the newest of all", {"max_days_behind": behind}
            yield at_most("days behind", behind, threshold=self.max_days_behind, reason=reason, fits=fits)
        if ours.dataset_fingerprint == theirs.dataset_fingerprint:
            return
        towers = ("user_tower.safetensors", "item_tower.safetensors")
        if all(ours.files[name].sha256 == theirs.files[name].sha256 for name in towers):
            reason = "the weights equal those of the served release, but the data differs"
            yield failed("new weights", 0.0, threshold=1.0, reason=reason)
        else:
            reason = "the weights differ from those of the served release"
            yield at_least("new weights", 1.0, threshold=1.0, reason=reason)
