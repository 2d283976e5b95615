"""Judging of a running canary: opens the records of the gateways, applies the test, and rolls a worse canary back.

Imports no torch.
"""

from __future__ import annotations

import time
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from recsys.core.errors import UserError
from recsys.operations.rollout.canary_verdict import CanaryJudge, CanarySettings, CanaryVerdict, settings_of
from recsys.operations.rollout.engagement import EngagementReader
from recsys.operations.rollout.runner import Paused, RolloutRunner
from recsys.operations.rollout.state import Rollout
from recsys.release.manifest import Manifest
from recsys.release.store import ReleaseStore
from recsys.serving.events import StoreError
from recsys.serving.impressions import impressions_file, open_impressions

# Name of the report beside the state of the rollout.
VERDICT = "canary-verdict.json"


def judge_canary(
    rollout: Rollout, runner: RolloutRunner, *, config: DictConfig, console: Console
) -> CanaryVerdict | None:
    """Judge a canary that some users get, and change the rollout as the verdict says.

    Returns:
        The verdict; None if no impressions are recorded, if `judge.enabled=false`, or if nothing else is served.

    Raises:
        Paused: If the rollout was paused.
        UserError: If a setting is not valid, the event store cannot be read, or a server fails a step.
    """
    settings = settings_of(config.judge)
    if not settings.enabled or rollout.previous == rollout.version:
        return None
    place = config.events or f"{rollout.store or 'releases'}/state/events.sqlite"
    file = impressions_file(place)
    if file is not None and not file.exists():
        console.print(
            f"{file}: no impressions, so the canary is not judged; events= names the event store of the gateways",
            soft_wrap=True,
        )
        return None
    if not rollout.since:
        rollout.since = int(time.time())
        runner.state.write(rollout)
    try:
        store = open_impressions(place)
        try:
            reader = EngagementReader(store, (rollout.version, rollout.previous), rollout.since, settings.action)
            verdict = _judge(reader, settings, rollout=rollout, runner=runner, console=console)
        finally:
            store.close()
    except StoreError as error:
        raise UserError(f"{error}; `resume` continues the canary") from error
    console.print(verdict.text(), soft_wrap=True, highlight=False)
    if verdict.decision == "roll_back" or (verdict.decision == "promote" and settings.finish):
        rollout.goal = "back" if verdict.decision == "roll_back" else "all"
        runner.run(rollout)
    return verdict


def _judge(
    reader: EngagementReader,
    settings: CanarySettings,
    *,
    rollout: Rollout,
    runner: RolloutRunner,
    console: Console,
) -> CanaryVerdict:
    path = runner.state.path.with_name(VERDICT)
    message = f"judging {rollout.version} by the outcomes of its users; {path} has the present state"
    console.print(message, soft_wrap=True)

    def check() -> None:
        if runner.state.is_paused:
            raise Paused

    judge = CanaryJudge(reader, settings, num_items=lambda version: _num_items(rollout.store, version))
    return judge.judge(report=lambda verdict: verdict.write(path), check=check)


def _num_items(store: str | None, version: str) -> int | None:
    try:
        return None if store is None else Manifest.load(Path(ReleaseStore(store).root, version)).num_items
    except (UserError, OSError):
        return None
