"""The console command `recsys`: it chooses the subcommand and prints help."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from recsys.cli.commands import COMMANDS, Command
from recsys.cli.help import command_help, overview
from recsys.core.errors import UserError, nearest

_HELP = ("-h", "--help", "help")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one subcommand; exit with 1 and one line on a user's error, with 2 if there is no such subcommand.

    Args:
        arguments: subcommand and its arguments; those of the process by default.
    """
    if "_ARGCOMPLETE" in os.environ:
        from recsys.cli.completion import complete

        return complete()
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given[0] if given else "--help"
    if name in _HELP and (len(given) < 2 or given[1] not in COMMANDS):
        return print(overview())
    if name in _HELP:
        return _print_help(COMMANDS[given[1]], given[2:])
    if name == "--version":
        import recsys

        return print(f"recsys {recsys.__version__}")
    if name not in COMMANDS:
        print(f"error: recsys {name}: no such command{nearest(name, COMMANDS)}", file=sys.stderr)
        raise SystemExit(2)
    return run(name, given[1:])


def _print_help(command: Command, words: Sequence[str]) -> None:
    try:
        print(command_help(command, words))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def run(name: str, arguments: Sequence[str]) -> None:
    """Run the subcommand `name`, or print its help.

    Args:
        name: key of `COMMANDS`.
        arguments: arguments after the name.
    """
    asks_help = [word for word in arguments if word in _HELP[:2]]
    if asks_help:
        return _print_help(COMMANDS[name], [word for word in arguments if word not in asks_help])
    # Stock PyTorch on CPUs pays page faults for large new tensors; transparent huge pages halve the time of a training
    # step. The variable counts only if it is set before torch is imported.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from recsys.cli.entry import run_command

    return run_command(COMMANDS[name], list(arguments))
