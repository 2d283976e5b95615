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
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
SERVERS = [name for name, service in SERVICES.items() if service.get("build") == "."]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")


def instruction(name: str) -> Any:
    """Return the last instruction of a kind; one in JSON form as a list."""
    found = re.findall(rf"^\s*{name} (.*)$", DOCKERFILE, re.MULTILINE)[-1]
    return json.loads(found) if found.startswith("[") else found


def overrides(service: dict[str, Any]) -> list[str]:
    entrypoint = instruction("ENTRYPOINT")
    assert entrypoint[:2] == ["recsys", "serve"]
    # Compose reads $$ as $.
    command = [word.replace("$$", "$") for word in service.get("command", instruction("CMD"))]
    return [*entrypoint[2:], *command]


def values(service: dict[str, Any]) -> dict[str, str]:
    return dict(override.split("=", 1) for override in overrides(service))


def url_of_valkey(service: dict[str, Any], key: str) -> str:
    """The address that a key reads from the environment, so that the list of processes shows no password."""
    assert values(service)[key] == "${oc.env:RECSYS_VALKEY_URL}"
    return str(service["environment"]["RECSYS_VALKEY_URL"])


@pytest.mark.parametrize("name", [*SERVERS, "image"])
def test_commands_compose(name: str) -> None:
    check_overrides("serve", overrides({} if name == "image" else SERVICES[name]))


def test_a_gateway_three_hosts_and_a_store_of_events() -> None:
    roles = {name: values(SERVICES[name])["role"] for name in SERVERS}
    assert roles == {"gateway": "gateway", "host-1": "host", "host-2": "host", "host-3": "host"}
    gateway = values(SERVICES["gateway"])
    found = re.fullmatch(
        r"redis://:\$\{RECSYS_VALKEY_PASSWORD:\?[^}]+\}@(\w+):6379/0", url_of_valkey(SERVICES["gateway"], "events")
    )
    assert found is not None
    assert found[1] in SERVICES
    assert {url_of_valkey(SERVICES[name], "changes") for name in SERVERS} == {found[0]}
    # The name that the gateway looks up is one that every host answers to, at the port that they listen at.
    (place,) = yaml.safe_load(gateway["hosts"])
    HostDiscovery([place])
    _, name, port = place.split(":")
    for host in ("host-1", "host-2", "host-3"):
        assert name in SERVICES[host]["networks"]["default"]["aliases"]
        assert values(SERVICES[host])["port"] == port == str(instruction("EXPOSE"))


def test_written_files_are_in_a_volume_and_releases_are_read_only() -> None:
    assert {volume for service in SERVICES.values() for volume in service["volumes"]} == {
        "./releases:/store:ro", "valkey:/data",
    }  # fmt: skip
    assert all(service["read_only"] for service in SERVICES.values())
    assert {values(SERVICES[name])["store"] for name in SERVERS} == {"/store"}


def test_memory_and_processes_are_limited_and_valkey_has_a_password_and_a_network_of_its_own() -> None:
    assert all(service["mem_limit"] and service["pids_limit"] for service in SERVICES.values())
    assert "requirepass $$REDISCLI_AUTH" in SERVICES["valkey"]["command"][-1]
    assert "RECSYS_VALKEY_PASSWORD:?" in SERVICES["valkey"]["environment"]["REDISCLI_AUTH"]
    assert "ports" not in SERVICES["valkey"]
    assert SERVICES["valkey"]["networks"] == ["valkey"]
    assert COMPOSE["networks"]["valkey"]["internal"] is True
    assert all("valkey" in SERVICES[name]["networks"] for name in SERVERS)


def test_nothing_runs_as_root_or_is_open_to_the_network() -> None:
    assert instruction("USER") == "recsys"
    assert "--uid 10001" in DOCKERFILE
    assert all(port.startswith("127.0.0.1:") for s in SERVICES.values() for port in s.get("ports", []))
    # Sites cannot reach what is published at a loopback address through a name of theirs.
    for service in ({}, *(one for one in SERVICES.values() if "ports" in one)):
        assert values(service)["access.hosts"] == "[]"
    assert all(s["cap_drop"] == ["ALL"] for s in SERVICES.values())


def test_health_is_readiness_at_the_port_that_is_served() -> None:
    command = json.loads(re.search(r"HEALTHCHECK.*CMD (\[.*\])", DOCKERFILE)[1])  # type: ignore[index]
    assert f"http://127.0.0.1:{values({})['port']}/readyz" in command[2]
    compile(command[2], "healthcheck", "exec")


PINNED = re.compile(r"(python|valkey/valkey):[\d.]+-[\w-]+@sha256:[0-9a-f]{64}")


def test_base_images_are_pinned_by_digest_and_copied_files_exist() -> None:
    files = {path: (ROOT / path).read_text() for path in ("Dockerfile", "deploy/training.Dockerfile")}
    bases = {base for content in files.values() for base in re.findall(r"^FROM (\S+)", content, re.MULTILINE)}
    assert len(bases) == 1
    assert all(PINNED.fullmatch(image) for image in [*bases, SERVICES["valkey"]["image"]])
    kubernetes = (ROOT / "deploy/kubernetes/valkey.yaml").read_text()
    assert f"image: {SERVICES['valkey']['image']}\n" in kubernetes
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    for content in files.values():
        for words in re.findall(r"^COPY (?!--from)(.+) \S+$", content, re.MULTILINE):
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
    assert "--require-hashes -r locks/serving.txt" in DOCKERFILE
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
