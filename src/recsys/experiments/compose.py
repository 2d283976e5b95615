"""Composition of configurations. Unknown keys and wrong types are refused with what to type instead."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from recsys.core.errors import UserError, nearest
from recsys.core.trust import name_targets
from recsys.experiments.conf_files import composed, initialized, search_path, usual, without_hydra
from recsys.experiments.key_hints import keys_below
from recsys.experiments.override_check import checked
from recsys.experiments.overrides import CONFIG_DIR


def compose_command(config_name: str, arguments: list[str]) -> DictConfig:
    """Return the checked configuration of a command, outside Hydra's own start.

    Args:
        config_name: name of a file in `conf/`.
        arguments: `key=value`, and perhaps Hydra's option `--config-dir`.

    Raises:
        UserError: If the overrides do not compose, or a key is unknown.
    """
    config = without_hydra(_composed(config_name, checked(config_name, arguments, CONFIG_DIR)))
    name_targets(config)
    return config


def keys_of(config_name: str) -> list[str]:
    """Return the keys of a command's configuration, nested ones with dots."""
    return [key for key in keys_below(usual(config_name)) if not re.match(r"hydra\b", key)]


def compose_run(overrides: list[str]) -> tuple[DictConfig, dict[str, DictConfig], Path]:
    """Return what `recsys train` would run with these overrides: configuration, variants and run folder.

    Args:
        overrides: arguments of `recsys train`, without Hydra's options but `--config-dir`.

    Raises:
        UserError: If the overrides do not compose, or a key is unknown.
    """
    words = checked("train", overrides, CONFIG_DIR)
    config, folder = compose_job("train", words)
    own = [word for word in words if not re.match(r"[+~]*hydra[./]", word) or "searchpath" in word]
    return config, variants_of(config, own), folder


def compose_job(config_name: str, words: list[str]) -> tuple[DictConfig, Path]:
    """Return the configuration of a command and its folder, `hydra.run.dir`.

    Args:
        config_name: name of a file in `conf/`.
        words: checked overrides.
    """
    config = _composed(config_name, words)
    own = without_hydra(config)
    name_targets(own)
    # A copy, because the time in its path is computed once for each configuration.
    return own, Path(str(config.copy().hydra.run.dir))


def compose_training(overrides: list[str]) -> tuple[DictConfig, dict[str, DictConfig]]:
    """Return the configuration of `recsys train` with these overrides, and its variants, within another command.

    Raises:
        UserError: If the overrides do not compose, or a key is unknown.
    """
    words = checked("train", [*overrides, *search_path(HydraConfig.get().overrides.hydra)], CONFIG_DIR)
    config = without_hydra(_composed("train", words))
    name_targets(config)
    return config, variants_of(config, words)


def _composed(config_name: str, words: list[str]) -> DictConfig:
    if search_path(words):
        # Files outside `conf/` may change within this process.
        with initialized():
            return hydra.compose(config_name, overrides=words, return_hydra_config=True)
    # The check has composed the same words.
    return composed(config_name, *words)


_VARIANT_KEYS = ("overrides", "needs", "time")


def _clash(name: str, own: Sequence[str], given: Sequence[str]) -> str:
    """Return the end of an error message if the command line replaces an option that a variant has chosen."""
    chosen = {word.partition("=")[0]: word for word in own}
    for word in given:
        key = word.lstrip("+").partition("=")[0]
        if "." not in key and chosen.get(key, word) != word:
            return f"; {word} of the command line holds for every variant: leave it out, or type ~variants.{name}"
    return ""


def variants_of(config: DictConfig, given: list[str] | None = None) -> dict[str, DictConfig]:
    """Return the variants of a configuration of `train.yaml`, each composed with the overrides of the command line.

    What a variant needs of the data is the key `needs` of its configuration. Whether the data has it is decided when
    the data is open (`suitable_variants`).

    Args:
        config: composed configuration.
        given: overrides that it was composed with; None for those of the command line.

    Raises:
        UserError: If a variant does not compose.
    """
    variants = {}
    if given is None:
        command = HydraConfig.get().overrides
        given = [*command.task, *search_path(command.hydra)]
    for name, variant in config.variants.items():
        for key in variant:
            if key not in _VARIANT_KEYS:
                raise UserError(f"unknown configuration key 'variants.{name}.{key}'{nearest(key, _VARIANT_KEYS)}")
        try:
            # The command line wins over the variant.
            words = checked("train", [*variant.overrides, *given], CONFIG_DIR)
        except UserError as error:
            raise UserError(f"variants.{name}: {error}{_clash(name, variant.overrides, given)}") from error
        variants[name] = without_hydra(_composed("train", words))
        name_targets(variants[name])
        variants[name].variants = {}
        variants[name].blend = False
        variants[name].needs = [*variants[name].needs, *variant.get("needs", [])]
        if "time" in variant:
            variants[name].needs.append("|".join(f"data.time={time}" for time in variant.time))
    return variants


def check_overrides(config_name: str, arguments: list[str]) -> None:
    """Refuse arguments of a command that do not compose.

    Raises:
        UserError: If they do not compose, or a key is unknown.
    """
    checked(config_name, arguments)
