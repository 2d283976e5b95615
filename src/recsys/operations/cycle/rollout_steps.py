"""Steps of a cycle that change the served release: roll out, watch, roll back. Each can be repeated after a kill."""

from __future__ import annotations

from collections.abc import Sequence

from filelock import FileLock, Timeout
from rich.console import Console

from recsys.core.errors import UserError
from recsys.operations.cycle.plan import PRODUCTION, CyclePlan
from recsys.operations.cycle.state import Cycle
from recsys.operations.cycle.watch import WatchedServer, WatchSettings, watch_servers
from recsys.operations.rollout.admin import AdminClient, RefusedError
from recsys.operations.rollout.runner import Paused, RolloutRunner, begin
from recsys.operations.rollout.state import Goal, RolloutStateFile
from recsys.serving.gateway.remote_host import parse_address


def roll_out(plan: CyclePlan, cycle: Cycle) -> str:
    """Make the hosts serve the release, one after the other, and move the alias; without hosts only move the alias."""
    assert cycle.version is not None
    if (message := plan.judge_again(cycle)) is not None:
        return message
    if not plan.config.hosts or cycle.served is None:
        plan.store.set_alias(PRODUCTION, cycle.version, why=plan.reason(cycle))
        cycle.step = "watch"
        first = "; nothing was served before, so start the hosts with it" if plan.config.hosts else ""
        return f"{PRODUCTION} is {cycle.version}{first}"
    try:
        _run(plan, cycle, goal="all")
    except UserError as error:
        # A host that does not answer or refuses the token may answer when the cycle is started again. One that refuses
        # the release will refuse it again.
        if not isinstance(error.__cause__, RefusedError) or error.__cause__.status in (401, 403, 404):
            raise
        cycle.step, cycle.why = "roll_back", str(error.__cause__)
        return f"refused: {cycle.why}"
    cycle.step = "watch"
    return f"{len(plan.config.hosts)} hosts serve {cycle.version}"


def watch(plan: CyclePlan, cycle: Cycle) -> str:
    """Check for a while that the servers are ready, serve the release and do not fail requests."""
    config = plan.config
    if _is_moved(plan, cycle, expected=[cycle.version]):
        return cycle.why
    hosts = [WatchedServer(parse_address(place), cycle.version) for place in config.hosts]
    gateways = [WatchedServer(parse_address(place), None) for place in config.gateways]
    followers = [WatchedServer(parse_address(place), cycle.version) for place in config.followers]
    if cycle.served is None or not (hosts or gateways or followers):
        why = "this is the first release" if cycle.served is None else "hosts=, gateways= and followers= are empty"
        cycle.end("kept", f"no server is watched: {why}")
        return cycle.why
    settings = WatchSettings(**{str(name): value for name, value in config.watch.items()})
    problem = watch_servers([*hosts, *gateways], followers, settings=settings)
    if problem is None:
        cycle.end("kept", f"watched for {settings.seconds:g} s")
        return f"no problem in {settings.seconds:g} s"
    cycle.step, cycle.why = "roll_back", problem
    return problem


def roll_back(plan: CyclePlan, cycle: Cycle) -> str:
    """Serve the release again that was served before."""
    assert cycle.served is not None, "the first release is not watched"
    if _is_moved(plan, cycle, expected=[cycle.version, cycle.served]):
        return cycle.why
    if plan.config.hosts:
        _run(plan, cycle, goal="back")
    plan.store.set_alias(PRODUCTION, cycle.served, why=f"rollback in retraining cycle {cycle.number}: {cycle.why}")
    cycle.end("rolled_back", cycle.why)
    return f"{cycle.served} is served again"


def _is_moved(plan: CyclePlan, cycle: Cycle, *, expected: Sequence[str | None]) -> bool:
    """End the cycle and return True if somebody else moved the alias meanwhile."""
    now = plan.served()
    if now not in expected:
        cycle.end("rolled_back", f"{PRODUCTION} was moved to {now} by somebody else, and stays there")
    return now not in expected


def _run(plan: CyclePlan, cycle: Cycle, *, goal: Goal) -> None:
    """Bring the rollout of the cycle from its present state to a goal.

    Raises:
        UserError: If a server fails a step, or the rollout is paused, or another process runs it.
    """
    config = plan.config
    assert cycle.version is not None
    hosts, gateways = (
        [AdminClient(parse_address(place), config.admin_token) for place in places]
        for places in (config.hosts, config.gateways)
    )
    state = RolloutStateFile(plan.cycle_folder(cycle) / "rollout.json")
    try:
        with FileLock(state.lock, timeout=0):
            rollout = state.read()
            if rollout is None:
                store = str(plan.store.root.absolute())
                rollout = begin(cycle.version, "all", hosts=hosts, gateways=gateways, model=config.model, store=store)
            rollout.goal = goal
            # The configuration may name other servers than before. Each server reports its own state.
            rollout.hosts, rollout.gateways = [host.name for host in hosts], [gateway.name for gateway in gateways]
            RolloutRunner(state, Console(), token=config.admin_token).run(rollout)
    except Timeout as error:
        raise UserError(f"{state.path}: another process is running its rollout") from error
    except Paused as error:
        raise UserError(
            f"{state.path}: the rollout is paused; continue it with `recsys rollout resume "
            f"state={state.path}`, and then start this command again"
        ) from error
