"""Names of runs: what differs in them, where the name of the folder is only a number or a time. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

# File of a run folder with the overrides of its command.
OVERRIDES = ".hydra/overrides.yaml"
# Copy of it from the last start that was accepted: Hydra writes the file even if the run folder is then refused.
ACCEPTED = ".hydra/accepted.yaml"
# Folders that Hydra names: the number of a run of a multirun, or the time of its start.
_UNNAMED = re.compile(r"\d+|\d{4}-\d\d-\d\d[_T]\d\d-\d\d-\d\d")
# Groups that say nothing about a variant.
_ALIKE = ("data", "split", "logger", "test")
# Longer names would not fit into pictures.
_LONGEST = 60


def read_overrides(folder: Path) -> dict[str, str]:
    """Return the overrides of the command that trained into a folder, {key: value}; choices of groups are included."""
    overrides = _read(folder / ACCEPTED) or _read(folder / OVERRIDES) or []
    pairs = (str(override).partition("=") for override in overrides)
    return {key.lstrip("+"): value for key, _, value in pairs}


def name_of(folder: Path) -> str:
    """Return the name of a run that begins: the overrides that its multirun or sweep varies, or those of its command.

    A folder with a name of its own keeps it.
    """
    overrides = {k: v for k, v in read_overrides(folder).items() if k.partition(".")[0] not in _ALIKE}
    varied = _varied(folder.parent)
    text = describe({key: overrides[key] for key in varied or overrides if key in overrides})
    return text if text and _UNNAMED.fullmatch(folder.name) else folder.name


def group_of(folder: Path) -> str | None:
    """Return the name of the multirun, sweep or run with variants that a run belongs to; None for a single run."""
    if folder.parent.name == "variants":
        return folder.parent.parent.name
    return folder.parent.name if _varied(folder.parent) else None


def names_of(runs: Sequence[tuple[str, Path, Mapping[str, str]]]) -> list[str]:
    """Return the names of runs that are shown together, all distinct if the given names are.

    Args:
        runs: name, folder and overrides of each run.
    """
    names = []
    for (name, folder, _), differs in zip(runs, differences([run[2] for run in runs]), strict=True):
        text = describe({k: v for k, v in differs.items() if k.partition(".")[0] not in _ALIKE})
        names.append(text if text and _UNNAMED.fullmatch(folder.name) else name)
    return [
        f"{run[0]}: {text}" if names.count(text) > 1 and text != run[0] else text
        for run, text in zip(runs, names, strict=True)
    ]


def differences(overrides: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return for each run its overrides whose values not all runs share."""
    keys = {key: None for one in overrides for key in one}
    varied = [key for key in keys if len({one.get(key) for one in overrides}) > 1]
    return [{key: one[key] for key in varied if key in one} for one in overrides]


def describe(overrides: Mapping[str, str]) -> str:
    """Return overrides as short text such as `dim=32 user_tower=mean`; the end of a key stands for the key."""
    text = " ".join(f"{short(key, overrides)}={value}" for key, value in overrides.items())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def short(key: str, keys: Iterable[str]) -> str:
    """Return the shortest end of a dotted key that no other key has."""
    others, parts = [other for other in keys if other != key], key.split(".")
    for length in range(1, len(parts)):
        end = ".".join(parts[-length:])
        if not any(other == end or other.endswith(f".{end}") for other in others):
            return end
    return key


def _varied(folder: Path) -> list[str]:
    """Return the keys that the multirun or the sweep of a folder varies; empty if it holds neither."""
    if (folder / "sweep.yaml").exists():
        parameters = (_read(folder / "sweep.yaml") or {}).get("parameters") or {}
        return [name for name, node in parameters.items() if "value" not in node and len(node.get("values", "12")) > 1]
    hydra = (_read(folder / "multirun.yaml") or {}).get("hydra") or {}
    words = [*(hydra.get("overrides") or {}).get("task", []), *_params(hydra)]
    return [key.lstrip("+") for key, _, value in (word.partition("=") for word in words) if _is_sweep(value)]


def _params(hydra: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in ((hydra.get("sweeper") or {}).get("params") or {}).items()]


def _is_sweep(value: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(f"key={value}").is_sweep_override()
    except HydraException:
        return False


def _read(file: Path) -> Any:
    return yaml.safe_load(file.read_text()) if file.exists() else None
