"""Read keys, defaults and comments from the files in `conf/` without Hydra."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recsys.core.conf_folder import conf_folder

_KEY = re.compile(r"(?P<indent> *)(?P<name>[A-Za-z_]\w*):(?: +(?P<value>.*))?$")
_GROUP = re.compile(r" *- *(?:override +)?/?(?P<group>\w+)(?:@[\w.]+)?: *(?P<option>\w+)")
# Sections that belong to Hydra.
_HIDDEN = ("defaults", "hydra")


@dataclass(frozen=True)
class Key:
    """One key of a configuration file.

    Attributes:
        name: dotted name.
        default: value as written in the file; empty if the key is a section.
        comment: comment above the key or behind its value; empty if there is none.
    """

    name: str
    default: str
    comment: str


@dataclass(frozen=True)
class Group:
    """One configuration group of a command.

    Attributes:
        name: name of the group, the folder in `conf/`.
        default: option that the command takes by default; empty if it takes none.
        options: names of the options.
    """

    name: str
    default: str
    options: list[str]


def keys(file: Path) -> list[Key]:
    """Return the keys of a configuration file, in its order."""
    found: list[Key] = []
    comment: list[str] = []
    parents: list[tuple[int, str]] = []
    for line, text in enumerate(_joined(file.read_text().splitlines())):
        stripped = text.strip()
        if stripped.startswith("#"):
            comment.append(stripped.lstrip("# "))
            continue
        match = _KEY.match(text)
        if not match:
            comment = []
            continue
        indent = len(match["indent"])
        parents = [parent for parent in parents if parent[0] < indent]
        name = ".".join([*(parent[1] for parent in parents), match["name"]])
        value, _, behind = (match["value"] or "").partition(" #")
        # The first comment of a file describes the file.
        above = [] if line == len(comment) else comment
        if name.split(".")[0] not in _HIDDEN and match["name"] not in ("_target_", "_partial_"):
            found.append(Key(name, value.strip(), " ".join([*above, behind.strip()]).strip()))
        comment = []
        parents.append((indent, match["name"]))
    return found


def groups(file: Path) -> list[Group]:
    """Return the groups in the defaults list of a configuration file, and groups that a command line can add."""
    listed: dict[str, str] = {}
    for text in file.read_text().splitlines():
        match = _GROUP.fullmatch(text.split(" #")[0].rstrip())
        if match and (conf_folder() / match["group"]).is_dir():
            listed.setdefault(match["group"], match["option"])
    if file.stem == "train":
        listed["experiment"] = ""
    return [Group(name, default, options(name)) for name, default in listed.items()]


def options(group: str) -> list[str]:
    """Return the names of a group's options."""
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))


def title(file: Path) -> str:
    """Return the first sentence of a file's first comment."""
    lines = []
    for text in file.read_text().splitlines():
        if text.startswith("# @package"):
            continue
        if not text.startswith("#"):
            break
        lines.append(text.lstrip("# "))
    return re.split(r"(?<=[.:]) |:$", " ".join(lines), maxsplit=1)[0].rstrip(":")


def _joined(lines: list[str]) -> Iterator[str]:
    """Join the lines of a value in brackets."""
    held = ""
    for line in lines:
        text = f"{held} {line.strip()}" if held else line.rstrip()
        bare = text.split(" #")[0] if not text.lstrip().startswith("#") else ""
        if bare.count("[") + bare.count("{") > bare.count("]") + bare.count("}"):
            held = text
        else:
            held = ""
            yield text
