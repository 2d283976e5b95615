"""Composition of configurations. Unknown keys and wrong types are refused with the nearest valid key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from recsys.core.conf_folder import conf_folder
from recsys.core.errors import UserError, nearest
from recsys.core.renamed_keys import renamed_override
from recsys.experiments.config_check import check

CONF = conf_folder()


def compose_command(config_name: str, overrides: list[str]) -> DictConfig:
    """Return the checked configuration of a command, outside Hydra's own start.

    Args:
        config_name: name of a file in `conf/`.
        overrides: `key=value`, and perhaps Hydra's option `--config-dir`.

    Raises:
        UserError: If the overrides do not compose, or a key is unknown.
    """
    check_overrides(config_name, overrides)
    given = [word for before, word in zip(["", *overrides], overrides, strict=False) if not _is_option(before, word)]
    with _initialized():
        return hydra.compose(config_name, overrides=[*search_path(overrides), *given])


def _is_option(before: str, word: str) -> bool:
    return word.partition("=")[0] in CONFIG_DIR or before in CONFIG_DIR


def quoted(text: str) -> str:
    """Return `text` as Hydra's override grammar takes it literally."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def keys_of(config_name: str) -> list[str]:
    """Return the keys of a command's configuration, nested ones with dots."""
    with _initialized():
        return list(_keys(hydra.compose(config_name)))


def compose_run(overrides: list[str]) -> tuple[DictConfig, dict[str, DictConfig], Path]:
    """Return what `recsys train` would run with these overrides: configuration, variants and run folder.

    Args:
        overrides: arguments of `recsys train`, without Hydra's options but `--config-dir`.

    Raises:
        UserError: If the overrides do not compose, or a key is unknown.
    """
    check_overrides("train", overrides)
    path = search_path(overrides)
    given = [word for before, word in zip(["", *overrides], overrides, strict=False) if not _is_option(before, word)]
    for word in given:
        if word.startswith("-"):
            raise UserError(f"{word}: expected KEY=VALUE")
    with _initialized():
        config = hydra.compose("train", overrides=[*path, *given], return_hydra_config=True)
        folder = Path(str(config.hydra.run.dir))
        with open_dict(config):
            del config["hydra"]
    own = [word for word in given if not re.match(r"~?\+*hydra[./]", word)]
    return config, variants_of(config, [*own, *path]), folder


def compose_training(overrides: list[str]) -> tuple[DictConfig, dict[str, DictConfig]]:
    """Return the configuration of `recsys train` with these overrides, and its variants, within another command.

    Raises:
        UserError: If the overrides do not compose, or a key is unknown.
    """
    check_overrides("train", overrides)
    given = [*overrides, *search_path(HydraConfig.get().overrides.hydra)]
    with _initialized():
        config = hydra.compose("train", overrides=given)
    return config, variants_of(config, given)


def variants_of(config: DictConfig, given: list[str] | None = None) -> dict[str, DictConfig]:
    """Return the variants of a configuration of `train.yaml`, each composed with the overrides of the command line.

    A variant with a key `time` is left out if the list there does not contain the value of `data.time`.

    Args:
        config: composed configuration.
        given: overrides that it was composed with; None for those of the command line.

    Raises:
        UserError: If a variant does not compose, or none suits the data.
    """
    variants = {}
    if given is None:
        command = HydraConfig.get().overrides
        given = [*command.task, *search_path(command.hydra)]
    for name, variant in config.variants.items():
        for key in variant:
            if key not in ("overrides", "time"):
                raise UserError(
                    f"unknown configuration key 'variants.{name}.{key}'{nearest(key, ('overrides', 'time'))}"
                )
        if config.data.time not in variant.get("time", [config.data.time]):
            continue
        # The command line wins over the variant.
        overrides = [*variant.overrides, *given]
        if problem := composition_error("train", overrides):
            raise UserError(f"variants.{name}: {problem}")
        with _initialized():
            variants[name] = hydra.compose("train", overrides=overrides)
            variants[name].variants = {}
            variants[name].blend = False
    if config.variants and not variants:
        raise UserError(f"variants: none suits data.time={config.data.time}")
    return variants


def check_overrides(config_name: str, arguments: list[str]) -> None:
    """Refuse arguments of a command that do not compose.

    Raises:
        UserError: If they do not compose, or a key is unknown.
    """
    if problem := composition_error(config_name, arguments):
        raise UserError(problem)


