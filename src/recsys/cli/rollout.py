"""Change the version that hosts serve, while they answer.

    recsys rollout start --version V --hosts A:8081 B:8081 --gateways G:8080 --store releases
    recsys rollout canary --version V --share 0.05 --hosts ... --gateways ... --store ...
    recsys rollout status | pause | resume | finish | rollback

start: load V on every host and its user tower on every gateway, switch hosts one by one, move the alias `production`.
canary: load V as above, give it to a share of the users, and stop there; `finish` goes on to all of them.
pause: whoever runs the rollout stops before the next step. resume: go on, after a pause, a failure or a crash.
rollback: back to the version before, which is still loaded, in the reverse order.

The token of the servers' admin calls: --token, or RECSYS_ADMIN_TOKEN. What the rollout is about is kept in --state.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock, Timeout
from rich.console import Console

from recsys.core.errors import UserError
from recsys.operations.rollout.admin import Admin
from recsys.operations.rollout.runner import Paused, Runner, begin, show_status
from recsys.operations.rollout.state import Goal, Rollout, StateFile
from recsys.serving.gateway.remote_host import Address, parse_address

INTERRUPTED = 130
COMMANDS = ("status", "start", "canary", "pause", "resume", "finish", "rollback")


def main(arguments: Sequence[str], console: Console | None = None) -> int:
    """Run one command; the exit code."""
    given = _parser().parse_args(arguments)
    console = console or Console()
    state = StateFile(given.state)
    try:
        if given.command == "status":
            _status(given, state, console)
        elif given.command == "pause":
            _existing(state)
            state.pause()
            console.print("the rollout stops before its next step; `resume` goes on")
        else:
            return _change(given, state, console)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; `resume` goes on", file=sys.stderr)
        return INTERRUPTED
    return 0


def _change(given: argparse.Namespace, state: StateFile, console: Console) -> int:
    try:
        with FileLock(state.lock, timeout=0):
            rollout = _wanted(given, state)
            state.unpause()
            try:
                Runner(state, given.token, console, given.wait, given.patience).run(rollout)
            except Paused:
                console.print("paused; `resume` goes on")
                return 0
    except Timeout as error:
        raise UserError(f"{state.path}: its rollout is being run by another process; `pause` stops it") from error
    console.print(_done(rollout), soft_wrap=True)
    return 0


def _wanted(given: argparse.Namespace, state: StateFile) -> Rollout:
    """The rollout that a command means, with its goal."""
    if given.command in ("start", "canary"):
        current = state.read()
        if current is not None and not current.is_finished:
            raise UserError(
                f"{state.path}: the rollout of {current.version} is under way; expected resume, finish or rollback"
            )
        if given.version is None:
            raise UserError("--version: missing, expected the version to serve")
        hosts, gateways = _admins(given.hosts, given), _admins(given.gateways, given)
        if given.command == "canary" and not gateways:
            raise UserError("--gateways: found none; they give the canary to its share of the users")
        goal: Goal = "all" if given.command == "start" else "canary"
        return begin(given.version, goal, given.share, hosts, gateways, given.model, given.store)
    rollout = _existing(state)
    if given.command == "finish":
        if rollout.goal == "back":
            raise UserError(f"{state.path}: {rollout.version} was rolled back; expected start or canary")
        rollout.goal = "all"
    elif given.command == "rollback":
        if rollout.previous == rollout.version:
            raise UserError(f"{state.path}: nothing was served before {rollout.version}")
        rollout.goal = "back"
    return rollout


def _existing(state: StateFile) -> Rollout:
    rollout = state.read()
    if rollout is None:
        raise UserError(f"{state.path}: there is no rollout yet; expected start or canary")
    return rollout


def _status(given: argparse.Namespace, state: StateFile, console: Console) -> None:
    rollout = state.read()
    names = given.hosts or (rollout.hosts if rollout is not None else [])
    if not names:
        raise UserError(f"--hosts: found none, and {state.path} does not exist")
    given.patience = 0.0
    model = given.model or (rollout.model if rollout is not None else None)
    show_status(rollout, state.is_paused, _admins(names, given), model, console)


def _done(rollout: Rollout) -> str:
    if rollout.goal == "canary":
        return f"{rollout.share:.3g} of the users get {rollout.version}; `finish` gives it to all, `rollback` to none"
    served = rollout.version if rollout.goal == "all" else rollout.previous
    alias = "" if rollout.store else " (without --store the alias `production` was left alone)"
    return f"every host serves {served}{alias}"


def _admins(places: Sequence[str], given: argparse.Namespace) -> list[Admin]:
    addresses: list[Address] = []
    for place in places:
        host, port = parse_address(place.removeprefix("dns:"))
        if not place.startswith("dns:"):
            addresses.append((host, port))
            continue
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise UserError(f"--hosts: {place} does not resolve ({error})") from error
        addresses += sorted({(str(entry[4][0]), port) for entry in found})
    return [Admin(address, given.token, given.patience) for address in dict.fromkeys(addresses)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="recsys rollout", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("command", choices=COMMANDS)
    add("--version", help="to serve; with --store also an alias, such as candidate")
    add("--hosts", nargs="+", default=[], metavar="HOST:PORT", help="all ANN hosts, in the order of switching")
    add("--gateways", nargs="+", default=[], metavar="HOST:PORT", help="all gateways (not with role=all)")
    add("--share", type=_share, default=0.05, help="of the users, of the canary (default: %(default)s)")
    add("--store", help="of releases, whose alias `production` moves at the end")
    add("--model", help="where hosts have several")
    add("--token", default=os.environ.get("RECSYS_ADMIN_TOKEN"), help="of admin calls")
    add("--wait", type=float, default=1.0, help="seconds between two hosts (default: %(default)s)")
    add("--patience", type=float, default=10.0, help="seconds for a server that does not answer (default: %(default)s)")
    add("--state", type=Path, default=Path("rollout.json"), help="file (default: %(default)s)")
    return parser


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected a share above 0 and up to 1")
    return share


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # Ends like Ctrl-C: between two calls, with its state on disk.
    signal.signal(signal.SIGTERM, _interrupt)
    raise SystemExit(main(sys.argv[1:]))
