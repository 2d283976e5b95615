"""Check of a composed configuration: unknown keys and values of a wrong type are refused."""

from __future__ import annotations

import inspect
from typing import Any

import hydra
from omegaconf import DictConfig, ListConfig, OmegaConf

from recsys.core.errors import UserError, nearest
from recsys.core.renamed_keys import renamed

# Sections whose keys are names that the user chooses.
OPEN = ("data.features", "history.action_weights", "variants", "grids", "gates.absolute.floors")
# Values that may be null although their defaults are not.
NULLABLE = (
    "evaluation.val_users",
    "history.half_life_days",
    "history.window_days",
    "logger.project",
    "max_users",
    "choosing_users",
)
# Stands for `**kwargs` among the parameters of a constructor.
ANY = "**"


def check(config: DictConfig, reference: DictConfig) -> None:
    """Compare a configuration, key by key, with a valid one of the same groups without overrides.

    New keys are allowed in the sections `OPEN`, as arguments that a constructor takes, and as new objects, which have a
    `_target_`.

    Raises:
        UserError: If a key is unknown, or a value is of another type.
    """
    _check(config, reference, prefix="")


def _check(node: DictConfig, known: DictConfig, *, prefix: str) -> None:
    target = node.get("_target_") or known.get("_target_")
    # OmegaConf does not count a missing value as `in` its node.
    names = {*map(str, known)}
    for name in map(str, node):
        key = f"{prefix}{name}"
        if message := renamed(key):
            raise UserError(message)
        if name not in names:
            taken = _parameters(target) if target else set()
            given = None if OmegaConf.is_missing(node, name) else node[name]
            is_object = isinstance(given, DictConfig) and "_target_" in given
            if name not in taken and ANY not in taken and not is_object:
                hint = nearest(key, {f"{prefix}{other}" for other in {*names, *taken} if not other.startswith("_")})
                raise UserError(f"unknown configuration key '{key}'{hint}")
            continue
        if any(OmegaConf.is_missing(n, name) or OmegaConf.is_interpolation(n, name) for n in (node, known)):
            continue
        value, usual = node[name], known[name]
        if key in OPEN:
            continue
        if isinstance(value, DictConfig) and isinstance(usual, DictConfig):
            _check(value, usual, prefix=f"{key}.")
        elif target is None or not (isinstance(usual, str) or key.startswith("trainer.")):
            # Lightning's trainer takes numbers, lists and words such as `auto` for the same key.
            _check_type(key, value, usual=usual, nullable=target is not None or key in NULLABLE)


def _check_type(key: str, value: Any, *, usual: Any, nullable: bool) -> None:
    if usual is None or (value is None and nullable):
        return
    expected: tuple[type, ...] = (int, float) if isinstance(usual, float) else (type(usual),)
    if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
        kinds = {int: "an integer", float: "a number", str: "a string", bool: "true or false", ListConfig: "a list"}
        raise UserError(f"{key}: found {value!r}, expected {kinds.get(type(usual), 'keys below it')}")


def _parameters(target: str) -> set[str]:
    try:
        parameters = inspect.signature(hydra.utils.get_object(target)).parameters.values()
        return {ANY if parameter.kind is parameter.VAR_KEYWORD else parameter.name for parameter in parameters}
    except (ImportError, ValueError, TypeError):
        return set()
