"""The container files fit the repository: commands compose, roles match, and the image has what serving imports.

No container runs here.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from recsys.experiments.compose import check_overrides
from recsys.serving.gateway.discovery import HostDiscovery

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
SERVERS = [name for name, service in SERVICES.items() if service.get("build") == "."]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")


def instruction(name: str) -> Any:
    """Return the last instruction of a kind; one in JSON form as a list."""
    found = re.findall(rf"^\s*{name} (.*)$", DOCKERFILE, re.MULTILINE)[-1]
    return json.loads(found) if found.startswith("[") else found


def overrides(service: dict[str, Any]) -> list[str]:
    entrypoint = instruction("ENTRYPOINT")
    assert entrypoint[:2] == ["recsys", "serve"]
    return [*entrypoint[2:], *service.get("command", instruction("CMD"))]


def values(service: dict[str, Any]) -> dict[str, str]:
    return dict(override.split("=", 1) for override in overrides(service))


@pytest.mark.parametrize("name", [*SERVERS, "image"])
def test_commands_compose(name: str) -> None:
    check_overrides("serve", overrides({} if name == "image" else SERVICES[name]))


def test_a_gateway_three_hosts_and_a_store_of_events() -> None:
    roles = {name: values(SERVICES[name])["role"] for name in SERVERS}
    assert roles == {"gateway": "gateway", "host-1": "host", "host-2": "host", "host-3": "host"}
    gateway = values(SERVICES["gateway"])
    store, port = re.fullmatch(r"redis://(\w+):(\d+)/0", gateway["events"]).groups()  # type: ignore[union-attr]
    assert store in SERVICES
    assert port == "6379"
    # The name that the gateway looks up is one that every host answers to, at the port that they listen at.
    (place,) = yaml.safe_load(gateway["hosts"])
    HostDiscovery([place])
    _, name, port = place.split(":")
    for host in ("host-1", "host-2", "host-3"):
        assert name in SERVICES[host]["networks"]["default"]["aliases"]
        assert values(SERVICES[host])["port"] == port == str(instruction("EXPOSE"))


def test_written_files_are_in_a_volume_and_releases_are_read_only() -> None:
    assert {name.split(":")[0] for s in SERVICES.values() for name in s["volumes"] if name[0] != "."} == {
        "host-1", "host-2", "host-3", "valkey",
    }  # fmt: skip
    for name in SERVERS:
        service = SERVICES[name]
        assert service["read_only"]
        assert [volume for volume in service["volumes"] if volume.endswith(":/store:ro")]
        assert values(service)["store"] == "/store"
        if name != "gateway":
            assert values(service)["changes"].startswith("/data/")
            assert [volume for volume in service["volumes"] if volume == f"{name}:/data"]
    # Each host has a journal of its own.
    assert len({tuple(SERVICES[name]["volumes"]) for name in SERVERS}) == 4


def test_nothing_runs_as_root_or_is_open_to_the_network() -> None:
    assert instruction("USER") == "recsys"
    assert "--uid 10001" in DOCKERFILE
    assert all(port.startswith("127.0.0.1:") for s in SERVICES.values() for port in s.get("ports", []))
    assert all(s["cap_drop"] == ["ALL"] for s in SERVICES.values())


def test_health_is_readiness_at_the_port_that_is_served() -> None:
    command = json.loads(re.search(r"HEALTHCHECK.*CMD (\[.*\])", DOCKERFILE)[1])  # type: ignore[index]
    assert f"http://127.0.0.1:{values({})['port']}/readyz" in command[2]
    compile(command[2], "healthcheck", "exec")


def test_base_images_are_of_one_version_and_copied_files_exist() -> None:
    bases = {line.split()[1] for line in DOCKERFILE.splitlines() if line.startswith("FROM")}
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", bases.pop())
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    for words in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for source in words.split():
            assert (ROOT / source).exists()
            assert f"!{source}" in allowed


HIDING = """
import sys
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions

given = set(sys.argv[1:])

class Image(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if path is None and name in distributions and not distributions[name] & given:
            return None
        return super().find_spec(name, path, target)

distributions = {name: {d.lower().replace("_", "-") for d in found} for name, found in packages_distributions().items()}
sys.meta_path[sys.meta_path.index(PathFinder)] = Image
import uvloop, httptools, redis
import recsys.cli.entry, recsys.cli.serve, recsys.serving.server, recsys.serving.assembly
import recsys.serving.events.valkey, recsys.operations.rollout.actions, recsys.cli.releases
import recsys.publishing.opened_release, recsys.client
"""


def test_the_image_holds_what_serving_imports() -> None:
    """Serving can be imported although every package is hidden that the extra `serving` does not install."""
    assert "-c constraints.txt '.[serving]'" in DOCKERFILE
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed = [*project["dependencies"], *project["optional-dependencies"]["serving"]]
    given = {_normal(Requirement(entry).name) for entry in installed}
    while more := {_normal(r) for d in given for r in _required(d)} - given:
        given |= more
    assert not given & {"torch", "lightning", "datasets"}
    subprocess.run([sys.executable, "-c", HIDING, "recsys", *given], check=True)
    without = subprocess.run(
        [sys.executable, "-c", HIDING, "recsys", *given - {"xxhash"}], capture_output=True, text=True
    )
    assert "No module named 'xxhash'" in without.stderr


def _required(distribution: str) -> set[str]:
    """Return the requirements of a distribution on this system, without extras."""
    listed = (Requirement(entry) for entry in requires(distribution) or [])
    return {entry.name for entry in listed if entry.marker is None or entry.marker.evaluate({"extra": ""})}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
