"""Check of the words of a command: what Hydra gets, and what to type instead of a word that nothing reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recsys.core.errors import UserError
from recsys.core.renamed_keys import renamed_override
from recsys.experiments.conf_files import (
    CONF,
    commands_with,
    composed,
    groups,
    initialized,
    options,
    options_with,
    readable,
    reference,
    search_path,
    usual,
    without_hydra,
)
from recsys.experiments.config_check import UnknownKeyError, check
from recsys.experiments.key_hints import hint, keys_below
from recsys.experiments.overrides import combinations, literal, shown, split_override, split_words


def checked(config_name: str, arguments: Sequence[str], allowed: Sequence[str] | None = None) -> list[str]:
    """Return the arguments of a command as Hydra takes them.

    Keys need no `+`: it is added to those that the files in `conf/` do not have, and removed from others. Values of
    keys that are paths or texts may hold any character.

    Args:
        config_name: name of a file in `conf/`.
        arguments: `key=value`, and options of Hydra.
        allowed: options that are allowed, which become overrides; None for all of Hydra's, which stay.

    Raises:
        UserError: If the overrides do not compose, or a key is unknown. The message says what to type.
    """
    command = _Command(config_name, search_path(arguments))
    words = split_words(arguments, command.names_for_hints, allowed)
    overrides = [literal(word, words.is_multirun) for word in words.overrides]
    if message := renamed_override(overrides):
        raise UserError(message)
    try:
        with initialized():
            overrides = command.checked(overrides)
    except UnknownKeyError as error:
        raise UserError(command.with_word(error, words.overrides)) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(readable(error)) from error
    if allowed is not None:
        return [*overrides, *command.path]
    return [*words.options, *(word for word in words.overrides if "hydra.searchpath" in word), *overrides]


# Sections of `recsys train` all of whose keys are read.
_SECTIONS = ("model", "history", "evaluation")


class _Command:
    def __init__(self, name: str, path: list[str]) -> None:
        self.name, self.path, self.groups = name, path, groups(path)
        self._usual = usual(name)
        self._choices = self._usual.hydra.runtime.choices

    def checked(self, overrides: list[str]) -> list[str]:
        for word in overrides:
            self._refuse_deletion(word)
        chosen = [self._option(word) if self._is_group(word) else word for word in overrides]
        chosen = [word for word in chosen if "hydra.searchpath" not in word]
        # A launcher of Hydra has keys too.
        kinds = [word for word in chosen if self._is_group(word) or word.startswith("hydra/")]
        runs = combinations(kinds, self._is_group)
        bases = [self._composed(run) for run in runs]
        signed = [word if self._is_group(word) else self._signed(word, bases) for word in chosen]
        for run in combinations(signed, self._is_group):
            config = self._composed(run)
            known = reference(self.name, config.hydra.runtime.choices, search_path=self.path)
            check(without_hydra(config), known)
        return signed

    def names_for_hints(self, arguments: Sequence[str]) -> dict[str, str]:
        """Return the start of what to type for each name: of keys, groups and options of groups."""
        chosen = [word for word in arguments if "=" in word and self._is_group(word)]
        try:
            with initialized():
                config = self._composed([self._option(word) for word in chosen])
        except (HydraException, OmegaConfBaseException, UserError):
            config = self._usual
        listed = [group for group in self._choices if group in self.groups]
        if self.name == "train":
            listed.append("experiment")
        names = {name: f"{'+' * (group == 'experiment')}{group}={name}" for group in listed for name in options(group)}
        return names | {key: f"{key}=" for key in [*keys_below(without_hydra(config)), *listed]}

    def with_word(self, error: UnknownKeyError, words: Sequence[str]) -> str:
        """Return the message of an unknown key, with the word to type instead of the one that was given."""
        key, typed = error.key, None
        for word in words:
            sign, name, value = split_override(word)
            if name == key:
                if other := self._of_other_option(key, value or "", words):
                    return other
                typed = f"~{error.found}" if sign.startswith("~") else f"{error.found}={value}"
        if error.found is not None:
            return f"{error} Type {shown(typed)}" if typed else str(error)
        group = key.partition(".")[0]
        if group in self.groups and group not in self._choices and (where := commands_with(group)):
            return f"{error}; the group '{group}' belongs to {', '.join(f'recsys {name}' for name in where)}"
        return str(error) if "; " in str(error) else f"{error}; {self._shown_name} --help lists the keys"

    @property
    def _shown_name(self) -> str:
        return f"recsys {self.name.replace('_', '-')}"

    def _composed(self, words: list[str]) -> DictConfig:
        return composed(self.name, *self.path, *words) if words else self._usual

    def _is_group(self, word: str) -> bool:
        _, key, value = split_override(word)
        return key.partition("@")[0] in self.groups and (value is None or value[:1] not in ("{", "'", '"'))

    def _option(self, word: str) -> str:
        """Return the choice of an option with the sign that it needs."""
        sign, key, value = split_override(word)
        if sign.startswith("~") or "@" in key:
            return word
        if key in self._choices:
            if value is None or re.fullmatch(r"[-+.\d]*\d|null|true|false", value, re.IGNORECASE):
                raise UserError(f"{word}: expected the name of an option; valid: {', '.join(options(key))}")
            return f"{key}={value}"
        places = sorted(place for place in self._choices if place.startswith(f"{key}@"))
        if places:
            raise UserError(f"{word}: expected " + " or ".join(f"{place}={value}" for place in places))
        if key == "experiment" and self.name == "train":
            return f"+{key}={value}"
        if not (CONF / key).is_dir():
            return word
        where = ", ".join(f"recsys {name}" for name in commands_with(key))
        raise UserError(f"{word}: {self._shown_name} has no group '{key}'; it belongs to {where or 'no command'}")

    def _refuse_deletion(self, word: str) -> None:
        """Refuse to delete a key that the command reads in any case."""
        sign, key, _ = split_override(word)
        section = key.partition(".")[0]
        if sign != "~" or not (key == section or section in _SECTIONS) or not _has(self._usual, key):
            return
        places = [key] if key in self._choices else [place for place in self._choices if place.startswith(f"{key}@")]
        others = f"; {places[0]}=NAME chooses another option: {', '.join(options(key))}" if places else ""
        raise UserError(f"{word}: {self._shown_name} needs it{others or f'; {key}=VALUE replaces it'}")

    def _signed(self, word: str, bases: Sequence[DictConfig]) -> str:
        """Return an override of a key with the sign that it needs: none for a key that exists."""
        sign, key, value = split_override(word)
        if sign == "++" or key.startswith("hydra/"):
            return word
        known = all(_has(base, key) for base in bases)
        if sign == "~" or (key.startswith("hydra.") and not sign):
            if not known:
                found, text = hint(key, bases[0])
                raise UnknownKeyError(key, found=found, message=f"unknown configuration key '{key}'{text}")
            return word
        # A mapping may hold new keys.
        return f"{key}={value}" if known and not (value or "").startswith("{") else f"++{key}={value}"

    def _of_other_option(self, key: str, value: str, words: Sequence[str]) -> str | None:
        """Return the message for a key that another option of its group has."""
        for name in [key, key.replace("_", ".", 1)]:
            group, _, below = name.partition(".")
            if not below or group not in self._choices or group not in self.groups:
                continue
            found = options_with(group, below)
            if not found:
                continue
            given = next(
                # Of several choices the last one holds.
                (word for word in reversed(words) if word.startswith(f"{group}=")),
                f"{group}={self._choices[group]}",
            )
            fitting = [option for option in found if group == "data" and _holds(Path(value), option)]
            usual = [option for option in ("parquet", self._usual.hydra.runtime.choices[group]) if option in found]
            best = (fitting or usual or found)[0]
            return (
                f"unknown configuration key '{key}': {given} has no '{below}'; {', '.join(found)} "
                f"{'has' if len(found) == 1 else 'have'} it. Type {group}={best} {shown(f'{name}={value}')}"
            )
        return None


def _has(config: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent, throw_on_missing=False, default=None) if parent else config
    return isinstance(node, DictConfig) and name in map(str, node)


def _holds(folder: Path, option: str) -> bool:
    """True if a folder has tables in the format of an option of `data`."""
    return folder.is_dir() and any(folder.glob(f"interactions*.{option}*"))
