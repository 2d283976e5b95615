"""The steps of a rollout and their order. Each may be done twice, and knows whether it has been. Imports no torch.

Why every request can be answered at every moment: a version is served only after every host holds it and every gateway
has its user tower, and the version before stays held until the next rollout. So whichever hosts a request meets, they
have a version in common, in one shard or in many; and the way back is the same steps, read from the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from recsys.operations.rollout.admin import Admin
from recsys.operations.rollout.state import Rollout
from recsys.release.store import ReleaseStore

ALIAS = "production"


@dataclass(frozen=True)
class Cluster:
    """The servers of a rollout, by name."""

    hosts: Mapping[str, Admin]
    gateways: Mapping[str, Admin]


class Step(Protocol):
    """One change of one server."""

    @property
    def place(self) -> str:
        """What is changed."""
        ...

    @property
    def what(self) -> str:
        """What is done, in a few words."""
        ...

    def is_done(self, cluster: Cluster) -> bool:
        """Whether there is nothing to do; asked of the server, not remembered."""
        ...

    def do(self, cluster: Cluster) -> None:
        """Do it.

        Raises:
            UnreachableError: the server does not answer.
            RefusedError: it will not, and says why.
        """
        ...


@dataclass(frozen=True)
class Load:
    """A host loads a version beside those that it has."""

    place: str
    version: str
    model: str | None

    @property
    def what(self) -> str:
        """As `Step.what`."""
        return f"load {self.version}"

    def is_done(self, cluster: Cluster) -> bool:
        """As `Step.is_done`."""
        return self.version in cluster.hosts[self.place].versions(self.model).loaded

    def do(self, cluster: Cluster) -> None:
        """As `Step.do`."""
        cluster.hosts[self.place].load(self.version, self.model)


@dataclass(frozen=True)
class LoadTower:
    """A gateway loads the user tower of a version."""

    place: str
    version: str

    @property
    def what(self) -> str:
        """As `Step.what`."""
        return f"load the user tower of {self.version}"

    def is_done(self, cluster: Cluster) -> bool:  # noqa: ARG002
        """Asking is as cheap as doing."""
        return False

    def do(self, cluster: Cluster) -> None:
        """As `Step.do`."""
        cluster.gateways[self.place].load_tower(self.version)


@dataclass(frozen=True)
class Share:
    """A gateway gives a version to a share of the users; 0 ends that."""

    place: str
    version: str
    share: float

    @property
    def what(self) -> str:
        """As `Step.what`."""
        return f"{self.version} for {self.share:.3g} of the users" if self.share else "no canary"

    def is_done(self, cluster: Cluster) -> bool:  # noqa: ARG002
        """Asking is as cheap as doing."""
        return False

    def do(self, cluster: Cluster) -> None:
        """As `Step.do`."""
        cluster.gateways[self.place].canary(self.version, self.share)


@dataclass(frozen=True)
class Serve:
    """A host serves a version that it has loaded."""

    place: str
    version: str
    model: str | None

    @property
    def what(self) -> str:
        """As `Step.what`."""
        return f"serve {self.version}"

    def is_done(self, cluster: Cluster) -> bool:
        """As `Step.is_done`."""
        return cluster.hosts[self.place].versions(self.model).serving == self.version

    def do(self, cluster: Cluster) -> None:
        """As `Step.do`."""
        host = cluster.hosts[self.place]
        if self.version not in host.versions(self.model).loaded:
            # It was started again since.
            host.load(self.version, self.model)
        host.serve(self.version, self.model)


@dataclass(frozen=True)
class Keep:
    """A host lets go of all but these versions."""

    place: str
    versions: tuple[str, ...]
    model: str | None

    @property
    def what(self) -> str:
        """As `Step.what`."""
        return f"keep {' and '.join(self.versions)} loaded, no other"

    def is_done(self, cluster: Cluster) -> bool:
        """As `Step.is_done`."""
        return set(cluster.hosts[self.place].versions(self.model).loaded) <= set(self.versions)

    def do(self, cluster: Cluster) -> None:
        """As `Step.do`."""
        host = cluster.hosts[self.place]
        for version in host.versions(self.model).loaded:
            if version not in self.versions:
                host.unload(version, self.model)


@dataclass(frozen=True)
class MoveAlias:
    """`production` points to a version, so that what is started from now on begins with it."""

    store: str
    version: str
    why: str

    @property
    def place(self) -> str:
        """As `Step.place`."""
        return self.store

    @property
    def what(self) -> str:
        """As `Step.what`."""
        return f"{ALIAS} is {self.version}"

    def is_done(self, cluster: Cluster) -> bool:  # noqa: ARG002
        """As `Step.is_done`."""
        return ReleaseStore(self.store).aliases().get(ALIAS) == self.version

    def do(self, cluster: Cluster) -> None:  # noqa: ARG002
        """As `Step.do`."""
        ReleaseStore(self.store).set_alias(ALIAS, self.version, self.why)


def steps(rollout: Rollout) -> Sequence[Step]:
    """What leads to the goal of a rollout, in order, from wherever it is now."""
    if rollout.goal == "back":
        return _back(rollout)
    version, model = rollout.version, rollout.model
    there: list[Step] = [Load(host, version, model) for host in rollout.hosts]
    there += [LoadTower(gateway, version) for gateway in rollout.gateways]
    if rollout.goal == "canary":
        return [*there, *(Share(gateway, version, rollout.share) for gateway in rollout.gateways)]
    there += [Serve(host, version, model) for host in rollout.hosts]
    there += [Share(gateway, version, 0.0) for gateway in rollout.gateways]
    if rollout.store is not None:
        there.append(MoveAlias(rollout.store, version, "rollout"))
    return [*there, *(Keep(host, (rollout.previous, version), model) for host in rollout.hosts)]


def _back(rollout: Rollout) -> Sequence[Step]:
    version, model = rollout.previous, rollout.model
    back: list[Step] = [Share(gateway, version, 0.0) for gateway in rollout.gateways]
    back += [LoadTower(gateway, version) for gateway in rollout.gateways]
    # Still there, but for hosts that were started again.
    back += [Load(host, version, model) for host in reversed(rollout.hosts)]
    if rollout.store is not None and rollout.alias_before is not None:
        back.append(MoveAlias(rollout.store, rollout.alias_before, f"rollback from {rollout.version}"))
    return [*back, *(Serve(host, version, model) for host in reversed(rollout.hosts))]
