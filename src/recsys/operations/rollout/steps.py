"""Steps of a rollout and their order. Each step can be repeated. Imports no torch.

A host serves a version only after every host has loaded it and every gateway has its user tower, and the previous
version stays loaded until the next rollout. So the hosts of a request always have a version in common, with one shard
or many, and every request can be answered during a rollout. A rollback takes the same steps in reverse order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass

from recsys.operations.rollout.admin import AdminClient
from recsys.operations.rollout.state import Rollout
from recsys.release.store import ReleaseStore

ALIAS = "production"


@dataclass(frozen=True)
class Cluster:
    """Clients of the servers of a rollout, by name."""

    hosts: Mapping[str, AdminClient]
    gateways: Mapping[str, AdminClient]


@dataclass(frozen=True)
class RolloutStep:
    """One change of one server or store.

    Attributes:
        target: name of the server, or folder of the store.
        change: description of the change.
        do: makes the change. It raises `UnreachableError` or `RefusedError` if the server fails it.
        is_done: returns whether the server has made the change; always False if the check would cost as much as `do`.
        is_verified: `is_done` is checked after the change.
        switches: the step changes the version that a host serves.
    """

    target: str
    change: str
    _: KW_ONLY
    do: Callable[[Cluster], None]
    is_done: Callable[[Cluster], bool] = lambda cluster: False  # noqa: ARG005, E731
    is_verified: bool = False
    switches: bool = False


def load(host: str, version: str, *, model: str | None) -> RolloutStep:
    """Return the step that lets a host load a version in addition to those that it has."""
    return RolloutStep(
        host,
        f"load {version}",
        do=lambda cluster: cluster.hosts[host].load(version, model),
        is_done=lambda cluster: version in cluster.hosts[host].versions(model).loaded,
        is_verified=True,
    )


def load_tower(gateway: str, version: str) -> RolloutStep:
    """Return the step that lets a gateway load the user tower of a version."""
    change = f"load the user tower of {version}"
    return RolloutStep(gateway, change, do=lambda cluster: cluster.gateways[gateway].load_tower(version))


def set_canary(gateway: str, version: str, *, share: float) -> RolloutStep:
    """Return the step that lets a gateway give a version to a share of the users; a share of 0 ends the canary."""
    change = f"{version} for {share:.3g} of the users" if share else "no canary"
    return RolloutStep(gateway, change, do=lambda cluster: cluster.gateways[gateway].canary(version, share))


def serve(host: str, version: str, *, model: str | None) -> RolloutStep:
    """Return the step that lets a host serve a version."""

    def do(cluster: Cluster) -> None:
        client = cluster.hosts[host]
        if version not in client.versions(model).loaded:
            # The host was restarted since it loaded the version.
            client.load(version, model)
        client.serve(version, model)

    return RolloutStep(
        host,
        f"serve {version}",
        do=do,
        is_done=lambda cluster: cluster.hosts[host].versions(model).serving == version,
        is_verified=True,
        switches=True,
    )


def unload_others(host: str, versions: Sequence[str], *, model: str | None) -> RolloutStep:
    """Return the step that lets a host unload all versions but these."""

    def do(cluster: Cluster) -> None:
        client = cluster.hosts[host]
        for version in client.versions(model).loaded:
            if version not in versions:
                client.unload(version, model)

    return RolloutStep(
        host,
        f"keep {' and '.join(versions)} loaded, no other",
        do=do,
        is_done=lambda cluster: {*cluster.hosts[host].versions(model).loaded} <= {*versions},
    )


def move_alias(store: str, version: str, *, why: str) -> RolloutStep:
    """Return the step that points `production` to a version, so that servers that start later serve it."""
    return RolloutStep(
        store,
        f"{ALIAS} is {version}",
        do=lambda cluster: ReleaseStore(store).set_alias(ALIAS, version, why=why),  # noqa: ARG005
        is_done=lambda cluster: ReleaseStore(store).aliases().get(ALIAS) == version,  # noqa: ARG005
    )


def steps(rollout: Rollout) -> Sequence[RolloutStep]:
    """Return all steps to the goal of a rollout, in order, those that are done included."""
    if rollout.goal == "back":
        return _back(rollout)
    version, model = rollout.version, rollout.model
    forward = [load(host, version, model=model) for host in rollout.hosts]
    forward += [load_tower(gateway, version) for gateway in rollout.gateways]
    if rollout.goal == "canary":
        return [*forward, *(set_canary(gateway, version, share=rollout.share) for gateway in rollout.gateways)]
    forward += [serve(host, version, model=model) for host in rollout.hosts]
    forward += [set_canary(gateway, version, share=0.0) for gateway in rollout.gateways]
    if rollout.store is not None:
        forward.append(move_alias(rollout.store, version, why="rollout"))
    return [*forward, *(unload_others(host, [rollout.previous, version], model=model) for host in rollout.hosts)]


def _back(rollout: Rollout) -> Sequence[RolloutStep]:
    version, model = rollout.previous, rollout.model
    back = [set_canary(gateway, version, share=0.0) for gateway in rollout.gateways]
    back += [load_tower(gateway, version) for gateway in rollout.gateways]
    # Only hosts that were restarted have to load it again.
    back += [load(host, version, model=model) for host in reversed(rollout.hosts)]
    if rollout.store is not None and rollout.alias_before is not None:
        back.append(move_alias(rollout.store, rollout.alias_before, why=f"rollback from {rollout.version}"))
    return [*back, *(serve(host, version, model=model) for host in reversed(rollout.hosts))]
