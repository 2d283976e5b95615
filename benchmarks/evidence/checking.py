"""Check of a run by an independent scorer: it reads raw tables and ranked ids, and must find the figures of the run."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from evidence.plan import Job

from recsys.baselines.interactions import Interactions
from recsys.baselines.request_batches import request_batches
from recsys.core.io import atomic_write
from recsys.core.stored_config import load_config
from recsys.evaluation.metrics import CUTOFFS, NAMES
from recsys.evaluation.relevance import seen_items
from recsys.experiments.assembly import instantiate, open_data
from recsys.experiments.run_folder import METRICS, RunStatus, read_json, read_state

CHECK = "check.json"
# The scorer rounds to five digits.
TOLERANCE = 1.1e-5


def is_checked(folder: Path) -> bool:
    """Return True if the run is finished and its figures are those that the scorer has found."""
    file = folder / CHECK
    if not file.exists() or not (folder / METRICS).exists():
        return False
    content = read_json(file)
    return bool(content["passed"]) and content["metrics"] == digest(folder / METRICS)


def check(
    job: Job, runs: Path, *, data: Path, scorer: Path, launch: Callable[[Sequence[str], Path, int], int], log: Path
) -> str:
    """Score a finished run and write `check.json` into its folder; return the fault, empty for none."""
    folder = job.folder(runs)
    if not folder.exists() or read_state(folder).status != RunStatus.FINISHED:
        return f"not finished, see {log}"
    if not scorer.exists():
        return f"not checked: no scorer at {scorer}"
    lists = folder / "recommendations.parquet"
    if job.seed is None:
        write_lists(folder, lists)
    else:
        words = ["recommend", f"run={folder}", "users=test", "k=100", f"out={lists}"]
        if launch(words, log, 1):
            return f"no recommendations, see {log}"
    try:
        found = score(job, runs, data=data, scorer=scorer, lists=lists)
    except SystemExit as error:
        found = {"fault": str(error)}
    metrics = read_json(folder / METRICS)
    names = [f"{name}@{cutoff}" for name in NAMES for cutoff in CUTOFFS]
    differences = {name: abs(found.get(name, np.inf) - metrics[f"test/{name}"]) for name in names}
    worst = max(differences, key=lambda name: differences[name])
    passed = differences[worst] <= TOLERANCE and not found.get("unserved")
    content = {
        "passed": passed,
        "largest_difference": float(differences[worst]) if np.isfinite(differences[worst]) else None,
        "metrics": digest(folder / METRICS),
        "scorer": digest(scorer),
        "found": found,
    }
    atomic_write(folder / CHECK, json.dumps(content, indent=2) + "\n")
    lists.unlink()
    fault = found.get("fault") or f"{worst} differs by {differences[worst]:.5f}"
    return "" if passed else f"THE SCORER FINDS OTHER FIGURES: {fault}"


def score(job: Job, runs: Path, *, data: Path, scorer: Path, lists: Path) -> dict[str, Any]:
    """Return the figures of the scorer. The raw table is split once for each data set."""
    program = load(scorer)
    parts = runs / job.data.name / "parts"
    if not (parts / "test.parquet").exists():
        root = next(word for word in job.data.overrides if word.startswith("data.root="))
        raw = Path(root.partition("=")[2].format(data=data)) / "interactions.parquet"
        program.split(job.data.protocol, raw, parts)
    found: dict[str, Any] = program.score(parts / "test.parquet", lists)
    return found


def write_lists(folder: Path, path: Path) -> None:
    """Write the first hundred items of a baseline for every test user, as `recsys recommend` does for a model."""
    config, settings = load_config(folder / "config.yaml"), read_state(folder).settings
    dataset = open_data(config)
    generator = instantiate(config.generator, **settings)
    generator.fit(Interactions(dataset, "val"))
    data = dataset.refit()
    item_ids = data.item_ids.to_numpy(zero_copy_only=False)
    users, lists = [], []
    for batch, requests in request_batches(data, data.requests("test")):
        _, items = generator.rank(batch, requests, k=100, exclude=seen_items(data, requests))
        users.append(requests.user_idx)
        lists += [item_ids[row[row > 0] - 1].tolist() for row in items.numpy()]
    table = {"user_id": data.user_ids.take(pa.array(np.concatenate(users))), "item_ids": lists}
    pq.write_table(pa.table(table), path)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("independent_scorer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
