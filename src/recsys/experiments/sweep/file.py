"""Reader of sweep files in W&B's format."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recsys.core.errors import UserError, nearest
from recsys.experiments.sweep.hyperband import Hyperband
from recsys.experiments.sweep.parameters import Parameter, read_parameter

METHODS = ("grid", "random", "bayes")
# W&B shows `name`, `description`, `project` and `entity` on its pages.
KEYS = ("program", "command", "method", "metric", "parameters", "early_terminate", "run_cap")
TEXTS = ("name", "description", "project", "entity")
ARGUMENTS = "${args_no_hyphens}"
# Placeholders in `command`, which are filled in as by W&B's agent.
MACROS = ("${env}", "${interpreter}", "${program}", ARGUMENTS)
_ENVIRONMENT = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")


@dataclass(frozen=True)
class Sweep:
    """Content of a sweep file.

    Attributes:
        content: content as read, for `sweep.yaml` in the folder of the sweep.
        program: program that each run starts.
        command: command of a run, with W&B's placeholders.
        method: search method: grid, random or bayes.
        metric: validation metric by which runs are compared.
        maximize: whether more is better.
        target: value of the metric at which no new runs are started; None for no such value.
        parameters: parameters in order of their names, which is the order of W&B's grid.
        hyperband: rule that stops runs early; None for no rule.
        run_cap: number of runs; None for the whole grid, or for no limit.
    """

    content: Mapping[str, Any]
    program: str
    command: tuple[str, ...]
    method: str
    metric: str
    maximize: bool
    target: float | None
    parameters: tuple[Parameter, ...]
    hyperband: Hyperband | None
    run_cap: int | None

    def arguments(self, values: Mapping[str, Any]) -> list[str]:
        """Return `KEY=value` for each parameter, as W&B's agent writes it."""
        return [f"{parameter.name}={values[parameter.name]}" for parameter in self.parameters]

    def with_more(self, overrides: Sequence[str], options: Sequence[str]) -> Sweep:
        """Return the same sweep with more overrides, which win over those of the file, and with options of Hydra.

        Args:
            overrides: overrides, KEY=value.
            options: options of Hydra such as `--config-dir`, DIR. They come after all overrides.
        """
        place = self.command.index(ARGUMENTS) + 1
        command = [*self.command[:place], *overrides, *self.command[place:], *options]
        return parse_sweep({**self.content, "command": command})

    def command_line(self, arguments: Sequence[str]) -> list[str]:
        """Return the command of one run without its run folder, which the sweep chooses."""
        meaning: dict[str, Sequence[str]] = {
            "${env}": ["/usr/bin/env"],
            "${interpreter}": [sys.executable],
            "${program}": [self.program],
            ARGUMENTS: arguments,
        }
        words: list[str] = []
        for chunk in self.command:
            if not chunk.startswith("hydra.run.dir="):
                filled = _ENVIRONMENT.sub(lambda found: os.environ.get(found[1], found[1]), chunk)
                words += meaning.get(filled, [filled])
        return words


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep file.

    Raises:
        UserError: If the file is not readable YAML, or a key or value is unknown, missing or impossible.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not a readable YAML file ({' '.join(str(error).split())})") from error
    try:
        return parse_sweep(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def parse_sweep(content: Any) -> Sweep:
    """Return the sweep that the content of a file describes.

    Raises:
        UserError: If a key or value is unknown, missing or impossible.
    """
    _check_keys(content, (*KEYS, *TEXTS), place="", required=("program", "command", "method", "metric", "parameters"))
    command = content["command"]
    if not isinstance(command, list) or ARGUMENTS not in command or "${program}" not in command:
        raise UserError(
            f"command: found {command!r}, expected a list with ${{program}} and {ARGUMENTS}: Hydra takes KEY=value"
        )
    for chunk in map(str, command):
        if chunk.startswith("${") and chunk.endswith("}") and chunk not in MACROS and not _ENVIRONMENT.match(chunk):
            raise UserError(f"command: {chunk} is not known{nearest(chunk, MACROS)}")
    if content["method"] not in METHODS:
        raise UserError(f"method: found '{content['method']}'{nearest(str(content['method']), METHODS)}")
    metric = content["metric"]
    _check_keys(metric, ("name", "goal", "target"), place="metric.", required=("name", "goal"))
    if not str(metric["name"]).startswith("val/"):
        raise UserError(
            f"metric.name: found '{metric['name']}', expected a metric of validation such as val/recall@100, because "
            f"only the winner is tested"
        )
    if metric["goal"] not in ("maximize", "minimize"):
        raise UserError(f"metric.goal: found '{metric['goal']}', expected maximize or minimize")
    target = metric.get("target")
    if target is not None and (isinstance(target, bool) or not isinstance(target, int | float)):
        raise UserError(f"metric.target: found {target!r}, expected a number")
    parameters = content["parameters"]
    if not isinstance(parameters, Mapping) or not parameters:
        raise UserError(f"parameters: found {parameters!r}, expected at least one")
    return Sweep(
        content=content,
        program=str(content["program"]),
        command=tuple(map(str, command)),
        method=content["method"],
        metric=metric["name"],
        maximize=metric["goal"] == "maximize",
        target=target,
        parameters=tuple(read_parameter(name, parameters[name]) for name in sorted(parameters, key=str)),
        hyperband=_hyperband(content["early_terminate"]) if "early_terminate" in content else None,
        run_cap=_positive_integer(content, "run_cap", place="") if "run_cap" in content else None,
    )


def _hyperband(node: Any) -> Hyperband:
    place = "early_terminate."
    _check_keys(node, ("type", "min_iter", "max_iter", "s", "eta", "strict"), place=place, required=("type",))
    if node["type"] != "hyperband":
        raise UserError(f"{place}type: found '{node['type']}', expected hyperband")
    settings: dict[str, Any] = {
        name: _positive_integer(node, name, place=place) for name in ("min_iter", "max_iter", "s") if name in node
    }
    if ("min_iter" in node) == ("max_iter" in node) or ("max_iter" in node) != ("s" in node):
        raise UserError(f"early_terminate: found {', '.join(node)}, expected min_iter, or max_iter and s")
    if "eta" in node:
        settings["eta"] = node["eta"]
        if isinstance(node["eta"], bool) or not isinstance(node["eta"], int | float) or not node["eta"] > 1:
            raise UserError(f"{place}eta: found {node['eta']!r}, expected a number above 1")
    if "strict" in node:
        settings["strict"] = node["strict"]
        if not isinstance(node["strict"], bool):
            raise UserError(f"{place}strict: found {node['strict']!r}, expected true or false")
    return Hyperband(**settings)


def _positive_integer(node: Mapping[str, Any], name: str, *, place: str) -> int:
    value = node[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{place}{name}: found {value!r}, expected a whole number of at least 1")
    return value


def _check_keys(node: Any, valid: tuple[str, ...], *, place: str, required: tuple[str, ...]) -> None:
    if not isinstance(node, Mapping):
        raise UserError(f"{place.rstrip('.') or 'sweep'}: found {node!r}, expected the keys {', '.join(valid)}")
    for key in node:
        if key not in valid:
            raise UserError(f"unknown key '{place}{key}'{nearest(str(key), valid)}")
    for key in required:
        if key not in node:
            raise UserError(f"{place}{key}: missing")
