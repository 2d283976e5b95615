"""Which classes a stored configuration may name. A run or a release is data, so it must not choose code to run.

Allowed are the classes of this package that configurations are made of, classes of packages that the operator names
(`trust=[my_package]` or the environment variable `RECSYS_TRUST`), and the targets of a configuration that the operator
composed in this process. Imports no torch.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from recsys.core.errors import UserError

TRUST = "RECSYS_TRUST"
# Flag of OmegaConf that marks a stored configuration. All nodes below have it, and copies keep it.
STORED = "stored"

# Modules whose classes describe data, models and training. Their constructors only keep their arguments.
_ROOMS = (
    "recsys.baselines.", "recsys.data.preparation.engines.", "recsys.data.preparation.splits.",
    "recsys.data.simulation.synthetic.", "recsys.data.sources.", "recsys.experiments.pretrained_sources.",
    "recsys.index.", "recsys.models.", "recsys.operations.gates.", "recsys.publishing.corpus_policies.",
    "recsys.training.",
)  # fmt: skip
# Foreign classes of `conf/train.yaml`, by the key below which they may stand.
_FOREIGN = {
    "trainer": ("lightning.Trainer", "lightning.pytorch.strategies.DDPStrategy", "datetime.timedelta"),
    "callbacks": ("lightning.pytorch.callbacks.EarlyStopping", "lightning.pytorch.callbacks.ModelCheckpoint"),
    "logger": ("lightning.pytorch.loggers.MLFlowLogger", "lightning.pytorch.loggers.TensorBoardLogger"),
}
_PATH = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", re.ASCII)
_PACKAGE = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*", re.ASCII)
_LOCAL_SPARK = re.compile(r"local(\[[\d*,]+\])?", re.ASCII)

_composed: set[str] = set()


def trust(packages: Iterable[str]) -> None:
    """Trust packages in this process and its children, in addition to those of the environment.

    Raises:
        UserError: If a name is not that of a package.
    """
    for package in packages:
        if not isinstance(package, str) or not _PACKAGE.fullmatch(package):
            raise UserError(f"trust: found {package!r}, expected the name of a package, such as my_package")
        if package not in trusted():
            os.environ[TRUST] = ",".join([*trusted(), package])


def trusted() -> list[str]:
    """Return the packages that the operator trusts."""
    return [name for name in map(str.strip, os.environ.get(TRUST, "").split(",")) if name]


def is_trusted(path: str) -> bool:
    """Return True if a module or class belongs to a package that the operator trusts."""
    return any(f"{path}.".startswith(f"{package}.") for package in trusted())


def name_targets(config: DictConfig) -> None:
    """Allow the targets of a configuration that the operator composed: stored ones of this process may name them."""
    _composed.update(str(node["_target_"]) for node in nodes(config) if isinstance(node.get("_target_"), str))


def check_targets(node: DictConfig) -> None:
    """Refuse a node of a stored configuration that names, at any depth, a class which is not allowed.

    Raises:
        UserError: If it does. The message names the key and what to type.
    """
    for one in nodes(node):
        if "_target_" in one and one["_target_"] is not None:
            _check(one["_target_"], one)


def nodes(node: Any) -> Iterable[DictConfig]:
    """Yield a node and all nodes below it that are set."""
    if isinstance(node, DictConfig):
        if node._is_none() or node._is_missing() or node._is_interpolation():
            return
        yield node
    keys: Any = node if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        if not (OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key)):
            child = node[key]
            if isinstance(child, DictConfig) or (isinstance(child, ListConfig) and not child._is_none()):
                yield from nodes(child)


def _check(target: object, node: DictConfig) -> None:
    place = str(node._get_full_key("_target_"))
    if not isinstance(target, str) or not _PATH.fullmatch(target):
        raise UserError(f"{place}: found {str(target)[:80]!r}, expected the path of a class")
    if target.partition(".")[0] == "recsys":
        if not _is_described(target):
            raise UserError(f"{place}: found {target}, expected a class of recsys that configurations are made of")
        # Options of Spark can name code.
        plain = _LOCAL_SPARK.fullmatch(str(node.get("master", "local"))) and not node.get("options")
        if target.endswith(".Spark") and not plain:
            where = f"{target} on {node.get('master', 'local')}"
            _refuse_unless(is_trusted("pyspark"), place, target=where, package="pyspark")
        return
    if target in _composed or target in _FOREIGN.get(place.partition(".")[0], ()):
        return
    package = target.partition(".")[0]
    _refuse_unless(is_trusted(target), place, target=target, package=package)
    found = _find(target)
    if not callable(found) or not is_trusted(str(getattr(found, "__module__", ""))):
        raise UserError(f"{place}: found {target}, expected a class that a trusted package defines")


def _refuse_unless(allowed: bool, place: str, *, target: str, package: str) -> None:
    if not allowed:
        raise UserError(
            f"{place}: found {target}, which would run code of '{package}'; a stored configuration may name only "
            f"classes of recsys. If you trust that package, type 'trust=[{package}]' or set {TRUST}={package}"
        )


def _is_described(target: str) -> bool:
    """Return True if a path names a class that a module of `_ROOMS` defines."""
    if not target.startswith(_ROOMS):
        return False
    found = _find(target)
    return inspect.isclass(found) and f"{found.__module__}.".startswith(_ROOMS)


def _find(target: str) -> Any:
    """Return what a module has by a name; None if there is no such module or name."""
    module, _, name = target.rpartition(".")
    try:
        return vars(importlib.import_module(module)).get(name)
    except ImportError:
        return None
