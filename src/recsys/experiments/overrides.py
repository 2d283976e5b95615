"""Words of a command line: Hydra's options, and `KEY=VALUE` as people type it, which becomes what Hydra reads."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from hydra.errors import HydraException

from recsys.core.errors import UserError
from recsys.core.schema import FEATURE_SETTINGS, OWNERS
from recsys.experiments.key_hints import elsewhere, near

# Hydra's option for a folder of options outside `conf/`.
CONFIG_DIR = ("--config-dir", "-cd")
_MULTIRUN = ("-m", "--multirun")
_CFG = ("--cfg", "-c")
_WITH_VALUE = (*CONFIG_DIR, *_CFG, "--package", "-p", "--experimental-rerun", "--info", "-i")
_ALONE = (*_MULTIRUN, "--resolve", "--run", "-r", "--hydra-help", "--version", "--shell-completion", "-sc")
# Last parts of keys whose values are texts, mostly paths: every character stands for itself.
_TEXT = {
    "root", "run", "dir", "subdir", "out", "store", "users", "items", "file", "folder", "cache", "html", "sweep",
    "warm_start", "against", "state", "events", "changes", "allow", "deny", "path", "save_dir", "dirpath", "release",
    "version", "alias", "why", "by", "revision", "time_format",
}  # fmt: skip
# Keys below which a text in brackets is a list.
_LISTS = ("data.files.", "data.header.")
# A setting of a column whose name Hydra's grammar does not allow in a key.
_FEATURE = re.compile(
    rf"(\+*)(data\.features\.(?:{'|'.join(OWNERS)}))\.([^=]*[^\w-].*|\d+[A-Za-z_]\w*)\.({'|'.join(FEATURE_SETTINGS)})=(.*)",
    re.DOTALL,
)
# Combinations of a multirun that are checked before the first one starts.
_MOST_COMBINATIONS = 64


@dataclass(frozen=True)
class Words:
    """Words of a command line.

    Attributes:
        options: options of Hydra, with their values.
        overrides: `KEY=VALUE` and `GROUP=OPTION`.
    """

    options: list[str]
    overrides: list[str]

    @property
    def is_multirun(self) -> bool:
        """True if several values of a key mean several runs."""
        return any(option in _MULTIRUN for option in self.options)


def split_words(
    arguments: Sequence[str],
    names: Callable[[Sequence[str]], Mapping[str, str]],
    allowed: Sequence[str] | None = None,
) -> Words:
    """Separate Hydra's options from overrides.

    Args:
        arguments: words of the command line.
        names: for hints, the start of what to type for each name: of keys, groups and options of groups. It gets the
            arguments.
        allowed: options that the command takes; None for all of Hydra's.

    Raises:
        UserError: If a word is neither. The message says what to type.
    """
    with_value = _WITH_VALUE if allowed is None else allowed
    found: list[str] = []
    overrides: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name in with_value:
            given = [] if equals else words[:1]
            if name in _CFG and (value if equals else "".join(given)) not in ("job", "hydra", "all"):
                raise UserError(f"{name}: expected {name} job, which shows the configuration")
            found += [word, *given]
            words = words[len(given) :]
        elif not word.strip():
            raise UserError("found an empty word, expected KEY=VALUE")
        elif allowed is None and word in _ALONE:
            found.append(word)
        elif word.startswith("-"):
            raise UserError(_option(word, words, names(arguments)))
        elif equals and not name.strip("+~ "):
            raise UserError(f"{word}: expected KEY=VALUE without blanks around =")
        elif not equals and not word.startswith("~"):
            if overrides and overrides[-1] == arguments[-len(words) - 2]:
                _refuse_blank(overrides[-1], word, is_multirun=any(option in _MULTIRUN for option in arguments))
            raise UserError(_plain_word(word, words, names(arguments)))
        else:
            overrides.append(f"{name.strip()}{equals}{value}")
    return Words(found, overrides)


def _option(word: str, after: Sequence[str], names: Mapping[str, str]) -> str:
    name, equals, value = re.sub(r"^-+", "", word).partition("=")
    keys = [key for key, start in names.items() if start.endswith("=")]
    same = sorted((key for key in keys if key.rpartition(".")[2] == name), key=len)
    known = [name] if name in keys or "." in name else elsewhere(name) or same
    key = known[0] if known else near(name, keys)
    if key is None:
        return f"{word}: no such option; settings are KEY=VALUE without --"
    if not equals:
        value = after[0] if after and "=" not in after[0] and not after[0].startswith("-") else "VALUE"
    return f"{word}: expected {shown(f'{key}={value}')} (settings have no --)"


def _refuse_blank(before: str, word: str, *, is_multirun: bool) -> None:
    """Refuse a word that probably belongs to the value of the word before."""
    _, key, value = split_override(before)
    if not value or (value.endswith(",") and is_multirun):
        raise UserError(f"{before} {word}: expected {shown(before + word)} without blanks")
    is_path = key.rpartition(".")[2] in _TEXT and not Path(value).exists()
    if value[-1] in ",;:&" or value[0] in "[{" or (is_path and not Path(word).exists()):
        raise UserError(f"{before} {word}: expected {shown(f'{before} {word}')}, in quotes, if the value has a blank")


def _plain_word(word: str, after: Sequence[str], names: Mapping[str, str]) -> str:
    following = after[0] if after else ""
    if following == "=" and after[1:]:
        return f"{word} = {after[1]}: expected {shown(f'{word}={after[1]}')} without blanks"
    if following.startswith("="):
        return f"{word} {following}: expected {shown(f'{word}{following}')} without blanks"
    start = names.get(word.lstrip("+"), "")
    if (start.endswith("=") or "." in word) and following and "=" not in following and following[0] not in "-+~":
        return f"{word} {following}: expected {shown(f'{word}={following}')}"
    if start:
        return f"{word}: expected {start}{'VALUE' if start.endswith('=') else ''}"
    key, colon, value = word.partition(":")
    if colon and names.get(key, "").endswith("="):
        return f"{word}: expected {shown(f'{key}={value}')}"
    if Path(word).is_dir():
        return f"{word}: expected KEY=VALUE, such as data=parquet data.root={shown(word)}"
    found = near(word, names)
    return f"{word}: expected KEY=VALUE" + (f"; did you mean {names[found]}?" if found else "")


def split_override(word: str) -> tuple[str, str, str | None]:
    """Return the sign (`+`, `++`, `~` or none), the key and the value of an override; None if it has no value."""
    match = re.fullmatch(r"([+~]*)([^=]*)(?:=(.*))?", word, re.DOTALL)
    assert match is not None
    return match[1], match[2], match[3]


def quoted(text: str) -> str:
    """Return `text` as Hydra's override grammar takes it literally."""
    # Backslashes stand for themselves, except before a quote.
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text) + "'"


