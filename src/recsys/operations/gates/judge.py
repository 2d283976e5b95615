"""Lets every gate judge a candidate. `recsys gates` and a retraining cycle both use `judge_run`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import numpy as np
from omegaconf import DictConfig, OmegaConf

from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.data.dataset import PreparedDataset
from recsys.experiments.assembly import instantiate
from recsys.experiments.trained_run import TrainedRun
from recsys.experiments.wandb_mirror import log_verdict
from recsys.operations.gates.event_window import DAY, EventWindow
from recsys.operations.gates.evidence import Evidence, JudgedRelease, NothingServedError
from recsys.operations.gates.judged_requests import choose_requests
from recsys.operations.gates.staging import PackingError, PackingSettings, open_release, stage
from recsys.operations.gates.verdict import Outcome, Verdict, failed, untested
from recsys.operations.mirroring import mirror
from recsys.publishing.index_times import parse_moment
from recsys.release.runtime.retriever import Retriever
from recsys.serving.observability.samples import RequestSample, read_samples

log = logging.getLogger("recsys")
# Newest days whose volume a verdict holds.
_SHOWN_DAYS = 90


class Gate(Protocol):
    """One reason to stop a candidate. An outside package adds a gate by `+gates.NAME._target_=package.Class`.

    A gate with the attribute `is_data_gate = True` judges the new events, not the candidate. While no release is
    served, there is nothing to protect from them, and its failures are recorded as warnings.
    """

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return one outcome for each check.

        Raises:
            UserError: If the candidate cannot be measured. The gate then fails with that message. Any other exception
                is a fault of the gate: it ends the command, and nothing is published.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """Settings of judging a candidate. Times are in seconds; for values that are None see `conf/gates.yaml`."""

    gates: Mapping[str, Gate]
    packing: PackingSettings
    begin: int | None = None
    end: int | None = None
    max_users: int | None = None
    now: int | None = None
    samples: Sequence[RequestSample] = ()

    @classmethod
    def from_config(cls, config: DictConfig) -> JudgeSettings:
        """Return the settings in a configuration of `gates.yaml` or `retrain.yaml`.

        Raises:
            UserError: If a setting is wrong.
        """
        begin, end = (OmegaConf.select(config, f"window.{name}") for name in ("begin", "end"))
        return cls(
            gates={name: instantiate(node) for name, node in config.gates.items() if node is not None},
            packing=PackingSettings.from_config(config),
            begin=parse_moment(begin, "window.begin"),
            end=parse_moment(end, "window.end"),
            max_users=config.max_users,
            now=parse_moment(config.now, "now"),
            samples=read_samples(config.samples.folder, config.samples.newest),
        )


def judge_run(
    run: TrainedRun,
    served: Retriever | None,
    *,
    settings: JudgeSettings,
    dataset: PreparedDataset | None = None,
    candidate: Retriever | None = None,
    past: Float32Array | None = None,
) -> Verdict:
    """Return the verdict of all gates on a run.

    Args:
        run: finished run.
        served: release that the candidate would replace; None if nothing is served. Checks that compare the candidate
            with the served release are then untested.
        settings: gates and their settings.
        dataset: data set whose test part both are measured on; None for the run's own.
        candidate: release of the run; None to pack one beside the run. If that fails, the verdict is a failure of the
            gate `packed`.
        past: item embeddings of the candidate as of the time before the test part; see `JudgedRelease`.

    Raises:
        UserError: If no user has events in the test part.
    """
    dataset = run.dataset if dataset is None else dataset
    window = new_events(dataset, served, begin=settings.begin, end=settings.end)
    try:
        candidate = stage(run, settings.packing, served=served) if candidate is None else candidate
    except PackingError as error:
        outcome = failed("a release can be made", 0.0, threshold=1.0, reason=str(error)).of("packed")
        return _verdict(run, served, window=window, candidate=None, outcomes=[outcome], measured={})
    judged = choose_requests(dataset, bool(run.config.exclude_seen), most=settings.max_users)
    if not len(judged.requests.user_idx):
        raise UserError(f"{dataset.path}: no user has events in the test part, so there is nothing to judge by")
    sides = {"candidate": JudgedRelease(candidate, judged, past)} | (
        {} if served is None else {"served": JudgedRelease(served, judged)}
    )
    evidence = Evidence(
        run=run,
        judged=judged,
        candidate=sides["candidate"],
        served_side=sides.get("served"),
        window=window,
        now=int(time.time()) if settings.now is None else settings.now,
        samples=settings.samples,
    )
    outcomes = [outcome.of(name) for name, gate in settings.gates.items() for outcome in _outcomes(gate, evidence)]
    measured = {name: _measured(side) for name, side in sides.items()}
    return _verdict(run, served, window=window, candidate=candidate.version, outcomes=outcomes, measured=measured)


def record_verdict(run: TrainedRun, verdict: Verdict) -> Path:
    """Write `verdict.json` into the run folder, mirror it to W&B, and return its path."""
    path = verdict.save(run.path)
    content = {name: value for name, value in verdict.to_json().items() if name not in ("outcomes", "former", "days")}
    project, heads = run.config.logger.project, ["gate", "check", "value", "threshold", "status", "reason"]
    rows = [[getattr(outcome, head) for head in heads] for outcome in verdict.outcomes]
    mirror(lambda: log_verdict(project, run.path, values=content, columns=heads, rows=rows))
    return path


def published_release(run: TrainedRun, release: str, *, store: str) -> Retriever:
    """Return a release that was published from the run.

    Raises:
        UserError: If there is no such release, or it was made from another run.
    """
    retriever = open_release(store, release)
    if Path(retriever.manifest.run).resolve() != run.path.resolve():
        raise UserError(f"release={release}: made of run {retriever.manifest.run}, but run={run.path} is to be judged")
    return retriever


def new_events(
    dataset: PreparedDataset, served: Retriever | None, *, begin: int | None = None, end: int | None = None
) -> EventWindow:
    """Return the events since the newest one that the served release knows.

    The window is the test part if nothing is served, or if the served release has the same data or no times.
    """
    until = None if served is None else served.manifest.data.get("until")
    if begin is None and until is not None and dataset.meta.time_resolution.has_clock and until < dataset.time.max():
        begin = until + 1
    return EventWindow(dataset, begin, end=end)


def _outcomes(gate: Gate, evidence: Evidence) -> list[Outcome]:
    begin = time.monotonic()
    outcomes: list[Outcome] = []
    try:
        warns = evidence.served_side is None and getattr(gate, "is_data_gate", False)
        for outcome in gate.judge(evidence):
            outcomes.append(replace(outcome, status="warn") if warns and outcome.status == "fail" else outcome)
    except NothingServedError:
        outcomes.append(untested("beside the served release", "skipped: nothing is served yet"))
    except UserError as error:
        # An index may refuse the embeddings, for example. Every gate that needs them fails with the same message.
        reason = " ".join(str(error).split())
        outcomes = [failed("can be looked at", None, threshold=None, reason=reason)]
    log.info("%s: %d outcomes in %.1f s", type(gate).__name__, len(outcomes), time.monotonic() - begin)
    return outcomes


def _measured(side: JudgedRelease) -> dict[str, float]:
    try:
        return {name: value for name, value in side.metrics.items() if math.isfinite(value)}
    except UserError:
        # The gates that measure this side have failed with this message already.
        return {}


def _verdict(
    run: TrainedRun,
    served: Retriever | None,
    *,
    window: EventWindow,
    candidate: str | None,
    outcomes: Sequence[Outcome],
    measured: Mapping[str, Mapping[str, float]],
) -> Verdict:
    days, counts = (column[-_SHOWN_DAYS:].tolist() for column in window.days) if window.has_times else ([], [])
    return Verdict(
        run=str(run.path),
        candidate=candidate,
        against=None if served is None else served.version,
        dataset_fingerprint=window.dataset.meta.fingerprint,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        outcomes=tuple(outcomes),
        measured=measured,
        days={_date(day): count for day, count in zip(days, counts, strict=True)},
        new_from=_date(window.begin // DAY) if window.has_times else None,
    )


def _date(day: int) -> str:
    return str(np.datetime64(day, "D"))