# Hydra's option for a folder of options outside `conf/`.
CONFIG_DIR = ("--config-dir", "-cd")
# Removed experiments -> the overrides that replace them.
REMOVED_EXPERIMENTS = {
    "in_batch": "negatives=in_batch",
    "in_batch_classic": "negatives=in_batch loss.logq=classic",
    "in_batch_uncorrected": "negatives=in_batch loss.logq=off",
    "mixed_negatives": "negatives=mixed",
    "uniform_negatives": "negatives=uniform",
    "mean_pooling": "user_tower=mean",
    "full_softmax": "loss=full_softmax negatives=none",
}


def reference(config_name: str, choices: Mapping[str, str | None], *, search_path: list[str]) -> DictConfig:
    """Return the configuration of the same groups, without experiment and overrides."""
    with _initialized():
        usual = hydra.compose(config_name, return_hydra_config=True).hydra.runtime.choices
        chosen = [f"{group}={choice}" for group, choice in choices.items() if group in _groups() and group in usual]
        return hydra.compose(config_name, overrides=[*search_path, *chosen])


def search_path(arguments: Iterable[str]) -> list[str]:
    """Return the override that adds the folders named by the arguments to Hydra's search path, if any."""
    folders: list[str] = []
    words = iter(arguments)
    for word in words:
        option, equals, given = word.partition("=")
        if option in CONFIG_DIR:
            path = Path(given if equals else next(words, ""))
            if not path.is_dir():
                raise UserError(f"--config-dir: {path} is not a folder")
            folders.append(f"file://{path.absolute()}")
        elif option.lstrip("+") == "hydra.searchpath":
            value = OverridesParser.create().parse_override(word).value()
            folders += [str(folder) for folder in value] if isinstance(value, list) else [str(value)]
    return [f"hydra.searchpath={folders}"] if folders else []


@contextmanager
def _initialized() -> Iterator[None]:
    """Enter Hydra's compose API, unless a command of Hydra has done it."""
    if GlobalHydra.instance().is_initialized():
        yield
    else:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            yield


def readable(error: Exception) -> str:
    """Return an error message of recsys, Hydra or OmegaConf as one line."""
    message = " ".join(str(error).split())
    missing = re.search(r"Missing mandatory value: ([\w.]+)", message)
    if missing is not None:
        return f"{missing[1]}: missing, expected {missing[1]}=..."
    option = re.search(
        r"Could not find '([^'/]+)/([^']+)' Available options in '[^']+': (.*?)(?: Config search path|$)", message
    )
    if option is not None:
        if option[1] == "experiment" and (override := REMOVED_EXPERIMENTS.get(option[2])) is not None:
            return f"experiment={option[2]}: removed; expected the override {override} instead"
        return f"{option[1]}={option[2]}: no such option{nearest(option[2], option[3].split())}"
    return message.split(" full_key:")[0]


def composition_error(config_name: str, arguments: list[str]) -> str | None:
    """Return the error of a command's overrides, with the nearest valid key; None if they compose."""
    given = [argument for argument in arguments if not re.match(r"~?\+*hydra[./]", argument)]
    overrides = [word for before, word in zip(["", *given], given, strict=False) if not _is_option(before, word)]
    # Other options, such as -m, change the composition, so the command itself checks there.
    if any(argument.startswith("-") for argument in overrides):
        return None
    if message := renamed_override(overrides):
        return message
    with _initialized():
        try:
            path = search_path(arguments)
            config = hydra.compose(config_name, overrides=[*path, *overrides], return_hydra_config=True)
            choices = config.hydra.runtime.choices
            with open_dict(config):
                del config["hydra"]
            check(config, reference(config_name, choices, search_path=path))
        except (HydraException, OmegaConfBaseException, UserError) as error:
            message = " ".join(str(error).split())
            key = re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", message)
            if key is None or isinstance(error, UserError):
                return readable(error)
            name = key.group(1) or key.group(2)
            valid = set(_keys(hydra.compose(config_name))) | set(_groups())
            return f"unknown configuration key '{name}'{nearest(name, valid)}"
    return None


def _keys(node: DictConfig | ListConfig, prefix: str = "") -> Iterator[str]:
    if not isinstance(node, DictConfig):
        return
    for name in map(str, node):
        yield f"{prefix}{name}"
        if OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name):
            continue
        child = node[name]
        if isinstance(child, DictConfig):
            yield from _keys(child, f"{prefix}{name}.")


def _groups() -> list[str]:
    return [path.name for path in CONF.iterdir() if path.is_dir()]
