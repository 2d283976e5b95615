"""Hooks of the documentation site: pages that are made from files outside `docs/` when the site is built."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
CONF = next(path for path in (REPOSITORY / "src/recsys/conf", REPOSITORY / "conf") if path.is_dir())
# Root configurations, in the order in which a reader meets them, with the command that reads each.
COMMANDS = {
    "train": "recsys train",
    "index": "recsys index",
    "recommend": "recsys recommend",
    "serve": "recsys serve",
    "retrain": "recsys retrain",
    "gates": "recsys gates",
    "baselines": "recsys baselines",
    "generators": "recsys generators report",
}
# Pages of the site that are files at the root of the repository.
ROOT_PAGES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}


@dataclass(frozen=True)
class Key:
    """One key of a configuration file.

    Attributes:
        path: dotted path of the key.
        default: text of its value; empty for a section.
        comment: the comment above the key or behind it; empty if there is none.
    """

    path: str
    default: str
    comment: str


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the files of the site."""
    from mkdocs.structure.files import File

    pages = {name: root_page(source) for name, source in ROOT_PAGES.items() if (REPOSITORY / source).exists()}
    pages["configuration.md"] = configuration_page()
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def root_page(name: str) -> str:
    """Return the text of a file at the root, with its links rewritten for the site."""
    text = (REPOSITORY / name).read_text()
    text = re.sub(r"\]\(docs/", "](", text)
    for page, source in ROOT_PAGES.items():
        text = text.replace(f"]({source}", f"]({page}")
    # Folders of the repository are no pages.
    return re.sub(r"\[([^]]*)\]\([\w/]+/\)", r"`\1`", text)


def configuration_page() -> str:
    """Return the configuration reference as Markdown: root configurations first, then every group with its options."""
    groups = sorted(path for path in CONF.iterdir() if path.is_dir())
    parts = [
        "# Configuration reference",
        "This page is made from the files in `conf/`: every key, its default and its comment. `group=option` on a "
        "command line chooses an option, `key=value` sets a key, and `+key=value` adds a key that has no default. "
        "`???` means that a value is required, `null` that nothing is set. A misspelled key is refused, and the "
        "message names the nearest valid one.",
        "Groups: " + ", ".join(f"[`{group.name}`](#{group.name})" for group in groups) + ".",
    ]
    for name, command in COMMANDS.items():
        file = CONF / f"{name}.yaml"
        parts += [f"## `{command}` {{#{name}-yaml}}", header(file), defaults_line(file), table(keys(file))]
    for group in groups:
        parts.append(f"## {group.name} {{#{group.name}}}")
        for option in sorted(group.glob("*.yaml")):
            parts += [f"### `{group.name}={option.stem}`".replace("`experiment=", "`+experiment=")]
            parts += [header(option), defaults_line(option), table(keys(option))]
    return "\n\n".join(part for part in parts if part) + "\n"


def header(file: Path) -> str:
    """Return the comment at the top of a file; indented lines of it become code."""
    lines = []
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line[2:])
    return re.sub(r"(?m)^((?: {4,}).*(?:\n {4,}.*)*)", lambda block: f"\n{block[1]}\n", "\n".join(lines))


def defaults_line(file: Path) -> str:
    """Return one line that lists the options a file composes by default."""
    chosen = []
    for entry in yaml.safe_load(file.read_text()).get("defaults", ()):
        if isinstance(entry, str):
            chosen += [] if entry == "_self_" else [entry]
        else:
            ((group, option),) = entry.items()
            if "job_logging" not in group:
                chosen.append(f"{group.removeprefix('override ')}={option}")
    return "Composes " + ", ".join(f"`{one}`" for one in chosen) + "." if chosen else ""


def keys(file: Path) -> Iterator[Key]:
    """Return every key of a YAML file, except Hydra's own."""
    text = file.read_text()
    lines = text.splitlines()
    first = next((number for number, line in enumerate(lines) if line and not line.startswith("#")), len(lines))
    top = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    # A comment that touches the first key is the header of the file.
    begin = top if top < first else first

    def comment(line: int, end: int) -> str:
        above = line
        while above > begin and lines[above - 1].strip().startswith("#"):
            above -= 1
        behind = re.search(r"(?:^|\s)#\s(.*)$", lines[end])
        words = [one.strip().lstrip("#").strip() for one in lines[above:line]]
        return " ".join([*words, *([behind[1]] if behind else [])])

    def walk(node: yaml.MappingNode, prefix: str) -> Iterator[Key]:
        for key, value in node.value:
            if not prefix and key.value in ("defaults", "hydra"):
                continue
            path = prefix + key.value
            nested = isinstance(value, yaml.MappingNode) and not value.flow_style and value.value
            if nested:
                yield Key(path, "", comment(key.start_mark.line, key.start_mark.line))
                yield from walk(value, path + ".")
                continue
            shown = text[value.start_mark.index : value.end_mark.index].strip()
            yield Key(path, " ".join(shown.split()), comment(key.start_mark.line, value.start_mark.line))

    root = yaml.compose(text)
    if isinstance(root, yaml.MappingNode):
        yield from walk(root, "")


def table(rows: Iterator[Key]) -> str:
    """Return a Markdown table of keys; empty if there are none."""
    lines = [
        f"| `{row.path}` | {_code(row.default)} | {_cell(row.comment)} |"
        for row in rows
        if row.path.rpartition(".")[2] not in ("_target_", "_partial_") and (row.default or row.comment)
    ]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *lines]) if lines else ""


def _code(text: str) -> str:
    return f"`{_cell(text)}`" if text else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;") if "`" not in text else text.replace("|", "\\|")
