"""Actions of `recsys rollout`: start, canary, status, pause, resume, finish, rollback, unlock."""

from __future__ import annotations

import contextlib
import socket
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import DictConfig
from rich.console import Console

from recsys.core.errors import UserError, nearest
from recsys.core.io import PRIVATE_FILE, private_folder
from recsys.operations.rollout.admin import AdminClient
from recsys.operations.rollout.canary_verdict import CanaryVerdict, settings_of
from recsys.operations.rollout.judging import judge_canary
from recsys.operations.rollout.lock import RENEW_SECONDS, HostLocks
from recsys.operations.rollout.runner import Paused, RolloutRunner, begin, show_status
from recsys.operations.rollout.state import Goal, Rollout, RolloutStateFile
from recsys.serving.gateway.remote_host import Address, parse_address

ACTIONS = ("status", "start", "canary", "pause", "resume", "finish", "rollback", "unlock")


def run_action(config: DictConfig, console: Console | None = None) -> CanaryVerdict | None:
    """Run one action, and return the verdict on a canary if it judged one.

    Raises:
        UserError: If an argument is wrong or missing, or a server refuses a step.
    """
    if config.action not in ACTIONS:
        raise UserError(f"action: found '{config.action}'{nearest(config.action, ACTIONS)}")
    if not 0 < config.share <= 1:
        raise UserError(f"share: found {config.share}, expected a share above 0 and up to 1")
    settings_of(config.judge)
    place = config.state or f"{config.store or 'releases'}/state/rollout.json"
    console, state = console or Console(), RolloutStateFile(Path(place))
    if config.action == "status":
        _status(config, state, console=console)
    elif config.action == "unlock":
        _unlock(config, state, console=console)
    elif config.action == "pause":
        _existing(state)
        state.pause()
        console.print("the rollout stops before its next step; `resume` continues it")
    else:
        return _change(config, state, console=console)
    return None


def _change(config: DictConfig, state: RolloutStateFile, *, console: Console) -> CanaryVerdict | None:
    private_folder(state.path.parent)
    try:
        with FileLock(state.lock, timeout=0, mode=PRIVATE_FILE):
            rollout = _requested_rollout(config, state)
            state.unpause()
            try:
                runner = RolloutRunner(
                    state, console, token=config.admin_token, wait=config.wait, patience=config.patience
                )
                runner.run(rollout)
                verdict = None
                if rollout.goal == "canary":
                    verdict = judge_canary(rollout, runner, config=config, console=console)
            except Paused:
                console.print("paused; `resume` continues the rollout")
                return None
    except Timeout as error:
        raise UserError(f"{state.path}: another process is running its rollout; `pause` stops it") from error
    finally:
        _remove_unused(state)
    console.print(_done(rollout), soft_wrap=True)
    return verdict


def _remove_unused(state: RolloutStateFile) -> None:
    """Remove the lock and the folders of a rollout that never began."""
    if state.path.exists():
        return
    state.lock.unlink(missing_ok=True)
    # A folder that holds anything else stays.
    with contextlib.suppress(OSError):
        state.path.parent.rmdir()
        state.path.parent.parent.rmdir()


def _requested_rollout(config: DictConfig, state: RolloutStateFile) -> Rollout:
    if config.action in ("start", "canary"):
        current = state.read()
        if current is not None and not current.is_finished:
            raise UserError(
                f"{state.path}: the rollout of {current.version} is under way; expected resume, finish or rollback"
            )
        if config.version is None:
            raise UserError("version: missing, expected version=VERSION, the version to serve")
        version = str(config.version)
        hosts, gateways = _admins(config.hosts, config), _admins(config.gateways, config)
        if config.action == "canary" and not gateways:
            raise UserError("gateways: found none, but only gateways give a canary to a share of the users")
        goal: Goal = "all" if config.action == "start" else "canary"
        return begin(
            version,
            goal,
            hosts=hosts,
            gateways=gateways,
            share=config.share,
            model=config.model,
            store=config.store,
        )
    rollout = _existing(state)
    if config.action == "finish":
        if rollout.goal == "back":
            raise UserError(f"{state.path}: {rollout.version} was rolled back; expected start or canary")
        rollout.goal = "all"
    elif config.action == "rollback":
        if rollout.previous == rollout.version:
            raise UserError(f"{state.path}: nothing was served before {rollout.version}")
        rollout.goal = "back"
    return rollout


def _existing(state: RolloutStateFile) -> Rollout:
    rollout = state.read()
    if rollout is None:
        raise UserError(f"{state.path}: there is no rollout yet; expected start or canary")
    return rollout


def _unlock(config: DictConfig, state: RolloutStateFile, *, console: Console) -> None:
    """Take the lock from a rollout, keep it until that one must have noticed, and give it back."""
    rollout = state.read()
    names = list(config.hosts) or (rollout.hosts if rollout is not None else [])
    if not names:
        raise UserError("hosts: found none, expected HOST:PORT of every host")
    with HostLocks(_admins(names, config), uuid.uuid4().hex, force=True):
        time.sleep(1.2 * RENEW_SECONDS)
    console.print("no rollout has the lock of these hosts; one that still ran has stopped")


def _status(config: DictConfig, state: RolloutStateFile, *, console: Console) -> None:
    rollout = state.read()
    names = list(config.hosts) or (rollout.hosts if rollout is not None else [])
    if not names:
        raise UserError(f"hosts: found none, and {state.path} does not exist")
    model = config.model or (rollout.model if rollout is not None else None)
    hosts = _admins(names, config, patience=0.0)
    show_status(rollout, state.is_paused, hosts=hosts, model=model, console=console)


def _done(rollout: Rollout) -> str:
    if rollout.goal == "canary":
        return f"{rollout.share:.3g} of the users get {rollout.version}; `finish` gives it to all, `rollback` to none"
    served = rollout.version if rollout.goal == "all" else rollout.previous
    alias = "" if rollout.store else " (without store= the alias `production` was not moved)"
    return f"every host serves {served}{alias}"


def _admins(places: Sequence[str], config: DictConfig, *, patience: float | None = None) -> list[AdminClient]:
    wait = config.patience if patience is None else patience
    addresses: list[Address] = []
    for place in places:
        host, port = parse_address(place.removeprefix("dns:"))
        if not place.startswith("dns:"):
            addresses.append((host, port))
            continue
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise UserError(f"hosts: {place} does not resolve ({error})") from error
        addresses += sorted({(str(entry[4][0]), port) for entry in found})
    return [AdminClient(address, config.admin_token, patience=wait) for address in dict.fromkeys(addresses)]
