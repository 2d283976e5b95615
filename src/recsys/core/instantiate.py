"""Instantiation of the nodes of a configuration, with errors that name the key. Imports no torch."""

from __future__ import annotations

import functools
import re
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from recsys.core.errors import UserError
from recsys.core.trust import STORED, check_targets, nodes

# Classes that did not earn their place (docs/results.md) -> what to train with instead. Exported towers need none.
REMOVED = {
    "recsys.models.fourier.BSARec": "user_tower=transformer",
    "recsys.models.crossing.MaskNet": "crossing@item_tower.crossing=mlp or crossing@user_tower.crossing=mlp",
    "recsys.models.reach.LongAndRecent": "user_tower=transformer",
    "recsys.training.losses.GBCE": "loss=sampled_softmax",
    "recsys.training.negatives.CrossBatchNegatives": "negatives=mixed",
    "recsys.training.negatives.HardNegatives": "negatives=mixed",
    "recsys.training.negatives.MinedNegatives": "negatives=mixed",
}


def instantiate(node: DictConfig, **settings: Any) -> Any:
    """Return the object that a node describes.

    Args:
        node: mapping with the key `_target_`.
        settings: further arguments, which replace those of the node.

    Raises:
        UserError: If a value is missing, the node cannot be instantiated, or it is stored and names a class that is
            not allowed (see `recsys.core.trust`).
    """
    _check_classes(node)
    # Hydra drops missing values (???) from a partial without an error.
    for place in OmegaConf.missing_keys(node):
        raise UserError(f"{place}: missing, expected {place}=...")
    place = node._get_full_key(None)
    try:
        made = hydra.utils.instantiate(node, **settings)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        # An object within the node may be the wrong one.
        inner = re.search(r"full_key: (\S+)", str(error))
        place = inner[1] if inner else place
        below = OmegaConf.select(node, place.removeprefix(node._get_full_key(None)).lstrip(".")) if inner else node
        found = below if isinstance(below, DictConfig) else node
        raise UserError(named_fault(place, str(found.get("_target_")), cause or error)) from error
    if isinstance(made, functools.partial):
        # Read by whoever calls it with the other arguments.
        made.__dict__["place"] = place
    return made


def class_of(node: DictConfig) -> Any:
    """Return the class that a node names; refuse one of a stored configuration that is not allowed."""
    _check_classes(node)
    return hydra.utils.get_object(node["_target_"])


def _check_classes(node: DictConfig) -> None:
    for one in nodes(node):
        target = str(one.get("_target_"))
        if target in REMOVED:
            raise UserError(
                f"{one._get_full_key(None)}: found {target}, which this version of recsys no longer has; train again "
                f"with {REMOVED[target]}, or use the version that wrote the run"
            )
    if node._get_flag(STORED):
        check_targets(node)


def named_fault(place: str, target: str, cause: BaseException) -> str:
    """Return a message that names the key of an argument, if the error begins with its name, else that of the object.

    Args:
        place: key of the object in the configuration; may be empty.
        target: path of its class.
        cause: error of its constructor.
    """
    text = str(cause)
    if place and re.match(r"\w+(\.\w+)*: ", text):
        return f"{place}.{text}"
    return f"{place}: {target}: {text}" if place else f"{target}: {text}"


def plain(node: DictConfig) -> Any:
    """Return a node as plain lists and dictionaries, with interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True)
