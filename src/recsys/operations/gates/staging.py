"""Packing of a candidate's run into a release below the run folder, so that gates judge the artifact to be served."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from recsys.core.errors import UserError
from recsys.core.io import atomic_write
from recsys.experiments.assembly import instantiate
from recsys.experiments.trained_run import TrainedRun
from recsys.publishing.corpus_policies import choose_items
from recsys.publishing.promote import promote
from recsys.release.manifest import describe_file
from recsys.release.parts import count_of
from recsys.release.runtime.retriever import Retriever
from recsys.release.store import ReleaseStore
from recsys.release.verification import verify_release

# A release store below the run folder. No server loads releases from there.
STAGED = "staged"


class PackingError(UserError):
    """No release can be made of a run: export, index or self-check fail. This stops the candidate."""


@dataclass(frozen=True, kw_only=True)
class PackingSettings:
    """Settings of the release that is made of a run, as in `conf/gates.yaml`."""

    index: DictConfig
    corpus: DictConfig
    model: str
    recall_target: float
    item_embeddings: str = "float32"
    shards: int | None = None

    @classmethod
    def from_config(cls, config: DictConfig) -> PackingSettings:
        """Return the settings in a configuration of `gates.yaml` or `retrain.yaml`."""
        names = ("index", "corpus", "model", "recall_target", "item_embeddings", "shards")
        return cls(**{name: config[name] for name in names})

    def num_parts(self, served: Retriever | None) -> int:
        """Return `shards`, or the number of parts of the served release if `shards` is null."""
        if self.shards is not None:
            return self.shards
        return 1 if served is None else count_of(served.manifest)

    def storage(self, num_parts: int) -> list[object]:
        """Precision and parts of the release; no defaults, because earlier releases were made without a choice."""
        return [one for one in (self.item_embeddings, num_parts) if one not in ("float32", 1)]


def stage(run: TrainedRun, settings: PackingSettings, *, served: Retriever | None = None) -> Retriever:
    """Return the release that promotion would make of the run.

    The release is made once for the same weights, configuration, data and settings.

    Args:
        run: finished run.
        settings: settings of the release.
        served: release that it would replace; None if nothing is served.

    Raises:
        UserError: If the settings are wrong.
        PackingError: If promotion refuses the run.
    """
    folder, num_parts = run.path / STAGED, settings.num_parts(served)
    index, policy = instantiate(settings.index), instantiate(settings.corpus)
    # A policy may read files, and their content may change under the same name.
    items = choose_items(policy, run.dataset, corpus=run.corpus)
    made_from = json.dumps(
        [
            *(describe_file(run.path / name).sha256 for name in ("checkpoints/best.ckpt", "config.yaml")),
            run.dataset.meta.fingerprint,
            OmegaConf.to_container(settings.index),
            settings.model,
            settings.recall_target,
            *settings.storage(num_parts),
            OmegaConf.to_container(settings.corpus),
            hashlib.sha256(items.tobytes()).hexdigest(),
        ]
    )
    mark = folder / "made_from.json"
    try:
        if not mark.exists() or json.loads(mark.read_text())["from"] != made_from:
            version = promote(
                run,
                index,
                store=ReleaseStore(folder),
                model=settings.model,
                recall_target=settings.recall_target,
                policy=policy,
                item_embeddings=settings.item_embeddings,
                shards=num_parts,
            ).version
            atomic_write(mark, json.dumps({"from": made_from, "version": version}))
        return open_staged(folder, json.loads(mark.read_text())["version"])
    except (UserError, torch.onnx.OnnxExporterError) as error:
        raise PackingError(" ".join(str(error).split())) from error


def open_staged(store: Path, version: str) -> Retriever:
    """Open a release that this command has made, which needs no signature, on one thread.

    Raises:
        UserError: If it fails verification.
    """
    return Retriever(store / version, verify_release(store / version), threads=1)


def open_release(store: str | Path, name: str) -> Retriever:
    """Open a release on one thread, so that timings do not depend on the number of cores.

    Raises:
        UserError: If there is no such release, or it fails verification.
    """
    return Retriever.load(store, name, threads=1)
