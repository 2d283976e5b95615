"""Does the steps of a rollout, one after the other, and shows them. Imports no torch."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from recsys.core.errors import UserError
from recsys.operations.rollout.admin import Admin, RefusedError, UnreachableError
from recsys.operations.rollout.state import Goal, Rollout, StateFile
from recsys.operations.rollout.steps import ALIAS, Cluster, Load, Serve, Step, steps
from recsys.release.store import ReleaseStore
from recsys.serving.gateway.remote_host import parse_address


class Paused(Exception):  # noqa: N818 (no error: it was asked for)
    """Somebody asked for a pause."""


def cluster_of(rollout: Rollout, token: str | None, patience: float) -> Cluster:
    """The servers of a rollout."""
    hosts = {name: Admin(parse_address(name), token, patience) for name in rollout.hosts}
    return Cluster(hosts, {name: Admin(parse_address(name), token, patience) for name in rollout.gateways})


def begin(
    version: str,
    goal: Goal,
    share: float,
    hosts: Sequence[Admin],
    gateways: Sequence[Admin],
    model: str | None,
    store: str | None,
) -> Rollout:
    """A new rollout, from what the hosts serve now.

    Raises:
        UserError: a host does not answer, or none serves anything, or the store has no such release.
    """
    if not hosts:
        raise UserError("hosts: found none, expected HOST:PORT of every host")
    alias_before = None
    if store is not None:
        releases = ReleaseStore(store)
        version, alias_before = releases.resolve(version), releases.aliases().get(ALIAS)
    serving = Counter(held.serving for held in (host.versions(model) for host in hosts) if held.serving is not None)
    others = [served for served, _ in serving.most_common() if served != version]
    if not serving:
        raise UserError("no host serves a version yet: start hosts with release=VERSION first")
    previous = others[0] if others else version
    names = [host.name for host in hosts]
    return Rollout(version, previous, goal, share, names, [g.name for g in gateways], model, store, alias_before)


class Runner:
    """Brings a rollout to its goal.

    Args:
        state: where it is remembered.
        token: of the servers' admin calls.
        console: shows the steps.
        wait: seconds between the switches of two hosts.
        patience: seconds for a server that does not answer.
    """

    def __init__(
        self, state: StateFile, token: str | None, console: Console, wait: float = 1.0, patience: float = 10.0
    ) -> None:
        self.state, self.token, self.console, self.wait, self.patience = state, token, console, wait, patience

    def run(self, rollout: Rollout) -> None:
        """Do what is not done yet.

        Raises:
            Paused: before the next step.
            UserError: a server failed a step; what to do is in the message. A rollback goes on with the other servers
                and raises at its end.
        """
        rollout.is_finished = False
        self.state.write(rollout)
        cluster = cluster_of(rollout, self.token, self.patience)
        planned = list(steps(rollout))
        said = ["" for _ in planned]
        failures: list[UserError] = []
        with Live(console=self.console, auto_refresh=False) as live:
            for number, step in enumerate(planned):
                if self.state.is_paused:
                    raise Paused
                self._show(live, planned, said, number, "...")
                try:
                    self._show(live, planned, said, number, self._do(step, cluster))
                except (RefusedError, UnreachableError) as error:
                    self._show(live, planned, said, number, f"failed: {error}")
                    if rollout.goal != "back":
                        raise UserError(f"{error}\n{_advice(rollout, step)}") from error
                    failures.append(error)
        if failures:
            raise UserError("\n".join([*map(str, failures), "Everything else is rolled back; `resume` tries again."]))
        rollout.is_finished = True
        self.state.write(rollout)

    def _do(self, step: Step, cluster: Cluster) -> str:
        if step.is_done(cluster):
            return "is so already"
        began = time.monotonic()
        step.do(cluster)
        if isinstance(step, Load | Serve) and not step.is_done(cluster):
            raise RefusedError(f"{step.place}: said that it did, and did not: {step.what}")
        took = time.monotonic() - began
        if isinstance(step, Serve) and self.wait:
            time.sleep(self.wait)
        return f"done in {took:.1f} s"

    def _show(self, live: Live, planned: Sequence[Step], said: list[str], number: int, status: str) -> None:
        said[number] = status
        if not self.console.is_terminal:
            if status != "...":
                self.console.print(f"{planned[number].place}: {planned[number].what}: {status}", soft_wrap=True)
            return
        table = Table("server", "step", "")
        for step, text in zip(planned, said, strict=True):
            table.add_row(step.place, step.what, text)
        live.update(table, refresh=True)


def _advice(rollout: Rollout, step: Step) -> str:
    again = "`resume` when that is mended (what is done is not done again)"
    if isinstance(step, Load):
        return f"No host was told to serve {rollout.version} by this run. {again}, or `rollback`."
    return f"Hosts that were switched serve {rollout.version}, the others what they did. {again}, or `rollback`."


def show_status(
    rollout: Rollout | None, is_paused: bool, hosts: Sequence[Admin], model: str | None, console: Console
) -> None:
    """Print the rollout and what each host serves and holds."""
    if rollout is not None:
        stage = "finished" if rollout.is_finished else "paused" if is_paused else "under way"
        share = f" for {rollout.share:.3g} of the users" if rollout.goal == "canary" else ""
        console.print(f"{rollout.previous} -> {rollout.version}, goal: {rollout.goal}{share}, {stage}", soft_wrap=True)
    table = Table("host", "serving", "loaded", "")
    for host in hosts:
        try:
            held = host.versions(model)
            table.add_row(host.name, held.serving or "", ", ".join(held.loaded), "")
        except (RefusedError, UnreachableError) as error:
            table.add_row(host.name, "", "", str(error))
    console.print(table)
