"""Fills the folder of a release: weights, embeddings, index, exported tower, items, vocabularies and a self-check."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from recsys.core.errors import UserError
from recsys.core.index_time import IndexTime
from recsys.core.types import Float32Array
from recsys.data.batches.batch import Batch
from recsys.data.dataset import PreparedDataset, Requests
from recsys.experiments.trained_run import TrainedRun
from recsys.index import Index, save_index, search_users
from recsys.index.sharded import divide
from recsys.models.blend import Model, members_of
from recsys.publishing.index_times import new_item_biases
from recsys.publishing.onnx_export import INLINE_BYTES, batch_columns, export_user_tower, input_specs
from recsys.publishing.shown_items import shown_items
from recsys.release.manifest import (
    CONFIG,
    EMBEDDINGS,
    ITEM_VOCABULARY,
    ITEM_WEIGHTS,
    ITEMS,
    MAX_HISTORY_KEY,
    PAIR_KEY,
    SCHEMA,
    SELF_CHECK,
    SIMILARITY_KEY,
    USER_VOCABULARY,
    USER_WEIGHTS,
    Manifest,
    describe_files,
    pair_of,
    save_index_pair,
)
from recsys.release.parts import name_of
from recsys.release.precision import decode
from recsys.release.runtime.shard import CorpusShard
from recsys.release.runtime.user_tower import Histories, UserTowerSession, pad

log = logging.getLogger("recsys")

# Largest difference between embeddings of the exported and the trained tower on real histories.
TOLERANCE = 1e-4
NUM_SELF_CHECKS = 8


def pack(
    folder: Path,
    run: TrainedRun,
    *,
    index: Index,
    embeddings: Float32Array,
    stored: npt.NDArray[Any],
    measured: Mapping[str, Any],
    model: str,
    corpus: Mapping[str, Any],
    index_time: IndexTime | None = None,
    refreshed: Mapping[str, Any] | None = None,
    shards: int = 1,
) -> Manifest:
    """Write every file of a release except the manifest, and return the manifest without version and time.

    Args:
        folder: empty folder.
        run: finished run.
        index: index that was built from `embeddings` and tuned.
        embeddings: embeddings of the run's corpus, in its order.
        stored: the same as the release stores them.
        measured: recall of the index and measurements of its tuning.
        model: name of the model.
        corpus: record of the choice of items.
        index_time: time for which the item biases were computed; None for that of the evaluation.
        refreshed: origin of an index of newer data than the run's; None for the run's own data.
        shards: number of parts for hosts that search one each; 1 for none.

    Raises:
        UserError: If the exported tower differs from the trained one.
    """
    dataset, similarity = run.dataset, run.model.metric
    np.save(folder / EMBEDDINGS, stored)
    save_file(_weights(run.model.user_tower), folder / USER_WEIGHTS)
    save_file(_weights(run.model.item_tower), folder / ITEM_WEIGHTS)
    if refreshed:
        (folder / CONFIG).write_text(OmegaConf.to_yaml(run.config, resolve=True))
    else:
        shutil.copyfile(run.path / "config.yaml", folder / CONFIG)
    dataset.schema.save(folder / SCHEMA)
    _write_vocabularies(folder, dataset, run.model.reads_users)
    items = shown_items(run)
    pq.write_table(items, folder / ITEMS)

    files = describe_files(folder)
    pair = pair_of(files)
    save_index(index, folder)
    specs = input_specs(run.model, dataset.schema)
    metadata = {PAIR_KEY: pair, SIMILARITY_KEY: similarity, MAX_HISTORY_KEY: str(run.builder.max_history)}
    log.info("exporting the user tower")
    output = export_user_tower(run.model, dataset.meta.num_known, specs=specs, folder=folder, metadata=metadata)
    description = json.loads((folder / "item_index.json").read_text())
    manifest = Manifest(
        version="",
        model=model,
        created="",
        run=str(run.path),
        git_commit=run.state.git_commit,
        dataset_fingerprint=dataset.meta.fingerprint,
        similarity=similarity,
        temperature=run.model.temperature,
        dim=embeddings.shape[1],
        num_items=len(embeddings),
        num_embeddings=run.model.num_embeddings,
        max_history=run.builder.max_history,
        pair=pair,
        inputs=specs,
        output=output,
        metrics=run.metrics,
        index={"class": description["class"], **measured},
        files=describe_files(folder, files),
        data=_times(run),
        corpus=corpus,
        num_trained=dataset.num_trained,
        temperatures=tuple(member.model.temperature for member in members_of(run.model)),
        index_time=_index_time(run, index_time),
        new_item_biases=new_item_biases(run.model),
        refreshed=refreshed or {},
    )
    check = _write_self_check(folder, run, manifest=manifest, index=index)
    for number in range(shards if shards > 1 else 0):
        shard = CorpusShard(number, shards)
        _write_part(folder / name_of(shard), shard, index=index, stored=stored, items=items, check=check)
    files = describe_files(folder, manifest.files)
    save_index_pair(folder, pair, files={name: one for name, one in files.items() if name.startswith("item_index.")})
    return dataclasses.replace(manifest, files=files)


def _write_part(
    folder: Path,
    shard: CorpusShard,
    *,
    index: Index,
    stored: npt.NDArray[Any],
    items: pa.Table,
    check: Mapping[str, npt.NDArray[Any]],
) -> None:
    """Write the part of a shard: the files of a release, without towers, that has the items of the shard alone."""
    (folder / ITEM_VOCABULARY).parent.mkdir(parents=True)
    own = stored[shard.number :: shard.count].copy()
    np.save(folder / EMBEDDINGS, own)
    part = divide(index, decode(own), number=shard.number, count=shard.count)
    save_index(part, folder)
    rows = np.arange(shard.number, len(items), shard.count)
    items = items.take(pa.array(rows)).set_column(1, "item_idx", pa.array(np.arange(1, len(rows) + 1)))
    pq.write_table(items, folder / ITEMS)
    pq.write_table(items.select(["item_id"]), folder / ITEM_VOCABULARY)
    best, found = search_users(part, check["embeddings"], k=1)
    own_check = {name: values for name, values in check.items() if name != "best_items"}
    own_check |= {"best_scores": best[:, 0]} | ({"best_items": found[:, 0] + 1} if (found >= 0).all() else {})
    np.savez(folder / SELF_CHECK, allow_pickle=False, **own_check)


def _index_time(run: TrainedRun, index_time: IndexTime | None) -> dict[str, float]:
    """Return `Manifest.index_time`. The item biases of a run are those of its test part."""
    index_time = run.dataset.index_time("test") if index_time is None else index_time
    has_bias = any(bias is not None for bias in new_item_biases(run.model))
    return dataclasses.asdict(index_time) if has_bias and index_time is not None else {}


def _times(run: TrainedRun) -> dict[str, int]:
    """Return `Manifest.data`; empty if the data has no times."""
    dataset = run.dataset
    if not dataset.meta.time_resolution.has_clock:
        return {}
    # Newer data need not reach back to the training.
    until = dataset.train_until if (dataset.train_end > dataset.offsets[:-1]).any() else None
    until = run.state.train_until or 0 if until is None else until
    # A run records its newest training event, which may be newer than the configuration implies.
    until = max(until, run.state.train_until or until)
    times = {"begin": dataset.time.min(), "train_until": until, "until": dataset.time.max()}
    times |= {} if (test := dataset.part_times("test")) is None else {"test_begin": test[0]}
    return {name: int(value) for name, value in times.items()}


def _weights(tower: torch.nn.Module) -> dict[str, torch.Tensor]:
    # Copies of small ones, because several names may share one; of large tables there would be two in memory.
    weights = {name: value.detach().contiguous() for name, value in tower.state_dict().items()}
    return {name: value if value.nbytes > INLINE_BYTES else value.clone() for name, value in weights.items()}


def _write_vocabularies(folder: Path, dataset: PreparedDataset, with_users: bool) -> None:
    (folder / "vocabularies").mkdir()
    # Items that occur only in test events are unknown to the towers and the release.
    known = dataset.item_ids.slice(0, dataset.meta.num_known)
    pq.write_table(pa.table({"item_id": known}), folder / ITEM_VOCABULARY)
    if with_users:
        pq.write_table(pa.table({"user_id": dataset.user_ids}), folder / USER_VOCABULARY)
    for feature in dataset.schema.features:
        if (values := dataset.vocabulary(feature)) is not None:
            pq.write_table(pa.table({"value": values}), folder / f"vocabularies/{feature.key}.parquet")


def to_histories(batch: Batch, num_items: int) -> Histories:
    """Return a batch of requests as the exported tower reads it; items above `num_items` become unknown."""
    events, users, requests = batch_columns(batch)
    item_idx = batch.item_idx.numpy()
    return Histories(
        item_idx=np.where(item_idx <= num_items, item_idx, 0),
        lengths=batch.lengths,
        user_idx=batch.user_idx.numpy(),
        time=batch.time.numpy(),
        events=events,
        users=users,
        requests=requests,
    )


def _write_self_check(
    folder: Path, run: TrainedRun, *, manifest: Manifest, index: Index
) -> dict[str, npt.NDArray[Any]]:
    """Compare the exported tower with the trained one on real histories, and store some requests with their answers.

    Returns:
        What is stored.
    """
    tower = UserTowerSession(folder, manifest)
    requests = real_requests(run)
    # Long and short histories, and an empty one of an unknown user.
    chosen = np.linspace(0, len(requests.user_idx) - 1, 16 * NUM_SELF_CHECKS).astype(np.int64)
    user_idx, end = (np.concatenate([column[chosen], [other]]) for column, other in zip(requests, (-1, 0), strict=True))
    batch = run.builder.requests(Requests(user_idx, end))
    _check_equal(tower, run.model, batch=batch, num_items=run.dataset.meta.num_known)
    few = np.linspace(0, len(user_idx) - 1, NUM_SELF_CHECKS).astype(np.int64)
    batch = run.builder.requests(Requests(user_idx[few], end[few]))
    inputs = pad(to_histories(batch, run.dataset.meta.num_known), manifest.inputs)
    users = tower.run(inputs)
    best, rows = search_users(index, users, k=1)
    stored: dict[str, npt.NDArray[Any]] = {f"input:{name}": value for name, value in inputs.items()}
    stored |= {"embeddings": users, "best_scores": best[:, 0]}
    if (rows >= 0).all():
        stored["best_items"] = np.asarray(pq.read_table(folder / ITEMS, columns=["item_idx"])["item_idx"])[rows[:, 0]]
    np.savez(folder / SELF_CHECK, allow_pickle=False, **stored)
    return stored


def _check_equal(tower: UserTowerSession, model: Model, *, batch: Batch, num_items: int) -> None:
    with torch.inference_mode():
        expected = model.encode_users(batch).numpy()
    difference = float(np.abs(tower(to_histories(batch, num_items)) - expected).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise UserError(
            f"user_tower: the exported tower differs from the trained one by {difference:.2g}, expected equal "
            "embeddings; forward and forward_padded of its encoder must agree"
        )


def real_requests(run: TrainedRun) -> Requests:
    """Return the validation requests; without a validation part the histories of all users before the test part."""
    # A refitted data set has its validation part in training; the prepared one still separates it.
    for dataset in (run.dataset, PreparedDataset.open(run.dataset.path)):
        if len((requests := dataset.requests("val")).user_idx):
            return requests
    return Requests(np.arange(run.dataset.num_users), run.dataset.val_end)
