"""Promotion of a run to a release: encode the corpus, build, tune and check the index, and publish the pair."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from recsys.core.errors import UserError
from recsys.core.index_time import IndexTime
from recsys.core.progress import Progress
from recsys.core.types import Float32Array
from recsys.data.batches.loaders import RequestLoader
from recsys.data.dataset import Requests
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import ModelRanker, encode_corpus, evaluate
from recsys.experiments.trained_run import TrainedRun
from recsys.index import InDatabase, Index, Tuning, tune
from recsys.index.ann_index import Followable
from recsys.index.merging import present_embeddings
from recsys.publishing.collections import fill_collection
from recsys.publishing.corpus_policies import AllItems, CorpusPolicy, Items, choose_items
from recsys.publishing.release_check import IndexQueries, check_release, index_recall
from recsys.publishing.release_writer import pack, real_requests
from recsys.release.precision import decode, encode
from recsys.release.runtime.retriever import Retriever
from recsys.release.store import ReleaseStore

log = logging.getLogger("recsys")

# Number of user embeddings that tune the index, and of others that check it.
NUM_QUERIES = 1000
TOP_K = 100
# Largest loss of test recall@100 by the rounding of stored embeddings.
MOST_LOST = 0.002
MOST_SHARDS = 1000
# Item embeddings of more bytes lie in a file while a release is made.
LARGE_BYTES = 256 << 20


@dataclass(frozen=True)
class Promotion:
    """A published release.

    Attributes:
        version: version of the release.
        num_items: number of items in the index.
        recall: recall of the index against exact search, on user embeddings that did not tune it.
        tuning: measurements that chose the effort of the index.
        corpus: choice of the items, as recorded in the manifest.
        retriever: the release, opened with one thread.
    """

    version: str
    num_items: int
    recall: float
    tuning: Tuning
    corpus: Mapping[str, Any]
    retriever: Retriever


def promote(
    run: TrainedRun,
    index: Index,
    *,
    store: ReleaseStore,
    model: str,
    recall_target: float = 0.98,
    policy: CorpusPolicy | None = None,
    index_time: IndexTime | None = None,
    refreshed: Mapping[str, Any] | None = None,
    earlier: Index | None = None,
    item_embeddings: str = "float32",
    shards: int = 1,
) -> Promotion:
    """Publish a run with an index as one release, and open the release to check it.

    An alias may point at the release once this returns.

    Args:
        run: finished run.
        index: index that is not built yet.
        store: store of releases.
        model: name of the model that the release is a version of.
        recall_target: share of the exact top 100 that the index must find.
        policy: choice of the items of the index; all if None.
        index_time: time for which the item biases of the model are; None for that of the evaluation.
        refreshed: origin of an index of newer data than the run's; see `Manifest.refreshed`.
        earlier: index of an earlier release of the same towers, whose clustering and effort are kept if they suffice.
        item_embeddings: how the release stores them: float32, float16 or int8.
        shards: number of parts that the release has for hosts of `shard=I/N`; 1 for none.

    Raises:
        UserError: If the index misses the recall target, the stored embeddings lose recall, or the written release
            cannot be opened or answers otherwise than its index did.
    """
    if not 1 <= shards <= MOST_SHARDS:
        raise UserError(f"shards: found {shards}, expected 1 to {MOST_SHARDS}")
    # The same process may need large embeddings as a file only.
    is_large = len(run.corpus) * run.model.dim * 4 > LARGE_BYTES
    run, embeddings, corpus = _choose(run, policy or AllItems(), folder=store.root if is_large else None)
    if shards > len(embeddings):
        raise UserError(f"shards: found {shards}, expected at most the number of items, {len(embeddings)}")
    stored = encode(embeddings, item_embeddings)
    precise, embeddings = embeddings, decode(stored)
    queries = _validation_embeddings(run)
    # Recall is measured on other users than those that tune the index, if there are enough.
    halves = (queries[::2], queries[1::2]) if len(queries) >= 20 else (queries, queries)
    tuning = _build(index, embeddings, queries=halves[0], recall_target=recall_target, earlier=earlier)
    if earlier is not None and not tuning.reached:
        tuning = _build(index, embeddings, queries=halves[0], recall_target=recall_target, earlier=None)
    if not tuning.reached:
        raise UserError(
            f"index: finds {tuning.chosen.recall:.4f} of the exact top {tuning.k} at most, expected {recall_target}; "
            f"choose another index= or a lower recall_target="
        )
    checked = IndexQueries.of(embeddings, halves[1], k=tuning.k)
    recall = 1.0 if index.is_exact else index_recall(index, embeddings, checked)
    log.info("index recall@%d %.4f, measured on %d users", tuning.k, recall, len(halves[1]))

    measured = {"recall": recall, "tuning": tuning.to_json()}
    complete = None
    if isinstance(index, InDatabase):
        complete = functools.partial(
            fill_collection, store=store, database=index.database, halves=halves, recall_target=recall_target
        )
    if item_embeddings != "float32":
        measured["item_embeddings"] = _rounding(run, {"float32": precise, item_embeddings: embeddings})
    version = store.publish(
        lambda folder: pack(
            folder,
            run,
            index=index,
            embeddings=embeddings,
            stored=stored,
            measured=measured,
            model=model,
            corpus=corpus,
            index_time=index_time,
            refreshed=refreshed,
            shards=shards,
        ),
        complete,
    )
    retriever = check_release(run, store, version=version, queries=checked, recall=recall)
    return Promotion(version, len(run.corpus), recall, tuning, corpus, retriever)


def _rounding(run: TrainedRun, embeddings: Mapping[str, Float32Array]) -> dict[str, Any]:
    """Return the test recall of float32 and of the stored precision; refuse a loss above `MOST_LOST`."""
    tested = _test_recall(run, {name: (run.corpus, torch.from_numpy(found)) for name, found in embeddings.items()})
    recall = {name: values["recall@100"] for name, values in tested.get("test", {}).items()}
    name = list(embeddings)[-1]
    if not recall:
        log.warning("item_embeddings=%s: the data has no test part, so the loss of recall is not measured", name)
        return {"type": name, "recall@100": None}
    precise, rounded = (recall[name] for name in embeddings)
    log.info("test recall@100 %.4f with item embeddings of %s, %.4f with float32", rounded, name, precise)
    if rounded < precise - MOST_LOST:
        raise UserError(
            f"item_embeddings={name}: test recall@100 is {rounded:.4f}, expected at most {MOST_LOST} less than the "
            f"{precise:.4f} of float32; item_embeddings=float32 stores them exactly"
        )
    return {"type": name, "recall@100": recall}


def _build(
    index: Index, embeddings: Float32Array, *, queries: Float32Array, recall_target: float, earlier: Index | None
) -> Tuning:
    log.info("building the index")
    if isinstance(index, Followable):
        index.follow(earlier)
    with Progress("building the index"):
        index.build(embeddings)
    # A search for most of a small corpus would find everything with any index.
    k, start = min(TOP_K, max(1, len(embeddings) // 10)), None if earlier is None else earlier.effort
    with Progress("tuning the index"):
        return tune(index, embeddings, queries=queries, recall_target=recall_target, k=k, start=start)


def _choose(
    run: TrainedRun, policy: CorpusPolicy, *, folder: Path | None
) -> tuple[TrainedRun, Float32Array, dict[str, Any]]:
    """Return the run with the chosen items as its corpus, their embeddings, and the manifest's record of the choice.

    Args:
        run: finished run.
        policy: choice of the items.
        folder: folder of a file that holds the embeddings of all items; None for memory.
    """
    chosen = choose_items(policy, run.dataset, corpus=run.corpus)
    record = {**policy.describe(), "num_items": len(chosen), "of": len(run.corpus)}
    log.info("encoding %s items", f"{len(run.corpus):,}")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    embeddings = encode_corpus(run.model, torch.from_numpy(run.corpus), folder=folder)
    if len(chosen) < len(run.corpus):
        rows = torch.from_numpy(np.searchsorted(run.corpus, chosen))
        log.info("test recall of %d items, and of the %d chosen", len(run.corpus), len(chosen))
        record |= _test_recall(run, {"all": (run.corpus, embeddings), "chosen": (chosen, embeddings[rows])})
        embeddings = embeddings[rows].contiguous()
    return dataclasses.replace(run, corpus=chosen), embeddings.numpy(), record


def _test_recall(run: TrainedRun, corpora: Mapping[str, tuple[Items, torch.Tensor]]) -> dict[str, Any]:
    """Return the test metrics of each corpus with exact search, by name; empty if the data has no test part."""
    requests = run.dataset.requests("test")
    if not len(requests.user_idx):
        return {}
    found = {}
    for name, (items, embeddings) in corpora.items():
        metrics = RetrievalMetrics(run.dataset, len(items))
        batches = RequestLoader(run.builder, requests)
        values = evaluate(
            ModelRanker(run.model, items, embeddings=embeddings),
            run.dataset,
            part="test",
            batches=batches,
            metrics=metrics,
            exclude_seen=run.config.exclude_seen,
        )
        # JSON has no nan, which is the value of a slice without users.
        found[name] = {metric: value for metric, value in values.items() if math.isfinite(value)}
    return {"test": found}


def _validation_embeddings(run: TrainedRun) -> Float32Array:
    embeddings = []
    requests = real_requests(run)
    if len(requests.user_idx) > 2 * NUM_QUERIES:
        chosen = np.random.default_rng(0).choice(len(requests.user_idx), 2 * NUM_QUERIES, replace=False)
        requests = Requests(*(column[chosen] for column in requests))
    with torch.inference_mode():
        for batch, _ in RequestLoader(run.builder, requests):
            users = run.model.encode_users(batch).numpy()
            # A query of the index is one embedding.
            embeddings.append(users if users.ndim == 2 else users[present_embeddings(users)])
    return np.concatenate(embeddings)


def report(promotion: Promotion, console: Console | None = None) -> None:
    """Print version, size and index recall of a release, and the cost of the choice of items."""
    tuning = promotion.tuning
    table = Table("release", promotion.version)
    table.add_row("items", f"{promotion.num_items:,}")
    table.add_row(f"index recall@{tuning.k}", f"{promotion.recall:.4f} (target {tuning.recall_target})")
    table.add_row("index queries per second", f"{tuning.chosen.queries_per_second:,.0f}")
    corpus = promotion.corpus
    if corpus["num_items"] < corpus["of"]:
        table.add_row(
            "items left out", f"{corpus['of'] - corpus['num_items']:,} of {corpus['of']:,} ({corpus['policy']})"
        )
        for name in ("recall@10", "recall@100") if "test" in corpus else ():
            kept, whole = (corpus["test"][which][name] for which in ("chosen", "all"))
            table.add_row(f"test {name}", f"{kept:.4f} (all items: {whole:.4f})")
    (console or Console()).print(table)
