"""Find the folder of configuration files, in a checkout and in an installed package."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def conf_folder() -> Path:
    """Return the folder that holds `train.yaml` and the configuration groups.

    It is `recsys/conf` in a wheel, and `conf` at the root of a checkout.

    Raises:
        RuntimeError: If the installation is incomplete.
    """
    for folder in (_PACKAGE / "conf", _PACKAGE.parents[1] / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise RuntimeError(f"{_PACKAGE}: found no conf/ folder next to it; install the package again")
