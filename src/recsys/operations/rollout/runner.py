"""Runs the steps of a rollout one after the other and prints them. Imports no torch."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from recsys.core.errors import UserError
from recsys.operations.rollout.admin import PATIENCE, AdminClient, RefusedError, UnreachableError
from recsys.operations.rollout.lock import HostLocks
from recsys.operations.rollout.state import Goal, Rollout, RolloutStateFile
from recsys.operations.rollout.steps import ALIAS, Cluster, RolloutStep, steps
from recsys.release.store import ReleaseStore
from recsys.serving.gateway.remote_host import parse_address


class Paused(Exception):  # noqa: N818 (requested, so not an error)
    """The rollout was paused by another process."""


def cluster_of(rollout: Rollout, token: str | None, *, patience: float) -> Cluster:
    """Return clients of the servers of a rollout."""
    hosts, gateways = (
        {name: AdminClient(parse_address(name), token, patience=patience) for name in names}
        for names in (rollout.hosts, rollout.gateways)
    )
    return Cluster(hosts, gateways)


def begin(
    version: str,
    goal: Goal,
    *,
    hosts: Sequence[AdminClient],
    gateways: Sequence[AdminClient],
    share: float = 1.0,
    model: str | None = None,
    store: str | None = None,
) -> Rollout:
    """Return a new rollout (see `Rollout`), whose previous version is the one that most hosts serve.

    Raises:
        UserError: If a host does not answer, no host serves a version, or the store has no such release.
    """
    if not hosts:
        raise UserError("hosts: found none, expected HOST:PORT of every host")
    alias_before = None
    if store is not None:
        releases = ReleaseStore(store)
        releases.check_signature(version)
        version, alias_before = releases.resolve(version), releases.aliases().get(ALIAS)
    serving = Counter(held.serving for held in (host.versions(model) for host in hosts) if held.serving is not None)
    others = [served for served, _ in serving.most_common() if served != version]
    if not serving:
        raise UserError("no host serves a version yet: start hosts with release=VERSION first")
    previous = others[0] if others else version
    return Rollout(
        version=version,
        previous=previous,
        goal=goal,
        share=share,
        hosts=[host.name for host in hosts],
        gateways=[gateway.name for gateway in gateways],
        model=model,
        store=store,
        alias_before=alias_before,
    )


class RolloutRunner:
    """Brings a rollout to its goal, with the settings of `conf/rollout.yaml`."""

    def __init__(
        self,
        state: RolloutStateFile,
        console: Console,
        *,
        token: str | None,
        wait: float = 1.0,
        patience: float = PATIENCE,
    ) -> None:
        self.state, self.token, self.console, self.wait, self.patience = state, token, console, wait, patience

    def run(self, rollout: Rollout) -> None:
        """Run the steps that are not done yet.

        Raises:
            Paused: If the rollout was paused, before its next step.
            UserError: If a server fails a step; the message says what to do. A rollback continues with the other
                servers and raises at its end. Also if another rollout changes the hosts.
        """
        cluster = cluster_of(rollout, self.token, patience=self.patience)
        with HostLocks(list(cluster.hosts.values()), rollout.token) as locks:
            self._run_steps(rollout, cluster, locks)

    def _run_steps(self, rollout: Rollout, cluster: Cluster, locks: HostLocks) -> None:
        rollout.is_finished = False
        self.state.write(rollout)
        planned = list(steps(rollout))
        failures: list[UserError] = []
        with Live(console=self.console, auto_refresh=False) as live:
            display = _Display(self.console, live, planned=planned)
            for number, step in enumerate(planned):
                if self.state.is_paused:
                    raise Paused
                locks.check()
                display.show(number, "...")
                try:
                    display.show(number, self._run_step(step, cluster))
                except (RefusedError, UnreachableError) as error:
                    display.show(number, f"failed: {error}")
                    if rollout.goal != "back":
                        raise UserError(f"{error}\n{_advice(rollout, planned[:number])}") from error
                    failures.append(error)
        if failures:
            raise UserError("\n".join([*map(str, failures), "Everything else is rolled back; `resume` tries again."]))
        rollout.is_finished = True
        self.state.write(rollout)

    def _run_step(self, step: RolloutStep, cluster: Cluster) -> str:
        if step.is_done(cluster):
            return "already done"
        began = time.monotonic()
        step.do(cluster)
        if step.is_verified and not step.is_done(cluster):
            raise RefusedError(f"{step.target}: reported success, but did not do: {step.change}")
        took = time.monotonic() - began
        if step.switches and self.wait:
            time.sleep(self.wait)
        return f"done in {took:.1f} s"


class _Display:
    """Table of the steps on a terminal; elsewhere one line for each finished step."""

    def __init__(self, console: Console, live: Live, *, planned: Sequence[RolloutStep]) -> None:
        self._console, self._live, self._planned = console, live, planned
        self._results = ["" for _ in planned]

    def show(self, number: int, result: str) -> None:
        self._results[number] = result
        if not self._console.is_terminal:
            if result != "...":
                step = self._planned[number]
                self._console.print(f"{step.target}: {step.change}: {result}", soft_wrap=True)
            return
        table = Table("server", "step", "result")
        for step, text in zip(self._planned, self._results, strict=True):
            table.add_row(step.target, step.change, text)
        self._live.update(table, refresh=True)


def _advice(rollout: Rollout, done: Sequence[RolloutStep]) -> str:
    again = "`resume` after the fault is fixed (finished steps are not repeated), or `rollback`."
    if not any(step.switches for step in done):
        return f"No host was switched to {rollout.version} by this run. {again}"
    return f"Hosts that were switched serve {rollout.version}, the others still serve their previous version. {again}"


def show_status(
    rollout: Rollout | None, is_paused: bool, *, hosts: Sequence[AdminClient], model: str | None, console: Console
) -> None:
    """Print the rollout, and the versions that each host serves and has loaded."""
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
