"""Shell completion with argcomplete: subcommands, keys, groups and their options."""

from __future__ import annotations

import argparse
from typing import Any

import argcomplete

from recsys.cli.commands import COMMANDS
from recsys.cli.reference import groups, keys
from recsys.core.conf_folder import conf_folder


def complete() -> None:
    """Answer the shell and exit; argcomplete passes the words through the environment."""
    parser = argparse.ArgumentParser("recsys", add_help=False)
    commands = parser.add_subparsers(dest="command")
    for name, command in COMMANDS.items():
        words = commands.add_parser(name, add_help=False).add_argument("words", nargs="*")
        words.completer = _Words(command.config_name)  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, always_complete_options=False)


class _Words:
    def __init__(self, config_name: str) -> None:
        self._file = conf_folder() / f"{config_name}.yaml"

    def __call__(self, prefix: str, **_: Any) -> list[str]:
        plus = "+" if prefix.startswith("+") else ""
        found = [f"{plus}{key.name}=" for key in keys(self._file)]
        for group in groups(self._file):
            added = "+" if group.name == "experiment" else plus
            found += [f"{added}{group.name}={option}" for option in group.options]
        return [word for word in found if word.startswith(prefix)]
