"""Objects from the nodes of a configuration, with errors that name the key."""

from __future__ import annotations

from typing import Any

import hydra
from hydra.errors import InstantiationException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from recsys.errors import UserError, nearest


def instantiate(node: DictConfig, **settings: Any) -> Any:
    """The object that a node names; a wrong key or value is a `UserError`."""
    # Hydra leaves out of a partial what is still to be given.
    for key in OmegaConf.missing_keys(node):
        place = node._get_full_key(key)
        raise UserError(f"{place}: missing, expected {place}=...")
    try:
        return hydra.utils.instantiate(node, **settings)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        raise UserError(f"{node.get('_target_')}: {cause or error}") from error


def complete(partial: Any, **runtime: Any) -> Any:
    """Call what a `_partial_` node gave with run-time arguments; a wrong value is a `UserError`."""
    try:
        return partial(**runtime)
    except (TypeError, ValueError, MisconfigurationException) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{partial.func.__module__}.{partial.func.__qualname__}: {error}") from error


def check_keys(node: DictConfig, valid: tuple[str, ...], name: str) -> None:
    """Refuse keys of the node `name` that are not among the valid ones."""
    for key in map(str, node):
        if key not in valid:
            raise UserError(f"unknown configuration key '{name}.{key}'{nearest(key, valid)}")


def plain(node: DictConfig) -> Any:
    """Lists and dictionaries in the place of OmegaConf's."""
    return OmegaConf.to_container(node, resolve=True)
