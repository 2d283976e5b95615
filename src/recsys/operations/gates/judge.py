"""Asks every gate about a candidate, and writes what they say."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from omegaconf import DictConfig

from recsys.core.errors import UserError
from recsys.data.dataset import PreparedDataset
from recsys.experiments.trained_run import TrainedRun
from recsys.operations.gates.event_window import EventWindow
from recsys.operations.gates.evidence import Evidence, NothingServedError, Side, choose_requests
from recsys.operations.gates.staging import open_release, stage
from recsys.operations.gates.verdict import Outcome, Verdict, untested
from recsys.release.runtime.retriever import Retriever
from recsys.serving.observability.samples import Sample

log = logging.getLogger("recsys")


class Gate(Protocol):
    """One reason to stop a candidate."""

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """What was looked at, and whether it may go out."""
        ...


def judge(
    gates: Mapping[str, Gate],
    run: TrainedRun,
    candidate: Retriever,
    served: Retriever | None,
    dataset: PreparedDataset,
    window: EventWindow,
    max_users: int | None = None,
    now: int | None = None,
    samples: Sequence[Sample] = (),
) -> Verdict:
    """The verdict of all gates; a gate that cannot look because of what the candidate is fails.

    Args:
        gates: by name, in order.
        run: of the candidate.
        candidate: its release.
        served: what it would replace; None: nothing is served yet, and gates that compare with it say so.
        dataset: whose test part both are measured on.
        window: new events of it.
        max_users: that are asked for; None for all.
        now: in seconds; None for the clock's.
        samples: requests that users made, for gates that ask both releases the same.
    """
    asked = choose_requests(dataset, bool(run.config.exclude_seen), max_users)
    if not len(asked.requests.user_idx):
        raise UserError(f"{dataset.path}: no user has events in the test part, so there is nothing to judge by")
    sides = {"candidate": Side(candidate, asked)} | ({} if served is None else {"served": Side(served, asked)})
    now = int(time.time()) if now is None else now
    evidence = Evidence(run, asked, sides["candidate"], sides.get("served"), window, now, samples)
    outcomes = [outcome.of(name) for name, gate in gates.items() for outcome in _ask(gate, evidence)]
    verdict = verdict_of(run.path, candidate.version, served, dataset, outcomes)
    return replace(verdict, measured={name: _measured(side) for name, side in sides.items()})


def _measured(side: Side) -> dict[str, float]:
    try:
        return {name: value for name, value in side.metrics.items() if math.isfinite(value)}
    except UserError:
        # Told by the gate that met it.
        return {}


def _ask(gate: Gate, evidence: Evidence) -> list[Outcome]:
    begin = time.monotonic()
    outcomes: list[Outcome] = []
    try:
        for outcome in gate.judge(evidence):
            outcomes.append(outcome)
    except NothingServedError:
        outcomes.append(untested("beside the served release", "skipped: nothing is served yet"))
    except UserError as error:
        # Such as embeddings that an index refuses: told by the gate that met it first, and by all that depend on it.
        outcomes = [Outcome("can be looked at", None, None, "fail", " ".join(str(error).split()))]
    log.info("%s: %d outcomes in %.1f s", type(gate).__name__, len(outcomes), time.monotonic() - begin)
    return outcomes


def refused(run: TrainedRun, served: Retriever | None, dataset: PreparedDataset, error: Exception) -> Verdict:
    """The verdict on a run that no release can be made of."""
    reason = " ".join(str(error).split())
    outcome = Outcome("a release can be made", 0.0, 1.0, "fail", reason, gate="packed")
    return verdict_of(run.path, None, served, dataset, [outcome])


def verdict_of(
    run: Path, candidate: str | None, served: Retriever | None, dataset: PreparedDataset, outcomes: list[Outcome]
) -> Verdict:
    """The verdict of outcomes, dated now."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    against = None if served is None else served.version
    return Verdict(str(run), candidate, against, dataset.meta.fingerprint, created, tuple(outcomes))


def seconds(when: str | int | None, key: str) -> int | None:
    """Seconds since 1970 of a date, a time (UTC where it has no zone) or a number of seconds.

    Raises:
        UserError: it is none of these.
    """
    if when is None or isinstance(when, int):
        return when
    try:
        moment = datetime.fromisoformat(when)
    except ValueError as error:
        raise UserError(f"{key}: found '{when}', expected a date, a time or seconds since 1970") from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def new_events(dataset: PreparedDataset, served: Retriever | None, begin: int | None, end: int | None) -> EventWindow:
    """What is new since the served release; the test part where it is of the same data, or does not say."""
    until = None if served is None else served.manifest.data.get("until")
    if begin is None and until is not None and dataset.meta.time_resolution.has_clock and until < dataset.time.max():
        begin = until + 1
    return EventWindow(dataset, begin, end)


def candidate_of(
    run: TrainedRun,
    release: str | None,
    store: str,
    index: DictConfig,
    model: str,
    recall_target: float,
    corpus: DictConfig,
) -> Retriever:
    """The release of the run: the published one that is named, or one that is packed beside the run.

    Raises:
        UserError, RuntimeError: it cannot be made, or is of another run.
    """
    if release is None:
        return stage(run, index, model, recall_target, corpus)
    retriever = open_release(store, release)
    if Path(retriever.manifest.run).resolve() != run.path.resolve():
        raise UserError(f"release={release}: made of run {retriever.manifest.run}, but run={run.path} is to be judged")
    return retriever
