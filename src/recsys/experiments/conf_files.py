"""The files in `conf/`: their groups and options, composed by Hydra, and Hydra's errors as one line."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from recsys.core.conf_folder import conf_folder
from recsys.core.errors import UserError, nearest
from recsys.experiments.overrides import CONFIG_DIR, shown

CONF = conf_folder()
# Removed options -> the overrides that replace them.
REMOVED_OPTIONS = {
    "experiment=in_batch": "negatives=in_batch",
    "experiment=in_batch_classic": "negatives=in_batch loss.logq=classic",
    "experiment=in_batch_uncorrected": "negatives=in_batch loss.logq=off",
    "experiment=mixed_negatives": "negatives=mixed",
    "experiment=uniform_negatives": "negatives=uniform",
    "experiment=mean_pooling": "user_tower=mean",
    "experiment=full_softmax": "loss=full_softmax negatives=none",
    "crossing=mask_net": "crossing@item_tower.crossing=mlp crossing@user_tower.crossing=mlp",
    "loss=gbce": "loss=sampled_softmax",
    "negatives=cross_batch": "negatives=mixed",
    "negatives=hard": "negatives=mixed",
    "negatives=mined": "negatives=mixed",
    "user_tower=bsarec": "user_tower=transformer",
    "user_tower=long_and_recent": "user_tower=transformer",
}


@contextmanager
def initialized() -> Iterator[None]:
    """Enter Hydra's compose API, unless a command of Hydra has done it."""
    if GlobalHydra.instance().is_initialized():
        yield
    else:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            yield


@functools.lru_cache(maxsize=32)
def composed(config_name: str, *overrides: str) -> DictConfig:
    """Return a configuration with Hydra's own part. Callers share it and must not change it."""
    with initialized():
        return hydra.compose(config_name, overrides=list(overrides), return_hydra_config=True)


def usual(config_name: str) -> DictConfig:
    """Return the configuration of a command without arguments, with Hydra's own part."""
    return composed(config_name)


def reference(config_name: str, choices: Mapping[str, str | None], *, search_path: list[str]) -> DictConfig:
    """Return the configuration of the same groups, without experiment and overrides."""
    listed, names = usual(config_name).hydra.runtime.choices, groups(search_path)
    chosen = [
        f"{group}={choice}"
        for group, choice in choices.items()
        if group in names and group in listed and listed[group] != choice
    ]
    return without_hydra(composed(config_name, *(search_path if chosen else ()), *chosen))


def without_hydra(config: DictConfig) -> DictConfig:
    """Return a copy of a composed configuration without Hydra's own part."""
    own = config.copy()
    with open_dict(own):
        del own["hydra"]
    return own


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


def groups(path: Sequence[str]) -> set[str]:
    """Return the names of all groups: folders of `conf/` and of the folders of the search path."""
    folders = [CONF, *(Path(place) for text in path for place in re.findall(r"file://([^']+)", text))]
    return {found.name for folder in folders if folder.is_dir() for found in folder.iterdir() if found.is_dir()}


def options(group: str) -> list[str]:
    """Return the names of a group's options in `conf/`."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def options_with(group: str, key: str) -> list[str]:
    """Return the options of a group whose files have a key.

    Args:
        group: name of the group.
        key: dotted key below that of the group.
    """
    found = []
    for name in options(group):
        parent, _, last = key.rpartition(".")
        node = OmegaConf.load(CONF / group / f"{name}.yaml")
        below = OmegaConf.select(node, parent, default=None) if parent else node
        if isinstance(below, DictConfig) and last in map(str, below):
            found.append(name)
    return found


def commands_with(group: str) -> list[str]:
    """Return the commands that have a group."""
    files = sorted(CONF.glob("*.yaml"))
    return [file.stem.replace("_", "-") for file in files if f"- {group}: " in file.read_text()]


def readable(error: Exception) -> str:
    """Return an error message of recsys, Hydra or OmegaConf as one line."""
    message = " ".join(str(error).split())
    missing = re.search(r"Missing mandatory value: ([\w.]+)", message)
    if missing is not None:
        return f"{missing[1]}: missing, expected {missing[1]}=..."
    option = re.search(
        r"Could not find '(hydra/[^'/]+|[^'/]+)/([^']+)' Available options in '[^']+': (.*?)(?: Config search path|$)",
        message,
    )
    if option is not None:
        group, name, valid = option[1], option[2], option[3].split()
        if (override := REMOVED_OPTIONS.get(f"{group}={name}")) is not None:
            return f"{group}={name}: removed; expected the override {override} instead"
        if group == "data" and Path(name).exists():
            return f"data={name}: no such option; expected data=parquet data.root={shown(name)} for files of your own"
        if group == "hydra/launcher" and name in ("submitit_local", "submitit_slurm"):
            return f"{group}={name}: needs a package that is not installed: pip install 'recsys[slurm]'"
        return f"{group}={name}: no such option{nearest(name, valid)}"
    return message.split(" full_key:")[0]
