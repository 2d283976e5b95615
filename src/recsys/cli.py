"""What every command does around its work: clear errors, and the nearest name for a misspelled key."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Fresh large tensors cost page faults; transparent huge pages halve a training step with stock PyTorch on CPUs. It
# must be set before torch is imported.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recsys.errors import UserError, nearest

CONF = Path(__file__).parents[2] / "conf"


def entry(config_name: str, main: Callable[[DictConfig], None]) -> None:
    """Run `main` with the composed configuration; exit with 1 and one clear message on a user's error.

    Args:
        config_name: of a file in `conf/`.
        main: the command.
    """
    logging.getLogger("recsys").setLevel(logging.INFO)
    problem = _composition_error(config_name, sys.argv[1:])
    if problem is not None:
        _fail(problem)

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
    def command(config: DictConfig) -> None:
        try:
            main(config)
        except (UserError, OmegaConfBaseException) as error:
            _fail(str(error))

    command()


def output_dir() -> str:
    """Folder of this run, by `hydra.run.dir`."""
    return str(HydraConfig.get().runtime.output_dir)


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(1)


def _composition_error(config_name: str, arguments: list[str]) -> str | None:
    """What is wrong with the overrides, with the nearest valid key; None when they compose."""
    # Options such as -m or --config-dir change what composes: Hydra's own messages serve there.
    if any(argument.startswith("-") for argument in arguments):
        return None
    overrides = [argument for argument in arguments if not re.match(r"~?\+*hydra[./]", argument)]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            hydra.compose(config_name, overrides=overrides)
        except (HydraException, OmegaConfBaseException) as error:
            message = " ".join(str(error).split())
            key = re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", message)
            if key is None:
                return message
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
