"""The candidate as it would be served: its run, packed beside it, so that gates judge what goes out."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recsys.experiments.assembly import instantiate
from recsys.experiments.trained_run import TrainedRun
from recsys.publishing.corpus_policies import choose
from recsys.publishing.promote import promote
from recsys.release.manifest import describe_file
from recsys.release.runtime.retriever import Retriever
from recsys.release.store import ReleaseStore

# A store of its own below the run folder: nothing serves from there.
STAGED = "staged"


def stage(run: TrainedRun, index: DictConfig, model: str, recall_target: float, corpus: DictConfig) -> Retriever:
    """The release that promotion would make of the run; made once for the same weights, configuration and index.

    Args:
        run: finished.
        index: an option of the group `index`.
        model: name of the model.
        recall_target: share of the exact top 100 that the index must find.
        corpus: an option of the group `corpus`.

    Raises:
        UserError, RuntimeError: promotion refuses the run.
    """
    folder = run.path / STAGED
    store = ReleaseStore(folder)
    weights, config = (describe_file(run.path / name).sha256 for name in ("checkpoints/best.ckpt", "config.yaml"))
    settings: list[Any] = [
        weights,
        config,
        run.dataset.meta.fingerprint,
        OmegaConf.to_container(index),
        model,
        recall_target,
    ]
    policy = instantiate(corpus)
    # The files that a policy reads may change under the same names.
    items = choose(policy, run.dataset, run.corpus)
    settings += [OmegaConf.to_container(corpus), hashlib.sha256(items.tobytes()).hexdigest()]
    made_from, mark = json.dumps(settings), folder / "made_from.json"
    if not mark.exists() or json.loads(mark.read_text())["from"] != made_from:
        version = promote(run, instantiate(index), store, model, recall_target, policy).version
        aside = mark.with_suffix(".part")
        aside.write_text(json.dumps({"from": made_from, "version": version}))
        os.replace(aside, mark)
    return Retriever.load(folder, json.loads(mark.read_text())["version"], threads=1)


def open_release(store: str | Path, name: str) -> Retriever:
    """A release, by version or alias, on one thread: what is timed is the work, not the machine.

    Raises:
        UserError: there is no such release, or it is not what it says.
    """
    return Retriever.load(store, name, threads=1)
