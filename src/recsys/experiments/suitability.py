"""Choice of the variants that the data allows, before anything is trained."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from recsys.core import distributed
from recsys.core.columns import Ragged
from recsys.core.errors import UnsuitableDataError, UserError, nearest
from recsys.core.io import atomic_write
from recsys.core.schema import FIRST_CODE, Feature, TimeResolution
from recsys.data.dataset import NO_BIRTH, PreparedDataset
from recsys.evaluation.relevance import relevant_items
from recsys.experiments.assembly import build_callbacks, build_data, build_module, build_towers, open_data

log = logging.getLogger("recsys")

# What data may have, by the words of the configuration key `needs`.
PROPERTIES = {
    "order": "an order of events",
    "clock": "timestamps in seconds or days",
    "births": "dates of birth of items (data.columns.born)",
    "item_features": "features of items",
    "user_features": "features of users",
    "text": "a text feature of items (data.features.items.COLUMN.kind=text)",
    "content": "content of items: text, vectors, or lists of more than 256 different values",
    **{f"data.time={time}": f"data.time={time}" for time in TimeResolution},
}
# Lists of so few values say nothing that features do not (`ContentVectors.width` directions hold them all).
_FEW_VALUES = 256 + FIRST_CODE


def suitable_variants(variants: Mapping[str, DictConfig], file: Path) -> dict[str, DictConfig]:
    """Return the variants that the data allows, and log for each other one what the data lacks.

    The choice is stored, so that a run that continues, or is finished, needs no second look at the data.

    Args:
        variants: complete configurations by name.
        file: JSON file of the variants that were left out, with the reasons.

    Raises:
        UserError: If the data allows none, a setting of a variant is wrong, or the variants have different data.
    """
    if file.exists():
        left_out = json.loads(file.read_text())
    else:
        left_out = _unsuitable(variants)
        if distributed.is_first():
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(file, json.dumps(left_out, indent=2) + "\n")
    distributed.barrier()
    for name, reason in left_out.items():
        log.info("variant %s is left out: %s", name, reason)
    return {name: config for name, config in variants.items() if name not in left_out}


def _unsuitable(variants: Mapping[str, DictConfig]) -> dict[str, str]:
    left_out = {}
    first = next(iter(variants.values()))
    dataset = open_data(first)
    say_repeats(first, dataset)
    for name, config in variants.items():
        if (config.data, config.split) != (first.data, first.split):
            raise UserError(f"variants.{name}: other data or another split than the first variant, expected the same")
        try:
            check_start(config, dataset)
        except UnsuitableDataError as error:
            left_out[name] = str(error)
        except UserError as error:
            raise UserError(f"variants.{name}: {error}") from error
    if len(left_out) == len(variants):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise UserError(f"variants: the data suits none ({reasons})")
    return left_out


def check_start(config: DictConfig, dataset: PreparedDataset) -> None:
    """Build everything that the training of a configuration needs, without training.

    Raises:
        UnsuitableDataError: If the data lacks what the configuration needs.
        UserError: If a setting is wrong.
    """
    check_needs(config, dataset)
    build_data(config, dataset)
    build_callbacks(config, Path())
    build_module(config, dataset, model=build_towers(config, dataset, fresh=False))


def check_needs(config: DictConfig, dataset: PreparedDataset) -> None:
    """Refuse data without the properties under the key `needs`; one of `order|clock` is enough.

    Raises:
        UnsuitableDataError: If the data lacks one.
        UserError: If there is no such property.
    """
    found = properties(dataset)
    for need in config.needs:
        names = str(need).split("|")
        for name in names:
            if name not in PROPERTIES:
                raise UserError(f"needs={need}: no such property of data{nearest(name, PROPERTIES)}")
        if not found.intersection(names):
            needed = " or ".join(PROPERTIES[name] for name in names)
            raise UnsuitableDataError(f"it needs {needed}, and the data has none")


# Share of repeats from which it is logged.
MANY_REPEATS = 0.05
# Data sets whose share this process has logged: each variant of a recipe starts on the same data.
_said: set[Path] = set()


def say_repeats(config: DictConfig, dataset: PreparedDataset) -> None:
    """Log once which share of the items in the validation part are in the history of their user, if it is large.

    With `exclude_seen` lists and metrics leave these items out, and a user with no other items counts in no metric.
    That is wrong for goods that people buy again. With `portions` no process reads the events of all users.

    Args:
        config: configuration of a run.
        dataset: its data set.
    """
    if not config.exclude_seen or config.portions or not distributed.is_first() or dataset.path in _said:
        return
    _said.add(dataset.path)
    requests = dataset.requests("val")
    every, new = (
        len(relevant_items(dataset, "val", requests=requests, exclude_seen=exclude).values) for exclude in (False, True)
    )
    if every and (share := 1 - new / every) >= MANY_REPEATS:
        log.info(
            "repeats: %.0f%% of the items in the validation part are in the history of their user; exclude_seen=true "
            "leaves them out of lists and metrics. To recommend items again, type exclude_seen=false",
            100 * share,
        )


def properties(dataset: PreparedDataset) -> set[str]:
    """Return the `PROPERTIES` that a data set has."""
    time, items = dataset.meta.time_resolution, dataset.schema.owned_by("items")
    has = {
        "order": time.has_order,
        "clock": time.has_clock,
        "births": dataset.born is not None and bool((dataset.born != NO_BIRTH).any()),
        "item_features": bool(items),
        "user_features": bool(dataset.schema.owned_by("users")),
        "text": any((f.kind == "text" or f.encoder) and _holds_some(dataset, f) for f in items),
        "content": any(
            (f.kind in ("text", "vector") or (f.kind == "multi_categorical" and f.size > _FEW_VALUES))
            and _holds_some(dataset, f)
            for f in items
        ),
        f"data.time={time}": True,
    }
    return {name for name, there in has.items() if there}


def _holds_some(dataset: PreparedDataset, feature: Feature) -> bool:
    """Return whether a column of vectors, lists or text has a value that is not missing."""
    column = dataset.columns[feature.key]
    if isinstance(column, Ragged):
        return len(column.values) > 0
    return bool(np.isfinite(np.asarray(column.values)[:, 0].astype(np.float32)).any())
