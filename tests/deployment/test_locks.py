"""The lock files agree with constraints.txt and pyproject.toml, and every package in them has hashes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def locked(name: str) -> dict[str, tuple[str, int]]:
    """Package -> version and number of hashes."""
    found: dict[str, tuple[str, int]] = {}
    content = (ROOT / "locks" / f"{name}.txt").read_text()
    for entry in re.split(r"\n(?! )", content.strip()):
        requirement = Requirement(entry.partition(" \\\n")[0])
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        hashes = re.findall(r"--hash=sha256:[0-9a-f]{64}", entry)
        found[canonicalize_name(requirement.name)] = pin.version, len(hashes)
    return found


def wanted(extra: str) -> set[str]:
    """Packages that an extra names, itself or by another extra."""
    named: set[str] = set()
    project = PROJECT["project"]
    for entry in [*project["dependencies"], *project["optional-dependencies"][extra]]:
        requirement = Requirement(entry)
        if requirement.name == "recsys":
            named |= {name for more in requirement.extras for name in wanted(more)}
        else:
            named.add(canonicalize_name(requirement.name))
    return named


CONSTRAINTS = {
    canonicalize_name(requirement.name): str(requirement.specifier).removeprefix("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line.strip() and not line.startswith("#")
    for requirement in [Requirement(line)]
}


@pytest.mark.parametrize("name", ["serving", "all", "build"])
def test_versions_agree_and_everything_has_hashes(name: str) -> None:
    found = locked(name)
    differing = {
        package: (version, CONSTRAINTS[package])
        for package, (version, _) in found.items()
        if CONSTRAINTS.get(package, version) != version
    }
    assert not differing, "run `make locks`"
    assert all(hashes for _, hashes in found.values())


@pytest.mark.parametrize("name", ["serving", "all"])
def test_nothing_that_an_extra_needs_is_missing(name: str) -> None:
    assert wanted(name) <= locked(name).keys(), "run `make locks`"


def test_the_lock_of_serving_is_part_of_the_other_and_the_build_has_its_backend() -> None:
    serving, everything = locked("serving"), locked("all")
    assert {package: everything[package][0] for package in serving} == {name: v for name, (v, _) in serving.items()}
    assert "torch" not in serving
    (backend,) = PROJECT["build-system"]["requires"]
    version = locked("build")[canonicalize_name(Requirement(backend).name)][0]
    assert Requirement(backend).specifier.contains(version)
