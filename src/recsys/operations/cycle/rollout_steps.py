"""The steps of a cycle that change what is served: roll out, watch, roll back. Each may be done again after a kill."""

from __future__ import annotations

from filelock import FileLock, Timeout
from rich.console import Console

from recsys.core.errors import UserError
from recsys.operations.cycle.plan import PRODUCTION, Plan
from recsys.operations.cycle.state import Cycle
from recsys.operations.cycle.watch import Watch, WatchedServer, watch_servers
from recsys.operations.rollout.admin import Admin, RefusedError
from recsys.operations.rollout.runner import Paused, Runner, begin
from recsys.operations.rollout.state import Goal, StateFile
from recsys.serving.gateway.remote_host import parse_address


def roll_out(plan: Plan, cycle: Cycle) -> str:
    """Have every host serve the release, one after the other, and move the alias; without hosts the alias alone."""
    assert cycle.version is not None
    if (told := plan.judge_again(cycle)) is not None:
        return told
    if not plan.config.hosts or cycle.served is None:
        plan.store.set_alias(PRODUCTION, cycle.version, f"retraining cycle {cycle.number}")
        cycle.step = "watch"
        first = "; nothing was served, so hosts are to be started with it" if plan.config.hosts else ""
        return f"{PRODUCTION} is {cycle.version}{first}"
    try:
        _run(plan, cycle, "all")
    except UserError as error:
        # A host that does not answer may do so when the cycle is started again; one that will not serve it, will not.
        if not isinstance(error.__cause__, RefusedError) or error.__cause__.status in (401, 403, 404):
            raise
        cycle.step, cycle.why = "roll_back", str(error.__cause__)
        return f"refused: {cycle.why}"
    cycle.step = "watch"
    return f"{len(plan.config.hosts)} hosts serve {cycle.version}"


def watch(plan: Plan, cycle: Cycle) -> str:
    """Look at the servers for a while: do they serve the release, are they ready, do they fail requests?"""
    config = plan.config
    if _is_moved(plan, cycle, cycle.version):
        return cycle.why
    hosts = [WatchedServer(parse_address(place), cycle.version) for place in config.hosts]
    gateways = [WatchedServer(parse_address(place), None) for place in config.gateways]
    followers = [WatchedServer(parse_address(place), cycle.version) for place in config.followers]
    if cycle.served is None or not (hosts or gateways or followers):
        first = "it is the first release"
        told = f"nobody is watched: {first if cycle.served is None else 'hosts=, gateways= and followers= are empty'}"
        cycle.end("kept", told)
        return told
    settings = Watch(**{str(name): value for name, value in config.watch.items()})
    problem = watch_servers([*hosts, *gateways], followers, settings)
    if problem is None:
        cycle.end("kept", f"watched for {settings.seconds:g} s")
        return f"nothing found in {settings.seconds:g} s"
    cycle.step, cycle.why = "roll_back", problem
    return problem


def roll_back(plan: Plan, cycle: Cycle) -> str:
    """Serve again what was served before."""
    assert cycle.served is not None, "the first release is not watched"
    if _is_moved(plan, cycle, cycle.version, cycle.served):
        return cycle.why
    if plan.config.hosts:
        _run(plan, cycle, "back")
    plan.store.set_alias(PRODUCTION, cycle.served, f"rollback in retraining cycle {cycle.number}: {cycle.why}")
    cycle.end("rolled_back", cycle.why)
    return f"{cycle.served} is served again"


def _is_moved(plan: Plan, cycle: Cycle, *expected: str | None) -> bool:
    """Whether somebody else decided meanwhile what is served; that is theirs to decide, and ends the cycle."""
    now = plan.served()
    if now not in expected:
        cycle.end("rolled_back", f"{PRODUCTION} was moved to {now} by somebody else, and is left alone")
    return now not in expected


def _run(plan: Plan, cycle: Cycle, goal: Goal) -> None:
    """Bring the rollout of the cycle to a goal, from wherever it is.

    Raises:
        UserError: a server fails a step, or the rollout is paused or run by somebody else.
    """
    config = plan.config
    assert cycle.version is not None
    hosts, gateways = (
        [Admin(parse_address(place), config.admin_token) for place in places]
        for places in (config.hosts, config.gateways)
    )
    state = StateFile(plan.cycle_folder(cycle) / "rollout.json")
    try:
        with FileLock(state.lock, timeout=0):
            rollout = state.read()
            if rollout is None:
                rollout = begin(
                    cycle.version, "all", 1.0, hosts, gateways, config.model, str(plan.store.root.absolute())
                )
            rollout.goal = goal
            # Servers may be others than when it began: what is done they know themselves.
            rollout.hosts, rollout.gateways = [host.name for host in hosts], [gateway.name for gateway in gateways]
            Runner(state, config.admin_token, Console()).run(rollout)
    except Timeout as error:
        raise UserError(f"{state.path}: its rollout is being run by another process") from error
    except Paused as error:
        raise UserError(
            f"{state.path}: the rollout is paused; `recsys rollout resume state={state.path}` goes on, and "
            "then this command"
        ) from error
