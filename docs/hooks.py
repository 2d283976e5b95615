"""Hooks of the documentation site: pages that are made from other files when the site is built."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "src"))

from recsys.cli.commands import COMMANDS, Command  # noqa: E402
from recsys.cli.help import overview  # noqa: E402
from recsys.cli.reference import Key, keys  # noqa: E402
from recsys.core.conf_folder import conf_folder  # noqa: E402

# Pages of the site that are files at the root of the repository.
ROOT_PAGES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
COMPLETION = """## Shell completion

For bash and zsh, add this line to `~/.bashrc` or `~/.zshrc`; it completes commands, keys, groups and their options:

    eval "$(register-python-argcomplete recsys)"

For fish:

    register-python-argcomplete --shell fish recsys > ~/.config/fish/completions/recsys.fish
"""


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the files of the site."""
    from mkdocs.structure.files import File

    pages = {page: root_page(source) for page, source in ROOT_PAGES.items()}
    pages |= {"configuration.md": configuration_page(), "commands.md": commands_page()}
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def root_page(name: str) -> str:
    """Return the text of a file at the root, with its links rewritten for the site."""
    text = re.sub(r"\]\(docs/", "](", (REPOSITORY / name).read_text())
    for page, source in ROOT_PAGES.items():
        text = text.replace(f"]({source}", f"]({page}")
    # Folders of the repository are no pages.
    return re.sub(r"\[([^]]*)\]\([\w/]+/\)", r"`\1`", text)


def commands_page() -> str:
    """Return the command reference as Markdown, from the texts that `recsys --help` prints."""
    parts = [
        "# Command reference",
        "This page is made from the help texts. `recsys COMMAND --help` prints the same with every key, and "
        "`recsys COMMAND --help GROUP` the keys of a configuration group's options. Every command exits with 0 on "
        "success, and on failure with a message and another code.",
        f"```text\n{overview()}\n```",
    ]
    return "\n\n".join([*parts, *map(_command, COMMANDS.values()), COMPLETION])


def _command(command: Command) -> str:
    doc = importlib.import_module(f"recsys.cli.{command.config_name}").__doc__ or ""
    parts = [f"## recsys {command.name}", f"    recsys {command.name} {command.usage}", doc.strip()]
    extra = "" if command.extra == "all" else f" Needs the extra `{command.extra}`."
    parts.append(f"[Keys and defaults](configuration.md#{command.config_name}-yaml).{extra}")
    return "\n\n".join(parts)


def configuration_page() -> str:
    """Return the configuration reference as Markdown: the keys of each command, then every group with its options."""
    folder = conf_folder()
    groups = sorted(path for path in folder.iterdir() if path.is_dir())
    parts = [
        "# Configuration reference",
        "This page is made from the files in `conf/`: every key, its default and its comment. `group=option` on a "
        "command line chooses an option, `key=value` sets a key, and `+key=value` adds a key without a default. "
        "`???` means that a value is required, `null` that nothing is set. A misspelled key is refused, and the "
        "message names the nearest valid one.",
        "Groups: " + ", ".join(f"[`{group.name}`](#{group.name})" for group in groups) + ".",
    ]
    for command in COMMANDS.values():
        file = folder / f"{command.config_name}.yaml"
        parts += [f"## `recsys {command.name}` {{#{file.stem}-yaml}}", *_file(file)]
    for group in groups:
        parts.append(f"## {group.name} {{#{group.name}}}")
        for option in sorted(group.glob("*.yaml")):
            plus = "+" if group.name == "experiment" else ""
            parts += [f"### `{plus}{group.name}={option.stem}`", *_file(option)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _file(file: Path) -> list[str]:
    return [header(file), defaults_line(file), table(keys(file))]


def header(file: Path) -> str:
    """Return the comment at the top of a file; indented lines of it become code."""
    lines = []
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            # Brackets would be links.
            lines.append(line[2:] if line.startswith("#     ") else line[2:].replace("[", "\\["))
    return re.sub(r"(?m)^((?: {4,}).*(?:\n {4,}.*)*)", lambda block: f"\n{block[1]}\n", "\n".join(lines))


def defaults_line(file: Path) -> str:
    """Return one line that lists the options a file composes by default."""
    chosen = []
    for entry in (yaml.safe_load(file.read_text()) or {}).get("defaults", ()):
        if isinstance(entry, str):
            chosen += [] if entry == "_self_" else [entry]
        else:
            ((group, option),) = entry.items()
            if "job_logging" not in group:
                chosen.append(f"{group.removeprefix('override ')}={option}")
    return "Composes " + ", ".join(f"`{one}`" for one in chosen) + "." if chosen else ""


def table(rows: list[Key]) -> str:
    """Return a Markdown table of keys; empty if there are none."""
    lines = [
        f"| `{row.name}` | {f'`{_cell(row.default)}`' if row.default else ''} | {_cell(row.comment)} |"
        for row in rows
        if row.default or row.comment
    ]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *lines]) if lines else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
