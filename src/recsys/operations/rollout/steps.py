"""Steps of a rollout and their order. Each step can be repeated, and can check if it is done. Imports no torch.

Every request can be answered at every moment, for this reason: a host serves a version only after every host has loaded
it and every gateway has its user tower, and the previous version stays loaded until the next rollout. The hosts of a
request therefore always have a version in common, with one shard or with many. A rollback takes the same steps in
reverse order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from recsys.operations.rollout.admin import AdminClient
from recsys.operations.rollout.state import Rollout
from recsys.release.store import ReleaseStore

ALIAS = "production"


@dataclass(frozen=True)
class Cluster:
    """Clients of the servers of a rollout, by name."""

    hosts: Mapping[str, AdminClient]
    gateways: Mapping[str, AdminClient]


class RolloutStep(Protocol):
    """One change of one server."""

    @property
    def place(self) -> str:
        """Server or store that the step changes."""
        ...

    @property
    def what(self) -> str:
        """Description of the change, in a few words."""
        ...

    def is_done(self, cluster: Cluster) -> bool:
        """Ask the server if the step is done."""
        ...

    def do(self, cluster: Cluster) -> None:
        """Make the change.

        Raises:
            UnreachableError: If the server does not answer.
            RefusedError: If the server refuses.
        """
        ...


@dataclass(frozen=True)
class Load:
    """Let a host load a version in addition to those that it has."""

    place: str
    version: str
    model: str | None

    @property
    def what(self) -> str:
        """Description of the change."""
        return f"load {self.version}"

    def is_done(self, cluster: Cluster) -> bool:
        """Ask the server if the step is done."""
        return self.version in cluster.hosts[self.place].versions(self.model).loaded

    def do(self, cluster: Cluster) -> None:
        """Make the change."""
        cluster.hosts[self.place].load(self.version, self.model)


@dataclass(frozen=True)
class LoadTower:
    """Let a gateway load the user tower of a version."""

    place: str
    version: str

    @property
    def what(self) -> str:
        """Description of the change."""
        return f"load the user tower of {self.version}"

    def is_done(self, cluster: Cluster) -> bool:  # noqa: ARG002
        """Return False, because the check would cost as much as the step."""
        return False

    def do(self, cluster: Cluster) -> None:
        """Make the change."""
        cluster.gateways[self.place].load_tower(self.version)


@dataclass(frozen=True)
class SetCanary:
    """Let a gateway give a version to a share of the users; a share of 0 ends the canary."""

    place: str
    version: str
    share: float

    @property
    def what(self) -> str:
        """Description of the change."""
        return f"{self.version} for {self.share:.3g} of the users" if self.share else "no canary"

    def is_done(self, cluster: Cluster) -> bool:  # noqa: ARG002
        """Return False, because the check would cost as much as the step."""
        return False

    def do(self, cluster: Cluster) -> None:
        """Make the change."""
        cluster.gateways[self.place].canary(self.version, self.share)


@dataclass(frozen=True)
class Serve:
    """Let a host serve a version that it has loaded."""

    place: str
    version: str
    model: str | None

    @property
    def what(self) -> str:
        """Description of the change."""
        return f"serve {self.version}"

    def is_done(self, cluster: Cluster) -> bool:
        """Ask the server if the step is done."""
        return cluster.hosts[self.place].versions(self.model).serving == self.version

    def do(self, cluster: Cluster) -> None:
        """Make the change."""
        host = cluster.hosts[self.place]
        if self.version not in host.versions(self.model).loaded:
            # The host was restarted since it loaded the version.
            host.load(self.version, self.model)
        host.serve(self.version, self.model)


@dataclass(frozen=True)
class UnloadOthers:
    """Let a host unload all versions but these."""

    place: str
    versions: tuple[str, ...]
    model: str | None

    @property
    def what(self) -> str:
        """Description of the change."""
        return f"keep {' and '.join(self.versions)} loaded, no other"

    def is_done(self, cluster: Cluster) -> bool:
        """Ask the server if the step is done."""
        return set(cluster.hosts[self.place].versions(self.model).loaded) <= set(self.versions)

    def do(self, cluster: Cluster) -> None:
        """Make the change."""
        host = cluster.hosts[self.place]
        for version in host.versions(self.model).loaded:
            if version not in self.versions:
                host.unload(version, self.model)


@dataclass(frozen=True)
class MoveAlias:
    """Point `production` to a version, so that servers that start later serve it."""

    store: str
    version: str
    why: str

    @property
    def place(self) -> str:
        """Folder of the store."""
        return self.store

    @property
    def what(self) -> str:
        """Description of the change."""
        return f"{ALIAS} is {self.version}"

    def is_done(self, cluster: Cluster) -> bool:  # noqa: ARG002
        """Return True if the alias points to the version."""
        return ReleaseStore(self.store).aliases().get(ALIAS) == self.version

    def do(self, cluster: Cluster) -> None:  # noqa: ARG002
        """Make the change."""
        ReleaseStore(self.store).set_alias(ALIAS, self.version, self.why)


def steps(rollout: Rollout) -> Sequence[RolloutStep]:
    """Return all steps to the goal of a rollout, in order, those that are done included."""
    if rollout.goal == "back":
        return _back(rollout)
    version, model = rollout.version, rollout.model
    forward: list[RolloutStep] = [Load(host, version, model) for host in rollout.hosts]
    forward += [LoadTower(gateway, version) for gateway in rollout.gateways]
    if rollout.goal == "canary":
        return [*forward, *(SetCanary(gateway, version, rollout.share) for gateway in rollout.gateways)]
    forward += [Serve(host, version, model) for host in rollout.hosts]
    forward += [SetCanary(gateway, version, 0.0) for gateway in rollout.gateways]
    if rollout.store is not None:
        forward.append(MoveAlias(rollout.store, version, "rollout"))
    return [*forward, *(UnloadOthers(host, (rollout.previous, version), model) for host in rollout.hosts)]


def _back(rollout: Rollout) -> Sequence[RolloutStep]:
    version, model = rollout.previous, rollout.model
    back: list[RolloutStep] = [SetCanary(gateway, version, 0.0) for gateway in rollout.gateways]
    back += [LoadTower(gateway, version) for gateway in rollout.gateways]
    # Only hosts that were restarted have to load it again.
    back += [Load(host, version, model) for host in reversed(rollout.hosts)]
    if rollout.store is not None and rollout.alias_before is not None:
        back.append(MoveAlias(rollout.store, rollout.alias_before, f"rollback from {rollout.version}"))
    return [*back, *(Serve(host, version, model) for host in reversed(rollout.hosts))]
