"""Refresh of a served release: the same towers, with the items, counts and ages of newer data.

newer data in the codes of the towers -> item biases as of now -> index -> gates -> publish -> move the alias

Every step leaves a result that is named by its content, so the same command continues a refresh that was killed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf, open_dict

from recsys.core.errors import UserError
from recsys.core.index_time import DAY, IndexTime
from recsys.core.io import atomic_write
from recsys.core.suppression import frozen_now
from recsys.core.types import Float32Array
from recsys.data.dataset import PreparedDataset
from recsys.experiments.assembly import instantiate
from recsys.experiments.compose import compose_command
from recsys.experiments.item_biases import set_bias
from recsys.experiments.overrides import quoted
from recsys.experiments.trained_run import TrainedRun
from recsys.experiments.wandb_mirror import mirror_release
from recsys.models.blend import write_bias
from recsys.operations.gates.judge import JudgeSettings, judge_run
from recsys.operations.gates.staging import STAGED, PackingSettings, open_release, open_staged
from recsys.operations.gates.verdict import Verdict
from recsys.operations.mirroring import mirror
from recsys.publishing.corpus_policies import choose_items
from recsys.publishing.index_times import newest_index_time, with_parts
from recsys.publishing.newer_data import absolute, on_newer_data, record
from recsys.publishing.promote import promote
from recsys.publishing.towers import Towers
from recsys.release.collections import drop_collections
from recsys.release.manifest import Manifest
from recsys.release.runtime.retriever import Retriever
from recsys.release.signing import check_signer
from recsys.release.store import ReleaseStore
from recsys.serving.observability.samples import read_samples

log = logging.getLogger("recsys")


@dataclass(frozen=True, kw_only=True)
class Refresh:
    """Result of a refresh.

    Attributes:
        outcome: `kept` if the alias points at the release now, `stopped` if gates stopped it, `unchanged` if the
            refreshed release is the served one.
        version: version of the refreshed release.
        served: version of the release that was refreshed.
        alias: alias that was moved; None for none.
        verdict: outcomes of the gates; None if nothing was judged.
        path: file of the verdict.
        seconds: duration.
    """

    outcome: Literal["kept", "stopped", "unchanged"]
    version: str
    served: str
    alias: str | None
    verdict: Verdict | None
    path: Path | None
    seconds: float


def refresh(
    release: str = "production",
    *,
    data: str | Path,
    store: str | Path = "releases",
    now: str | int = "newest",
    horizon_days: float = 1.0,
    alias: str | None = None,
    overrides: Sequence[str] = (),
) -> Refresh:
    """Refresh a served release from newer data, as `recsys refresh` does.

        result = recsys.refresh("production", data="events", store="releases")
        result.outcome, result.version      # "kept", and the version that `production` points at now

    Args:
        release: version or alias of the release whose towers stay.
        data: folder with the newest events and items.
        store: folder of releases.
        now: date, time or seconds at which the index begins to serve; `newest` or `clock`.
        horizon_days: days that the index will serve.
        alias: alias to move; None for `release` if that is an alias.
        overrides: further arguments of `recsys refresh`, such as `index=hnsw` or `folder=DIR`.

    Raises:
        UserError: If the release, the data or a setting is wrong.
    """
    words = [f"release={quoted(release)}", f"data.root={quoted(str(data))}", f"store={quoted(str(store))}"]
    words += [f"now={quoted(str(now))}", f"horizon_days={horizon_days}"]
    words += [] if alias is None else [f"alias={quoted(alias)}"]
    return run_refresh(compose_command("refresh", [*words, *overrides]))


def run_refresh(config: DictConfig) -> Refresh:
    """Refresh a release, let the gates compare it with the release, publish it and move the alias.

    Args:
        config: composed from `conf/refresh.yaml`.

    Raises:
        UserError: If the release, the data or a setting is wrong, another refresh of the model is running, or the alias
            was moved meanwhile.
    """
    begin = time.monotonic()
    check_signer()
    store, name = ReleaseStore(config.store), str(config.release)
    alias = config.alias if config.alias is not None else name if name in store.aliases() else None
    if alias is not None:
        store.check_alias(alias)
    folder = Path(config.folder).absolute() / str(config.model)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=config.wait):
            return _refresh(config, store, folder=folder, alias=alias, begin=begin)
    except Timeout as error:
        raise UserError(f"{folder}: another refresh of {config.model} is running; wait=SECONDS waits for it") from error


def _refresh(config: DictConfig, store: ReleaseStore, *, folder: Path, alias: str | None, begin: float) -> Refresh:
    release = open_release(config.store, str(config.release))
    served, root = release.version, absolute(str(config.data.root))
    towers = Towers.of_release(release.folder, release.manifest)
    with open_dict(towers.config):
        towers.config.data.suppressed = frozen_now(towers.config.data.get("suppressed"), store=store.root)
    dataset = towers.prepare(root)
    index_time = newest_index_time(config.now, config.horizon_days, dataset=dataset)
    run = on_newer_data(towers, dataset, root=root, index_time=index_time)
    candidate = _stage(config, run, folder=folder, index_time=index_time, served=release, origin=record(towers, root))

    def result(outcome: Literal["kept", "stopped", "unchanged"], verdict: Verdict | None, path: Path | None) -> Refresh:
        return Refresh(
            outcome=outcome,
            version=candidate.version,
            served=served,
            alias=alias if outcome == "kept" else None,
            verdict=verdict,
            path=path,
            seconds=time.monotonic() - begin,
        )

    if candidate.version == served:
        return result("unchanged", None, None)
    verdict = _judge(config, run, candidate=candidate, served=release, dataset=dataset)
    path = verdict.save(verdict_folder(folder, candidate.version))
    if not verdict.passed:
        return result("stopped", verdict, path)
    if alias is not None and alias == str(config.release) and store.aliases().get(alias) != served:
        raise UserError(
            f"alias: {alias} was moved from {served} to {store.aliases().get(alias)} meanwhile; start the refresh again"
        )
    version = store.adopt(candidate.folder)
    if alias is not None:
        when = "" if index_time is None else f" now={index_time.now} horizon_days={index_time.horizon_days:g}"
        store.set_alias(alias, version, why=f"recsys refresh from {served}{when}")
    mirror(
        lambda: mirror_release(
            towers.config.logger.project,
            store.root / version,
            model=config.model,
            alias=alias,
            registry=config.registry,
        )
    )
    drop_collections(folder / STAGED)
    shutil.rmtree(folder / STAGED, ignore_errors=True)
    return result("kept", verdict, path)


def verdict_folder(folder: Path, version: str) -> Path:
    """Return the folder of the verdict on a refreshed release, which is made if it does not exist."""
    path = folder / "verdicts" / version
    path.mkdir(parents=True, exist_ok=True)
    return path


def _stage(
    config: DictConfig,
    run: TrainedRun,
    *,
    folder: Path,
    index_time: IndexTime | None,
    served: Retriever,
    origin: dict[str, Any],
) -> Retriever:
    """Return the refreshed release below the folder, which is made once for the same towers, data and settings."""
    origin = origin | {"from": served.version}
    packing, staged = PackingSettings.from_config(config), folder / STAGED
    index, policy, num_parts = instantiate(packing.index), instantiate(packing.corpus), packing.num_parts(served)
    items = choose_items(policy, run.dataset, corpus=run.corpus)
    settings = [OmegaConf.to_container(node) for node in (packing.index, packing.corpus)]
    made_from = json.dumps(
        [
            origin,
            run.dataset.meta.fingerprint,
            None if index_time is None else dataclasses.asdict(index_time),
            [packing.model, packing.recall_target, *packing.storage(num_parts), *settings],
            hashlib.sha256(items.tobytes()).hexdigest(),
        ]
    )
    mark = staged / "made_from.json"
    if mark.exists() and json.loads(mark.read_text())["from"] == made_from:
        return open_staged(staged, json.loads(mark.read_text())["version"])
    drop_collections(staged)
    shutil.rmtree(staged, ignore_errors=True)
    promotion = promote(
        run,
        index,
        store=ReleaseStore(staged),
        model=packing.model,
        recall_target=packing.recall_target,
        policy=policy,
        index_time=index_time,
        refreshed={**origin, "folder": str(folder)},
        earlier=served.index,
        item_embeddings=packing.item_embeddings,
        shards=num_parts,
    )
    atomic_write(mark, json.dumps({"from": made_from, "version": promotion.version}))
    return promotion.retriever


def _judge(
    config: DictConfig, run: TrainedRun, *, candidate: Retriever, served: Retriever, dataset: PreparedDataset
) -> Verdict:
    """Compare both releases on the newest events, the candidate with the item biases of the time before them."""
    index_time, past = candidate.manifest.index_time, None
    if index_time:
        now = int(index_time["now"])
        since = _judged_since(dataset, now, days=float(index_time["horizon_days"]), served=served.manifest)
        judged = with_parts(dataset, train_until=run.state.train_until, since=since, until=now)
        set_bias(run.model, judged, config=run.config, index_time=IndexTime(since, (now - since) / DAY))
        past = _with_biases(candidate, run)
    else:
        # Without a clock the last event of each user is judged, and data gates compare it with the one before it.
        last, one_before = (np.maximum(dataset.offsets[1:] - back, dataset.offsets[:-1]) for back in (1, 2))
        judged = dataclasses.replace(dataset, train_end=one_before, val_end=last)
    # An index of the past needs no time of the machine: real events may be older than that by years.
    present = int(time.time()) if config.now in (None, "newest", "clock") else int(index_time.get("now", time.time()))
    settings = JudgeSettings(
        gates={name: instantiate(node) for name, node in config.gates.items() if node is not None},
        packing=PackingSettings.from_config(config),
        max_users=config.max_users,
        now=present,
        samples=read_samples(config.samples.folder, config.samples.newest),
    )
    return judge_run(run, served, settings=settings, dataset=judged, candidate=candidate, past=past)


def _judged_since(dataset: PreparedDataset, now: int, *, days: float, served: Manifest) -> int:
    """Return the begin of the events to judge by: the last `days`, without those that the served release counted.

    If that leaves no event, they are the last `days` before the newest event.
    """
    time_ = np.asarray(dataset.time)
    newest = int(time_[time_ < now].max())
    begin = max(now - int(days * DAY), int(served.index_time.get("now", 0)))
    return begin if begin <= newest else newest + 1 - int(days * DAY)


def _with_biases(candidate: Retriever, run: TrainedRun) -> Float32Array:
    """Return the item embeddings of a release with the item biases that the model has now."""
    embeddings = np.array(candidate.item_search.embeddings)
    items = torch.from_numpy(np.asarray(candidate.items["item_idx"]).astype(np.int64))
    write_bias(run.model, torch.from_numpy(embeddings), item_idx=items)
    return embeddings