def shown(word: str) -> str:
    """Return a word as a shell takes it."""
    return word if re.fullmatch(r"[\w@%+=:,./~\[\]{}<>|-]*", word) else shlex.quote(word)


def literal(word: str, is_multirun: bool = False) -> str:
    """Return an override in Hydra's grammar: what a path or text holds stands for itself.

    Args:
        word: override as typed.
        is_multirun: whether commas separate the values of several runs.

    Raises:
        UserError: If the grammar does not allow the value. The message says what to type.
    """
    if feature := _FEATURE.fullmatch(word):
        return _of_feature(word, feature)
    sign, key, value = split_override(word)
    if sign.startswith("~") or value is None or not value or "${" in value or value == "null":
        return word
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return word
    parsed = _parsed(word)
    as_typed = f"{sign}{key}={quoted(value)}"
    if value != value.strip():
        # Hydra takes off blanks, which a shell keeps only in quotes.
        return as_typed
    # A hook is one text, or a list of words.
    texts: Collection[str] = _TEXT if value[0] == "[" else {*_TEXT, "notify"}
    if value[0] == "[" and key.startswith(_LISTS):
        texts = ()
    if key.rpartition(".")[2] in texts and not key.startswith("data.features."):
        if value.startswith("~/"):
            return f"{sign}{key}={quoted(str(Path(value).expanduser()))}"
        if parsed is not None and parsed.value() == value:
            return word
        if parsed is not None and is_multirun and parsed.is_sweep_override() and not Path(value).exists():
            return word
        return as_typed
    if parsed is None:
        if (mapping := _from_json(value)) is not None:
            return f"{sign}{key}={mapping}"
        if re.fullmatch(r"\[[^\[\]{}'\"]+\]", value):
            # A shell has removed the quotes around the texts of a list.
            return f"{sign}{key}=[{','.join(quoted(text.strip()) for text in value[1:-1].split(','))}]"
        if value[0] in "[{" or ("," in value and re.search(r"\w", value)):
            raise UserError(
                f"{word}: not a value that Hydra's grammar reads; texts with special characters are quoted twice, such "
                f"as {key}=\"['a=b','c d']\""
            )
        return as_typed
    if parsed.is_sweep_override() and not is_multirun:
        point = f"; decimals have a point: {key}={value.replace(',', '.')}" if re.fullmatch(r"0,\d+", value) else ""
        raise UserError(f"{word}: several values need -m, which runs each of them{point}")
    return word


