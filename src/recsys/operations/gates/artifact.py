"""Gates on the release itself: its index, its speed, its size."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from recsys.data.dataset import Requests
from recsys.operations.gates.evidence import Evidence, K, Side
from recsys.operations.gates.verdict import Outcome, at_least, at_most, untested
from recsys.publishing.recommenders import ReleaseRecommender, RunRecommender
from recsys.release.runtime.user_tower import pad


@dataclass(frozen=True)
class SameAsTrained:
    """The release finds what the trained towers find by exact search.

    One look from end to end: export, index, order of the items and vocabularies are each verified when a release is
    made, and any of them can still be wrong together. The manifest's own figure is not believed.

    Attributes:
        least: share of the exact first k that the release must show.
        most_requests: that are asked.
    """

    least: float
    most_requests: int

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome."""
        run, retriever = evidence.run, evidence.candidate.retriever
        if retriever.manifest.chosen_metrics is not None:
            run = dataclasses.replace(run, corpus=np.sort(np.asarray(retriever.items["item_idx"])))
        requests = Requests(*(column[: self.most_requests] for column in run.dataset.requests("test")))
        # Of a small corpus most of it would be found by anybody.
        k = min(K, max(1, len(run.corpus) // 10))
        _, exact = RunRecommender(run).rank(requests, k, run.config.exclude_seen, {})
        _, rows = ReleaseRecommender(retriever, run.dataset).rank(requests, k, run.config.exclude_seen, {})
        item_idx = np.concatenate([[0], np.asarray(retriever.items["item_idx"])])
        found = item_idx[rows + 1]
        wanted = exact + 1
        hits = ((wanted[:, :, None] == found[:, None, :]) & (wanted[:, :, None] > 0)).any(2).sum()
        share = float(hits / max(1, (wanted > 0).sum()))
        told = f"of the exact first {k} of the trained towers, {len(requests.user_idx)} users"
        yield at_least(f"index recall@{k}", share, self.least, told)


@dataclass(frozen=True)
class Reproduces:
    """The release reaches what training measured at its end.

    What is packed and what was measured can be two models: a checkpoint that was replaced, a configuration that was
    edited, a vocabulary that moved. Where a policy chose the items of the index, what was packed must reach the run's
    figures over all items, and the release those over the chosen ones.

    Attributes:
        metrics: of all users.
        tolerance: share by which they may differ: an approximate index finds a little less.
    """

    metrics: Sequence[str]
    tolerance: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome for each metric."""
        same = evidence.run.dataset.meta.fingerprint == evidence.asked.dataset.meta.fingerprint
        if not same or len(evidence.asked.requests.user_idx) < len(evidence.run.dataset.requests("test").user_idx):
            yield untested("as measured", "other users are asked for than those of the run's own test part")
            return
        manifest = evidence.candidate.retriever.manifest
        chosen = manifest.chosen_metrics
        for name in self.metrics:
            found, measured = evidence.candidate.metrics[name], evidence.run.metrics.get(f"test/{name}")
            if chosen is not None:
                yield self._apart(f"{name} of the chosen items", found, chosen.get(name))
                found = manifest.corpus.get("test", {}).get("all", {}).get(name, np.nan)
            yield self._apart(name, found, measured)

    def _apart(self, check: str, found: float, measured: float | None) -> Outcome:
        if measured is None:
            return untested(check, "there is no such figure")
        return at_most(check, abs(found - measured), self.tolerance * measured, f"difference to {measured:.4f}")


@dataclass(frozen=True)
class TowerLatency:
    """The exported user tower is not much slower than the served one.

    It runs once for each request, in front of everything else. Both are timed in turns on the same users, one at a
    time on one thread, and compared by their medians, so that a busy machine slows both.

    Attributes:
        slower: times the served median, at most.
        slack_ms: what may be added in any case: below it nobody notices.
        rounds: requests that are timed.
    """

    slower: float
    slack_ms: float
    rounds: int

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome."""
        sides = evidence.candidate, evidence.served
        inputs = [_single_requests(side, self.rounds) for side in sides]
        spent: list[list[float]] = [[], []]
        for number in range(-min(10, self.rounds), self.rounds):
            for which, side in enumerate(sides):
                given = inputs[which][number % len(inputs[which])]
                begin = time.perf_counter()
                side.retriever.tower.run(given)
                if number >= 0:
                    spent[which].append(1000 * (time.perf_counter() - begin))
        found, served = (float(np.median(times)) for times in spent)
        threshold = max(self.slower * served, served + self.slack_ms)
        yield at_most("median ms", found, threshold, f"one user on one thread; served {served:.3f} ms")


def _single_requests(side: Side, most: int) -> list[dict[str, np.ndarray]]:
    requests = side.asked.requests
    chosen = np.linspace(0, len(requests.user_idx) - 1, min(most, len(requests.user_idx), 100)).astype(np.int64)
    tower = side.retriever.tower
    return [
        pad(side.recommender.histories(Requests(*(column[[row]] for column in requests))), tower.inputs)
        for row in chosen
    ]


@dataclass(frozen=True)
class Size:
    """The release is about as large as the served one, and holds about as many items.

    Hosts hold several releases at once; and a corpus that shrinks or grows at a stroke is an accident of preparation
    more often than a decision.

    Attributes:
        growth: times the served bytes, at most.
        fewest_items: share of the served number of items, at least.
        most_items: times the served number of items, at most.
        kept_items: share of the served items that are still there.
    """

    growth: float
    fewest_items: float
    most_items: float
    kept_items: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Outcomes for bytes and items."""
        ours, theirs = (side.retriever.manifest for side in (evidence.candidate, evidence.served))
        found, served = (sum(entry.bytes for entry in m.files.values()) / 2**20 for m in (ours, theirs))
        yield at_most("MiB", found, self.growth * served, f"{self.growth:g} times the served {served:.1f}")
        num_items, told = ours.num_items, f"served {theirs.num_items:,}"
        yield at_least("fewest items", num_items, self.fewest_items * theirs.num_items, told)
        yield at_most("most items", num_items, self.most_items * theirs.num_items, told)
        served_ids = evidence.served.retriever.items["item_id"].combine_chunks()
        held = evidence.candidate.retriever.items["item_id"].combine_chunks()
        if served_ids.type != held.type:
            yield Outcome("kept items", 0.0, self.kept_items, "fail", f"ids are {held.type}, served {served_ids.type}")
            return
        kept = 1 - pc.index_in(served_ids, value_set=held).null_count / len(served_ids)
        yield at_least("kept items", kept, self.kept_items, "share of the served items that are still there")


@dataclass(frozen=True)
class Fresh:
    """Learned from data that are newer than those of the served release, or the same.

    A run that was left over, or trained on a folder that nobody appends to any more, passes every comparison with the
    model that it is a copy of.

    Attributes:
        behind_days: by which the newest events that both are measured on may be newer than the candidate's data.
        past: share of the time that the served release's data span, at least.
    """

    behind_days: float
    past: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Outcomes for the age of the data, beside the served release and what there is, and for the weights."""
        ours, theirs = (side.retriever.manifest for side in (evidence.candidate, evidence.served))
        until, served = ours.data.get("until"), theirs.data.get("until")
        if until is None or served is None:
            yield untested("newest event", "a release does not say of which time its data are")
        else:
            told = "days after the newest event of the served release's data"
            yield at_least("newest event", (until - served) / 86_400, 0.0, told)
            span, usual = (
                (data["until"] - data.get("begin", data["until"])) / 86_400 for data in (ours.data, theirs.data)
            )
            told = f"days from the oldest event to the newest; {usual:.1f} of the served release's data"
            yield at_least("past", span, self.past * usual, told)
        if until is not None and evidence.window.has_times:
            behind = (int(evidence.window.time.max()) - until) / 86_400
            yield at_most("days behind", behind, self.behind_days, "from its newest event to the newest there is")
        same = all(
            ours.files[name].sha256 == theirs.files[name].sha256
            for name in ("user_tower.safetensors", "item_tower.safetensors")
        )
        if ours.dataset_fingerprint != theirs.dataset_fingerprint:
            told = "the weights are those of the served release, though the data are others"
            yield (
                Outcome("new weights", float(not same), 1.0, "fail", told)
                if same
                else at_least("new weights", 1.0, 1.0, "other weights than the served release's")
            )
