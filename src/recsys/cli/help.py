"""Help texts of `recsys`, written from docstrings and from the comments in `conf/`."""

from __future__ import annotations

import importlib
import shutil
import textwrap
from collections.abc import Sequence

from recsys.cli.commands import COMMANDS, Command
from recsys.cli.reference import Key, groups, keys, options, title
from recsys.core.conf_folder import conf_folder
from recsys.core.errors import UserError, nearest

_GRAMMAR = """
Arguments are the same for all commands:
  KEY=VALUE          set a key; lists are [a,b], nothing is null
  GROUP=OPTION       choose an option of a configuration group, such as user_tower=mean
  +experiment=NAME   add a named set of values
  ~KEY               leave a key out
  --config-dir DIR   look for options in another folder, too
  -m                 run once for each of several values: KEY=VALUE,VALUE (commands that Hydra runs)

Shell completion (bash, zsh, fish):
  eval "$(register-python-argcomplete recsys)"
"""


def overview() -> str:
    """Return the text of `recsys --help`."""
    width = max(map(len, COMMANDS))
    rows = [f"  {name:{width}}   {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "recsys: learned retrieval, from logged engagement to served recommendations",
            "",
            "usage: recsys COMMAND [KEY=VALUE ...]",
            "       recsys COMMAND --help [GROUP ...]",
            "",
            "Commands:",
            *rows,
            _GRAMMAR.rstrip(),
        ]
    )


def command_help(command: Command, words: Sequence[str] = ()) -> str:
    """Return the help text of one command.

    Args:
        command: the command.
        words: names of configuration groups whose options are to be described.

    Raises:
        UserError: If the command has no such group.
    """
    file = conf_folder() / f"{command.config_name}.yaml"
    found = groups(file)
    names = [group.name for group in found]
    wanted = [name for name in names if name in words]
    unknown = [word for word in words if word not in names]
    # Beside keys and options, or for a command that takes plain words, a word may be an argument of the command.
    if unknown and not command.words and not any("=" in word or word.startswith("-") for word in words):
        raise UserError(f"{unknown[0]}: no such group{nearest(unknown[0], names)}")
    if wanted:
        return "\n\n".join(_options_help(name) for name in wanted)
    doc = importlib.import_module(f"recsys.cli.{command.config_name}").__doc__ or ""
    parts = [f"usage: recsys {command.name} {command.usage}", doc.strip()]
    if found:
        width = max(len(group.name) for group in found)
        rows = [f"  {g.name:{width}}   {_marked(g.options, g.default)}" for g in found]
        more = f"  (recsys {command.name} --help GROUP shows the keys of its options)"
        parts.append("\n".join(["Groups, their options, and the default in brackets:", *rows, more]))
    parts.append("\n".join(["Keys:", *_key_rows(keys(file))]))
    return "\n\n".join(parts)


def _options_help(group: str) -> str:
    lines = []
    for name in options(group):
        file = conf_folder() / group / f"{name}.yaml"
        lines += [f"{group}={name}   {title(file)}", *_key_rows(keys(file), prefix=f"{group}.")]
    return "\n".join(lines)


def _marked(names: Sequence[str], default: str) -> str:
    return " ".join(f"[{name}]" if name == default else name for name in names)


def _key_rows(found: Sequence[Key], prefix: str = "") -> list[str]:
    columns = max(60, min(shutil.get_terminal_size((110, 24)).columns, 120))
    has_children = {key.name.rpartition(".")[0] for key in found}
    rows = []
    for key in found:
        if key.name in has_children and not key.comment:
            continue
        rows.append(f"  {prefix}{key.name}" + (f"={key.default}" if key.default else ""))
        rows += textwrap.wrap(key.comment, columns, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return rows
