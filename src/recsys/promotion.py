"""From a run to a release: encode the corpus, build, tune and check the index, and publish the pair."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from recsys.data.dataset import Requests
from recsys.data.loader import RequestLoader
from recsys.errors import UserError, nearest
from recsys.evaluation.ranking import encode_corpus
from recsys.index import Index, Tuning, exact_search, tune
from recsys.packing import pack, read_json, real_requests
from recsys.release.store import ReleaseStore
from recsys.runs import TrainedRun
from recsys.serving.tower import Floats

log = logging.getLogger("recsys")

# User embeddings that tune the index, and as many others that check it.
NUM_QUERIES = 1000
TOP_K = 100


@dataclass(frozen=True)
class Promotion:
    """A published release.

    Attributes:
        recall: of the index against exact search, on user embeddings that did not tune it.
    """

    version: str
    num_items: int
    recall: float
    tuning: Tuning


def promote(run: TrainedRun, index: Index, store: ReleaseStore, model: str, recall_target: float = 0.98) -> Promotion:
    """Publish `run` with `index` as one release.

    Args:
        run: finished.
        index: not built yet.
        store: of releases.
        model: name of the model that the release is a version of.
        recall_target: share of the exact top 100 that the index must find.

    Raises:
        UserError: the index does not reach the target.
    """
    log.info("encoding %d items", len(run.corpus))
    embeddings = encode_corpus(run.model, torch.from_numpy(run.corpus)).numpy()
    log.info("building the index")
    index.build(embeddings)
    queries = _validation_embeddings(run)
    # Recall is told on other users than those that the effort was chosen with, where there are enough.
    halves = (queries[::2], queries[1::2]) if len(queries) >= 20 else (queries, queries)
    # Asked for most of a small corpus, any index searches all of it, and nothing would be learned.
    k = min(TOP_K, max(1, len(embeddings) // 10))
    tuning = tune(index, embeddings, halves[0], recall_target, k)
    if not tuning.reached:
        raise UserError(
            f"index: finds {tuning.chosen.recall:.4f} of the exact top {tuning.k} at most, expected {recall_target}; "
            f"choose another index= or a lower recall_target="
        )
    recall = _recall(index, embeddings, halves[1], tuning.k)
    log.info("index recall@%d %.4f on %d other users", tuning.k, recall, len(halves[1]))

    measured = {"recall": recall, "tuning": tuning.to_json()}
    version = store.publish(lambda folder: pack(folder, run, index, embeddings, measured, model))
    return Promotion(version, len(run.corpus), recall, tuning)


def choose_run(run: str | None, sweep: str | None, metric: str) -> Path:
    """The folder `run`, or the best run of the folder `sweep`.

    Raises:
        UserError: none or both are given, or the sweep has no such run.
    """
    if (run is None) == (sweep is None):
        raise UserError("expected one of run=RUN (a run folder) and sweep=DIR (a folder of run folders)")
    return Path(run) if run is not None else best_run(str(sweep), metric)


def best_run(sweep: str | Path, metric: str) -> Path:
    """The finished run below the folder `sweep` with the highest `metric`; of equal ones the first by path.

    Raises:
        UserError: there is no finished run, or none has the metric.
    """
    sweep = Path(sweep)
    if not sweep.is_dir():
        raise UserError(f"sweep: {sweep} is not a folder")
    found: list[tuple[float, Path]] = []
    names: set[str] = set()
    finished = 0
    for path in sorted(sweep.rglob("metrics.json")):
        state, metrics = read_json(path.with_name("run.json")), read_json(path)
        # A folder of baselines may lie beside the runs that were measured against it.
        if state.get("status") != "finished" or "generator" in state:
            continue
        finished += 1
        names |= metrics.keys()
        value = metrics.get(metric)
        if isinstance(value, int | float) and not math.isnan(value):
            found.append((-value, path.parent))
    if not finished:
        raise UserError(f"sweep: {sweep} holds no finished run")
    if not found:
        raise UserError(
            f"metric: none of {finished} finished runs below {sweep} has '{metric}'{nearest(metric, names)}"
        )
    return min(found)[1]


def _validation_embeddings(run: TrainedRun) -> Floats:
    embeddings = []
    requests = real_requests(run)
    if len(requests.user_idx) > 2 * NUM_QUERIES:
        chosen = np.random.default_rng(0).choice(len(requests.user_idx), 2 * NUM_QUERIES, replace=False)
        requests = Requests(*(column[chosen] for column in requests))
    with torch.inference_mode():
        for batch, _ in RequestLoader(run.builder, requests):
            embeddings.append(run.model.encode_users(batch).numpy())
    return np.concatenate(embeddings)


def _recall(index: Index, embeddings: Floats, queries: Floats, k: int) -> float:
    if index.is_exact:
        return 1.0
    exact, _ = exact_search(embeddings, np.ascontiguousarray(queries), k)
    scores, _ = index.search(queries, k)
    threshold = exact[:, -1] - 1e-6 * np.maximum(np.abs(exact[:, 0]), np.abs(exact[:, -1]))
    return float((scores >= threshold[:, None]).mean())


def report(promotion: Promotion, console: Console | None = None) -> None:
    """Print what a reader of the terminal wants to know of a release."""
    tuning = promotion.tuning
    table = Table("release", promotion.version)
    table.add_row("items", f"{promotion.num_items:,}")
    table.add_row(f"index recall@{tuning.k}", f"{promotion.recall:.4f} (target {tuning.recall_target})")
    table.add_row("index queries per second", f"{tuning.chosen.queries_per_second:,.0f}")
    (console or Console()).print(table)
