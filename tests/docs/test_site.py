"""The documentation site builds without a warning, and its generated pages are complete."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from commands import REPOSITORY

PAGES = [*sorted((REPOSITORY / "docs").glob("*.md")), *sorted(REPOSITORY.glob("*.md"))]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", REPOSITORY / "docs/hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def leaves(node: object, prefix: str = "") -> set[str]:
    """Dotted names of all keys without keys below them."""
    if not isinstance(node, dict) or not node:
        return {prefix[:-1]}
    return {name for key, value in node.items() for name in leaves(value, f"{prefix}{key}.")}


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    configuration = (tmp_path / "site/configuration/index.html").read_text()
    assert "history.max_events" in configuration
    # Nothing is loaded from another machine, so that the site works offline; diagrams need their library.
    for page in (tmp_path / "site").rglob("*.html"):
        assert not re.search(r'<(?:link|script)[^>]+(?:href|src)="https?://(?:fonts|cdn)', page.read_text()), page


def test_every_key_of_a_command_is_in_the_reference(hooks: ModuleType) -> None:
    for command in hooks.COMMANDS.values():
        file = hooks.conf_folder() / f"{command.config_name}.yaml"
        content = yaml.safe_load(file.read_text())
        expected = leaves({key: value for key, value in content.items() if key not in ("defaults", "hydra")})
        found = {key.name for key in hooks.keys(file)}
        # A mapping in braces, such as a grid, is one row.
        missing = {name for name in expected if not any(name == row or name.startswith(row + ".") for row in found)}
        assert not missing, (file.name, missing)


def test_every_key_of_a_command_has_a_comment(hooks: ModuleType) -> None:
    for command in hooks.COMMANDS.values():
        rows = hooks.keys(hooks.conf_folder() / f"{command.config_name}.yaml")
        commented = {row.name for row in rows if row.comment}
        for row in rows:
            above = {row.name.rsplit(".", n)[0] for n in range(row.name.count(".") + 1)}
            is_section = any(other.name.startswith(row.name + ".") for other in rows)
            assert is_section or commented & above, f"{command.config_name}.yaml: {row.name} has no comment"


def test_every_command_is_in_the_reference(hooks: ModuleType) -> None:
    page = hooks.commands_page()
    for name in hooks.COMMANDS:
        assert f"## recsys {name}\n" in page


def test_every_file_in_conf_is_in_the_reference(hooks: ModuleType) -> None:
    page = hooks.configuration_page()
    for file in hooks.conf_folder().rglob("*.yaml"):
        expected = f"#{file.stem}-yaml}}" if file.parent == hooks.conf_folder() else f"{file.parent.name}={file.stem}`"
        assert expected in page, file


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_of_prose_are_short(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    long = [line for line in text.splitlines() if len(line) > 120 and not line.startswith(("|", "    "))]
    assert long == []


def test_every_page_is_in_the_navigation() -> None:
    text = (REPOSITORY / "mkdocs.yml").read_text()
    for page in (REPOSITORY / "docs").glob("*.md"):
        assert f": {page.name}" in text, page.name
