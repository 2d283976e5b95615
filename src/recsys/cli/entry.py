"""What every command does around its work: it composes, checks, and reports a user's error in one line."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable

# Fresh large tensors cost page faults; transparent huge pages halve a training step with stock PyTorch on CPUs. It
# must be set before torch is imported.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from recsys.core.errors import UserError
from recsys.experiments.compose import CONF, check, composition_error, readable, reference, search_path


def entry(config_name: str, main: Callable[[DictConfig], None]) -> None:
    """Run `main` with the composed configuration; exit with 1 and one clear message on a user's error.

    Args:
        config_name: of a file in `conf/`.
        main: the command.
    """
    logging.getLogger("recsys").setLevel(logging.INFO)
    problem = composition_error(config_name, sys.argv[1:])
    if problem is not None:
        _fail(problem)

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
    def command(config: DictConfig) -> None:
        try:
            given = HydraConfig.get()
            check(config, reference(config_name, given.runtime.choices, search_path(given.overrides.hydra)))
            main(config)
        except (UserError, OmegaConfBaseException) as error:
            _fail(readable(error))
        except SystemExit as stop:
            # Lightning answers a SIGTERM in the middle of training with an exit that says nothing.
            raise SystemExit(128 + signal.SIGTERM if stop.code is None else stop.code) from stop

    command()


def output_dir() -> str:
    """Folder of this run, by `hydra.run.dir`."""
    return str(HydraConfig.get().runtime.output_dir)


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(1)
