"""Objects from the nodes of a configuration, with errors that name the key. Imports no torch."""

from __future__ import annotations

from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from recsys.core.errors import UserError


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


def plain(node: DictConfig) -> Any:
    """Lists and dictionaries in the place of OmegaConf's."""
    return OmegaConf.to_container(node, resolve=True)
