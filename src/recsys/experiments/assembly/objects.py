"""Completion and checks of configuration nodes."""

from __future__ import annotations

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from recsys.core.errors import UserError, nearest
from recsys.core.instantiate import named_fault


def complete(partial: Any, **runtime: Any) -> Any:
    """Call a `_partial_` object, which `instantiate` returned, with run-time arguments.

    Raises:
        UserError: If a value is wrong.
    """
    try:
        return partial(**runtime)
    except (TypeError, ValueError, ArithmeticError, RuntimeError, MisconfigurationException) as error:
        if isinstance(error, UserError):
            raise
        target = f"{partial.func.__module__}.{partial.func.__qualname__}"
        raise UserError(named_fault(getattr(partial, "place", ""), target, error)) from error


def check_keys(node: DictConfig, valid: tuple[str, ...], *, name: str) -> None:
    """Refuse unknown keys of the node `name`."""
    for key in map(str, node):
        if key not in valid:
            raise UserError(f"unknown configuration key '{name}.{key}'{nearest(key, valid)}")