def _of_feature(word: str, feature: re.Match[str]) -> str:
    """Return the setting of a column as a mapping, in which more characters are allowed than in a key."""
    sign, section, column, setting, value = feature.groups()
    mapping = f"{sign}{section}={{{_as_key(column)}:{{{setting}:{value}}}}}"
    if _parsed(mapping) is None:
        raise UserError(
            f"{word}: the command line cannot name the column '{column}'; a file DIR/experiment/NAME.yaml can, which "
            f"--config-dir DIR +experiment=NAME adds"
        )
    return mapping


def _from_json(value: str) -> str | None:
    """Return a JSON object in Hydra's grammar, which has no quotes around keys; None if the value is none."""
    try:
        content = json.loads(value)
    except ValueError:
        return None
    return _in_grammar(content) if isinstance(content, dict) else None


def _as_key(name: str) -> str:
    return re.sub(r"([\\()\[\]{}:=, ])", r"\\\1", name)


def _in_grammar(content: Any) -> str:
    if isinstance(content, dict):
        return "{" + ",".join(f"{_as_key(name)}:{_in_grammar(value)}" for name, value in content.items()) + "}"
    if isinstance(content, list):
        return f"[{','.join(map(_in_grammar, content))}]"
    return quoted(content) if isinstance(content, str) else json.dumps(content)


def _parsed(word: str) -> Override | None:
    try:
        override = OverridesParser.create().parse_override(word)
        override.value()
    except HydraException:
        return None
    return override


def combinations(overrides: Sequence[str], is_group: Any) -> list[list[str]]:
    """Return the overrides of the runs of a multirun: every combination of options, and every value of a key once.

    Args:
        overrides: overrides whose values may be several.
        is_group: tells whether a word chooses an option of a group.
    """
    values = [_values(word) for word in overrides]
    options = [found if is_group(word) else found[:1] for word, found in zip(overrides, values, strict=True)]
    runs = [list(run) for run in itertools.islice(itertools.product(*options), _MOST_COMBINATIONS)]
    for place, (word, found) in enumerate(zip(overrides, values, strict=True)):
        if not is_group(word):
            runs += [[*runs[0][:place], other, *runs[0][place + 1 :]] for other in found[1:_MOST_COMBINATIONS]]
    # A sweep that only its sweeper understands, such as an interval, has no value here.
    return [[word for word in run if word] for run in runs]


def _values(word: str) -> list[str]:
    parsed = _parsed(word)
    if parsed is None or not parsed.is_sweep_override():
        return [word]
    if isinstance(parsed.value(), ChoiceSweep | RangeSweep):
        sign, key, _ = split_override(word)
        return [f"{sign}{key}={value}" for value in parsed.sweep_string_iterator()]
    return [""]
