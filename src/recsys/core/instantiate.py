"""Instantiation of the nodes of a configuration, with errors that name the key. Imports no torch."""

from __future__ import annotations

from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from recsys.core.errors import UserError


def instantiate(node: DictConfig, **settings: Any) -> Any:
    """Return the object that a node describes.

    Args:
        node: mapping with the key `_target_`.
        settings: further arguments, which replace those of the node.

    Raises:
        UserError: If a value is missing, or the node cannot be instantiated.
    """
    # Hydra drops missing values (???) from a partial without an error.
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


def plain(node: DictConfig) -> Any:
    """Return a node as plain lists and dictionaries, with interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True)
