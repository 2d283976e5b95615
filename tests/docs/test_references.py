"""Files, modules, commands, options, keys and tests that the documentation names exist."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from commands import REPOSITORY
from composing import composition_error

from recsys.cli.commands import COMMANDS as RECSYS
from recsys.core.renamed_keys import RENAMED
from recsys.core.signatures import signature_of
from recsys.experiments.conf_files import CONF

PAGES = [
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((REPOSITORY / "examples").glob("**/README.md")),
]
# Results and the changelog name what existed at a commit.
CURRENT = [page for page in PAGES if page.name not in ("results.md", "CHANGELOG.md")]
GROUPS = {path.name: {file.stem for file in path.glob("*.yaml")} for path in CONF.iterdir() if path.is_dir()}
SOURCES = REPOSITORY / "src/recsys"
SCRIPTS = [path for folder in ("benchmarks", "tests", "src") for path in (REPOSITORY / folder).rglob("*.py")]
# Placeholders that stand for a value of the reader.
PLACEHOLDER = re.compile(r"NAME|ID|GROUP|OPTION|_OVERRIDE|\.\.\.")


def ids(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def spans(page: Path) -> list[str]:
    """Code spans of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return re.findall(r"`([^`]+)`", text)


def commands(page: Path) -> Iterator[list[str]]:
    """Every command of `recsys` in the code blocks of a page, as words."""
    text = page.read_text().replace("\\\n", " ")
    fenced = re.findall(r"```(?:bash|console|sh)\n(.*?)```", text, re.DOTALL)
    indented = re.findall(r"^(?: {4}|\t)(.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    for line in [*indented, *(line for block in fenced for line in block.splitlines())]:
        for part in re.split(r" && |; ", line):
            if part.strip().startswith("recsys "):
                yield shlex.split(part.strip(), comments=True)[1:]


def all_keys() -> set[str]:
    """Every dotted key of every configuration file, options of groups below the name of the group."""
    found: set[str] = set()

    def walk(node: object, prefix: str) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                found.add(f"{prefix}{key}")
                walk(value, f"{prefix}{key}.")

    for file in CONF.rglob("*.yaml"):
        prefix = "" if file.parent in (CONF, CONF / "experiment") else f"{file.parent.name}."
        walk(yaml.safe_load(file.read_text()), prefix)
    # Groups that lie below a key of another group.
    below = {"crossing": ("item_tower.crossing", "user_tower.crossing"), "pretrained": ("item_tower.pretrained",)}
    below["engine"] = ("data.engine",)
    for group, places in below.items():
        found |= {key.replace(group, place, 1) for key in found if key.startswith(f"{group}.") for place in places}
    return found


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_files_exist(page: Path) -> None:
    missing = []
    for span in spans(page):
        for path in re.findall(r"(?<![\w/.*-])(?:[\w-]+/)+[\w-]+\.(?:py|yaml|ipynb|md)\b", span):
            places = (REPOSITORY, SOURCES, SOURCES / "training", page.parent)
            if not any((place / path).exists() for place in places) and not re.match(r"my_|runs/|RUN|OUT|DIR", path):
                missing.append(path)
    known_before = {"benchmarks/incremental_preparation.py"} if page.name == "results.md" else set()
    assert set(missing) <= known_before


@pytest.mark.parametrize("page", CURRENT, ids=ids)
def test_scripts_exist(page: Path) -> None:
    for name in re.findall(r"python (?!-)([\w/.-]+\.py)", page.read_text()):
        assert (REPOSITORY / name).exists() or (page.parent / name).exists(), name


@pytest.mark.parametrize("page", CURRENT, ids=ids)
def test_modules_exist(page: Path) -> None:
    for span in spans(page):
        for path in re.findall(r"(?<![\w.-])recsys(?:\.\w+)+", span):
            assert resolves(path), path


def resolves(path: str) -> bool:
    """Return True if a dotted path names a module or an attribute."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


@pytest.mark.parametrize("page", CURRENT, ids=ids)
def test_options_exist(page: Path) -> None:
    text = re.sub(r"```python.*?```", "", page.read_text(), flags=re.DOTALL)
    for group, option in re.findall(r"(?<![\w.@-])\+?(\w+)=([\w*-]+)", text):
        # An option of the reader's own is a file that the page shows.
        if group in GROUPS and option.islower() and f"{group}/{option}.yaml" not in text:
            assert option in GROUPS[group], f"{group}={option}"


@pytest.mark.parametrize("page", CURRENT, ids=ids)
def test_configuration_keys_exist(page: Path) -> None:
    known = {*all_keys(), *(f"trainer.{name}" for name in signature_of("lightning.Trainer").kinds)}
    roots = {key.partition(".")[0] for key in known if "." in key}
    for span in spans(page):
        match = re.fullmatch(r"[~+]*((?:[a-z]\w*\.)+[a-z]\w*)(?:=.*)?", span)
        if match is None or match[1].partition(".")[0] not in roots or match[1].endswith((".py", ".yaml", ".md")):
            continue
        key = match[1]
        # Keys below these are the reader's columns and names.
        if key.startswith(("data.features.", "history.action_weights.", "index.", "hydra.")):
            continue
        assert key in known, key


COMPOSED = {"train", "index", "recommend", "serve", "retrain", "refresh", "gates", "baselines"}


def composed() -> Iterator[tuple[str, ...]]:
    """Every distinct command of the documentation that Hydra composes, and its overrides."""
    for name, *words in {tuple(words) for page in CURRENT for words in commands(page)}:
        # Options in a folder of the reader's own are composed by tests/test_extending.py.
        is_complete = not any(PLACEHOLDER.search(word) for word in words)
        if name in COMPOSED and is_complete and not {"-m", "--config-dir"} & set(words):
            yield name, *(word for word in words if "=" in word or word.startswith("~"))


@pytest.mark.parametrize("command", sorted(set(composed())), ids=" ".join)
def test_commands_compose(command: tuple[str, ...]) -> None:
    assert composition_error(command[0], list(command[1:])) is None


@pytest.mark.parametrize("page", CURRENT, ids=ids)
def test_commands_exist(page: Path) -> None:
    for words in commands(page):
        assert words[0].lstrip("-") in {*RECSYS, "help", "COMMAND"}, words


@pytest.mark.parametrize("page", CURRENT, ids=ids)
def test_tests_exist(page: Path) -> None:
    text = "\n".join(path.read_text() for path in (REPOSITORY / "tests").rglob("test_*.py"))
    names = {path.name for path in SCRIPTS}
    for span in spans(page):
        for name in re.findall(r"::(test_\w+)", span):
            assert f"def {name}(" in text, name
        for name in re.findall(r"\b(?:test|serving)_\w+\.py\b", span):
            assert name in names, name


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_the_root_pages_exist(name: str) -> None:
    for link in re.findall(r"\]\((?!https?://)([^)#]+)", (REPOSITORY / name).read_text()):
        assert (REPOSITORY / link).exists(), link


def test_the_changelog_has_every_renamed_key() -> None:
    text = (REPOSITORY / "CHANGELOG.md").read_text()
    for old, new in RENAMED.items():
        assert f"| `{old}` | `{new}` |" in text, old
