"""Warm start: training that begins from the weights of an earlier run.

Rows of tables are copied by id, all other weights by name. Rows of new items, users and values start as the earlier
run's row of unknown ones, so before the first step the model answers like the earlier run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from recsys.core.errors import UserError
from recsys.core.schema import FIRST_CODE, UNKNOWN, UNKNOWN_ITEM, Feature, Schema
from recsys.data.dataset import PreparedDataset
from recsys.experiments.run_folder import RunStatus, read_state
from recsys.experiments.trained_run import read_checkpoint, stored_config
from recsys.models.content import ContentVectors
from recsys.models.features import FeatureEmbedding
from recsys.models.items import ItemTower
from recsys.models.semantic_ids import SemanticIds
from recsys.models.sharded_table import Fill, sharded_tables
from recsys.models.towers import UserIds
from recsys.models.two_tower import TwoTower

log = logging.getLogger("recsys")

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EarlierRun:
    """Run whose weights training begins from.

    Attributes:
        path: folder of the run.
        dataset: data set that the run was trained on.
        weights: weights of its best checkpoint, by name.
        steps: training steps of that checkpoint.
    """

    path: Path
    dataset: PreparedDataset
    weights: dict[str, Tensor]
    steps: int


@dataclass(frozen=True)
class _Table:
    """Source of the rows of an embedding table.

    Attributes:
        earlier: name of the table in the earlier run.
        rows: row of that table for each row of the new one.
    """

    earlier: str
    rows: Rows


def open_earlier_run(path: str | Path) -> EarlierRun:
    """Open a run to begin from. Its prepared data must be in the cache; its source may have changed.

    Raises:
        UserError: If the folder holds no trained run, or a blend, or the prepared data are missing.
    """
    path = Path(path)
    try:
        state = read_state(path)
        config = stored_config(path)
    except (OSError, UserError) as error:
        raise UserError(f"warm_start={path}: not the folder of a trained run ({error})") from error
    if not state.is_selected and state.status != RunStatus.FINISHED:
        raise UserError(f"warm_start={path}: its run is '{state.status}', expected one that is trained")
    if config.members:
        raise UserError(f"warm_start={path}: a blend; expected one of its members, {path}/variants/NAME")
    try:
        dataset = PreparedDataset.open(Path(config.data.cache) / "prepared" / str(state.dataset_fingerprint))
    except (OSError, UserError) as error:
        raise UserError(f"warm_start={path}: its prepared data are missing ({error})") from error
    try:
        checkpoint = read_checkpoint(path / "checkpoints/best.ckpt")
    except UserError as error:
        raise UserError(f"warm_start={path}: its checkpoint cannot be read ({error})") from error
    if config.refit and state.refitted:
        dataset = dataset.refit()
    weights = checkpoint.weights
    if checkpoint.tables is not None:
        weights |= {f"{name}.weight": checkpoint.tables.map(name) for name in checkpoint.tables.shapes}
    return EarlierRun(path, dataset, weights, checkpoint.steps)


@torch.no_grad()
def start_from(earlier: EarlierRun, model: TwoTower, *, dataset: PreparedDataset) -> list[str]:
    """Copy the weights that fit into a fresh model, and return the names of those that stay fresh.

    Args:
        earlier: run to begin from.
        model: model that was built for `dataset`.
        dataset: data set to train on.

    Raises:
        UserError: If ids are of another type, or no weight fits.
    """
    tables = dict(_tables(earlier, model, dataset))
    fresh, copied = [], 0
    # Learned weights belong to the content vectors and codes that they have seen, so these are copied as well.
    frozen = (".content.", ".semantic_ids.")
    content = [(name, buffer) for name, buffer in model.named_buffers() if any(part in name for part in frozen)]
    # Codes of other columns of content, or other numbers of codes, mean nothing to what was learned.
    other = tuple(
        f"{place}."
        for place, module in model.named_modules()
        if isinstance(module, SemanticIds)
        and (
            f"{place}.content.idf" not in tables
            or earlier.weights[f"{place}.codebooks"].shape != module.codebooks.shape
        )
    )
    for name, parameter in [*model.named_parameters(), *content]:
        table = tables.get(name)
        found = earlier.weights.get(name if table is None else table.earlier)
        if found is not None and table is not None and found.ndim == parameter.ndim:
            found = found[torch.from_numpy(table.rows)]
        if found is None or found.shape != parameter.shape or name.startswith(other):
            fresh.append(name)
            continue
        parameter.copy_(found)
        copied += 1
    for name, module in sharded_tables(model).items():
        table = tables[f"{name}.weight"]
        found = earlier.weights.get(table.earlier)
        if found is None or found.shape[1] != module.embedding_dim:
            fresh.append(f"{name}.weight")
            continue
        module.fill = _copied(found, table.rows)
        copied += 1
    if not copied:
        raise UserError(
            f"warm_start={earlier.path}: none of its weights fits this model; expected towers of its shapes"
        )
    log.info("training begins from %s; new weights: %s", earlier.path, ", ".join(fresh) or "nothing")
    return fresh


def _copied(found: Tensor, rows: Rows) -> Fill:
    """Return the function that fills a sharded table with rows of an earlier one."""
    return lambda begin, end: found[torch.from_numpy(rows[begin:end])]


def _tables(earlier: EarlierRun, model: TwoTower, dataset: PreparedDataset) -> Iterator[tuple[str, _Table]]:
    """Return the tables whose rows belong to items, users or values, by name."""
    user, items = model.user_tower, _item_rows(earlier.dataset, dataset)
    parts: list[tuple[str, FeatureEmbedding | None, Callable[[Schema], tuple[Feature, ...]]]] = [
        ("user_tower.events", user.events, lambda schema: schema.with_role("event", "request")),
        ("user_tower.profile", user.profile, lambda schema: schema.with_role("profile")),
        ("user_tower.requests", user.requests, lambda schema: schema.with_role("request")),
    ]
    for tower, module in (("item_tower", model.item_tower), ("user_tower.own_items", user.own_items)):
        if module is not None:
            parts.append((f"{tower}.features", module.features, lambda schema: schema.owned_by("items")))
            before = earlier.weights.get(f"{tower}.id_rows")
            yield f"{tower}.table.weight", _Table(f"{tower}.table.weight", _id_rows(module, items, before))
            yield f"{tower}.pretrained.table.weight", _Table(f"{tower}.pretrained.table.weight", items)
            for place, content in module.named_modules(prefix=tower):
                rows = _content_rows(earlier, dataset, content, place) if isinstance(content, ContentVectors) else None
                if rows is not None:
                    for part in ("idf", "projection"):
                        yield f"{place}.{part}", _Table(f"{place}.{part}", rows)
    if user.users is not None and (before := earlier.weights.get("user_tower.users.rows")) is not None:
        rows = _user_rows(earlier.dataset, dataset, rows_before=before.numpy(), users=user.users)
        yield "user_tower.users.table.weight", _Table("user_tower.users.table.weight", rows)
    for prefix, embedding, chosen in parts:
        if embedding is not None:
            before_by_name = {f.name: number for number, f in enumerate(chosen(earlier.dataset.schema))}
            for number, feature in enumerate(chosen(dataset.schema)):
                if feature.has_vocabulary and feature.name in before_by_name:
                    name = f"{prefix}.inputs.{before_by_name[feature.name]}.table.weight"
                    rows = _value_rows(earlier.dataset, dataset, feature)
                    yield f"{prefix}.inputs.{number}.table.weight", _Table(name, rows)


def _id_rows(tower: ItemTower, items: Rows, before: Tensor | None) -> Rows:
    """Return the earlier row of each row of an id table.

    Args:
        tower: item tower.
        items: earlier row of each item_idx, if each trained item had one.
        before: row of each item in the earlier table, if these were fewer.
    """
    earlier = items if before is None else before.numpy()[items]
    id_rows: Tensor | None = getattr(tower, "id_rows", None)
    if id_rows is None:
        return earlier
    rows = np.zeros(1 if tower.table is None else tower.table.num_embeddings, np.int64)
    rows[id_rows.numpy()] = earlier
    rows[UNKNOWN_ITEM] = UNKNOWN_ITEM
    return rows


def _content_rows(earlier: EarlierRun, now: PreparedDataset, content: ContentVectors, place: str) -> Rows | None:
    """Return the earlier row of each feature of content; None if the columns differ."""
    before = {feature.name: feature for feature in earlier.dataset.schema.owned_by("items")}
    parts, begin = [], 0
    for feature in content.features:
        if (known := before.get(feature.name)) is None or known.kind != feature.kind:
            return None
        same = np.arange(feature.size) if known.size == feature.size else None
        found = _value_rows(earlier.dataset, now, feature) if feature.has_vocabulary else same
        if found is None:
            return None
        parts.append(begin + found)
        begin += known.size
    weights = earlier.weights.get(f"{place}.idf")
    return np.concatenate(parts) if weights is not None and len(weights) == begin else None


def _item_rows(before: PreparedDataset, now: PreparedDataset) -> Rows:
    """Return the earlier row of each item_idx, 0..num_trained."""
    known = before.item_ids.slice(0, before.num_trained)
    found = _places(now.item_ids.slice(0, now.num_trained), known, "item_id")
    return np.concatenate([[UNKNOWN_ITEM], np.where(found < 0, UNKNOWN_ITEM, found + 1)])


def _user_rows(before: PreparedDataset, now: PreparedDataset, *, rows_before: Rows, users: UserIds) -> Rows:
    """Return the earlier row of each row of the user table; row 0 is shared by all users without one of their own."""
    rows_now = users.rows.numpy()
    trained = np.flatnonzero(rows_now > 0)
    found = _places(now.user_ids.take(pa.array(trained)), before.user_ids, "user_id")
    # `found` is -1 for an unknown user and selects the last entry, the row of unknown users.
    rows = np.zeros(users.table.num_embeddings, np.int64)
    rows[rows_now[trained]] = rows_before[found]
    return rows


def _value_rows(before: PreparedDataset, now: PreparedDataset, feature: Feature) -> Rows:
    """Return the earlier row of each code of a categorical feature."""
    mine, theirs = now.vocabulary(feature), before.vocabulary(feature)
    assert mine is not None, "the feature has a vocabulary"
    if theirs is None or theirs.type != mine.type:
        return np.concatenate([np.arange(FIRST_CODE), np.full(len(mine), UNKNOWN)])
    found = np.asarray(pc.fill_null(pc.index_in(mine, value_set=theirs), -1)).astype(np.int64)
    return np.concatenate([np.arange(FIRST_CODE), np.where(found < 0, UNKNOWN, found + FIRST_CODE)])


def _places(ids: pa.Array, known: pa.Array, column: str) -> Rows:
    """Return the position of each id in `known`, -1 for a new id."""
    if ids.type != known.type:
        raise UserError(f"warm_start: its {column} is {known.type}, expected {ids.type} as in this data")
    return np.asarray(pc.fill_null(pc.index_in(ids, value_set=known), -1)).astype(np.int64)
