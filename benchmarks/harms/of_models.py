"""Harms to a model: to its weights, to its index, and to its training."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import torch
from scene import Scene

from recsys.data.dataset import PreparedDataset
from recsys.evaluation.ranking import encode_corpus
from recsys.evaluation.slices import ITEM_SLICES, item_slices
from recsys.experiments.trained_run import TrainedRun, load_run
from recsys.index import Exact
from recsys.operations.gates.staging import open_release
from recsys.publishing.release_writer import pack
from recsys.release.runtime.retriever import Retriever

State = dict[str, torch.Tensor]
WeightHarm = Callable[[State, PreparedDataset, torch.Generator], None]
TABLE = "model.item_tower.table.weight"


def _permute(rows: torch.Tensor, chosen: torch.Tensor, generator: torch.Generator) -> None:
    rows[chosen] = rows[chosen[torch.randperm(len(chosen), generator=generator)]]


def _of_slice(dataset: PreparedDataset, name: str) -> torch.Tensor:
    rows = np.flatnonzero(item_slices(dataset) == ITEM_SLICES.index(name))
    return torch.from_numpy(rows[rows > 0])


def tail_reversed(state: State, dataset: PreparedDataset, generator: torch.Generator) -> None:  # noqa: ARG001
    """The id embeddings of tail items point away from where they did."""
    state[TABLE][_of_slice(dataset, "tail")] *= -2


def mid_shuffled(state: State, dataset: PreparedDataset, generator: torch.Generator) -> None:
    """The embeddings of items of medium popularity are shuffled among them."""
    _permute(state[TABLE], _of_slice(dataset, "mid"), generator)


def head_shuffled(state: State, dataset: PreparedDataset, generator: torch.Generator) -> None:
    """The embeddings of popular items are shuffled among them."""
    _permute(state[TABLE], _of_slice(dataset, "head"), generator)


def cold_users_broken(state: State, dataset: PreparedDataset, generator: torch.Generator) -> None:  # noqa: ARG001
    """The vector of the empty history is replaced."""
    start = state["model.user_tower.start"]
    start.copy_(3 * torch.randn(start.shape, generator=generator))


def history_ignored(state: State, dataset: PreparedDataset, generator: torch.Generator) -> None:  # noqa: ARG001
    """The vector at the start of every history outweighs all events."""
    state["model.user_tower.start"].mul_(1000)


def swapped_vocabulary(state: State, dataset: PreparedDataset, generator: torch.Generator) -> None:  # noqa: ARG001
    """Every item has another item's embedding."""
    _permute(state[TABLE], torch.arange(1, len(state[TABLE])), generator)


def nan_row(state: State, dataset: PreparedDataset, generator: torch.Generator) -> None:  # noqa: ARG001
    """One item's embedding is not a number."""
    state[TABLE][7] = torch.nan


def nan_tower(state: State, dataset: PreparedDataset, generator: torch.Generator) -> None:  # noqa: ARG001
    """A weight of the user tower is not a number."""
    state["model.user_tower.mixer.2.bias"][0] = torch.nan


def collapsed(state: State, dataset: PreparedDataset, generator: torch.Generator) -> None:  # noqa: ARG001
    """All items lie close together."""
    state["model.item_tower.mlp.3.bias"] += 3 * state["model.item_tower.mlp.3.bias"].norm().clamp(min=1)


def noise(state: State, dataset: PreparedDataset, generator: torch.Generator) -> None:  # noqa: ARG001
    """Every weight is off by as much as it is large."""
    for value in state.values():
        if value.is_floating_point() and value.ndim:
            value += value.std() * torch.randn(value.shape, generator=generator)


def forgotten_profile(state: State, dataset: PreparedDataset, generator: torch.Generator) -> None:
    """Categories of users and items have each other's codes."""
    for name, value in state.items():
        if ".inputs." in name and name.endswith("table.weight"):
            _permute(value, torch.arange(len(value)), generator)
    del dataset


WEIGHT_HARMS: dict[WeightHarm, tuple[str, ...]] = {
    tail_reversed: ("not_worse",),
    mid_shuffled: ("not_worse",),
    head_shuffled: ("not_worse",),
    cold_users_broken: ("not_worse",),
    history_ignored: ("not_worse",),
    swapped_vocabulary: ("not_worse",),
    nan_row: ("packed", "embeddings"),
    nan_tower: ("packed", "embeddings"),
    collapsed: ("embeddings", "not_worse"),
    noise: ("not_worse",),
    forgotten_profile: ("not_worse",),
}


def with_weights(run: TrainedRun, name: str, harm: WeightHarm) -> TrainedRun:
    """Return a copy of the run with a harmed checkpoint and without test metrics."""
    path = run.path.with_name(name)
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(run.path, path, ignore=shutil.ignore_patterns("staged", "verdict.json"))
    checkpoint = path / "checkpoints/best.ckpt"
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    harm(content["state_dict"], run.dataset, torch.Generator().manual_seed(0))
    torch.save(content, checkpoint)
    # Otherwise a comparison with the metrics of the sound model would find the harm.
    metrics = path / "metrics.json"
    kept = {name: value for name, value in json.loads(metrics.read_text()).items() if not name.startswith("test/")}
    metrics.write_text(json.dumps(kept))
    return load_run(path)


PackHarm = Callable[[Scene, TrainedRun, np.ndarray], np.ndarray]


def shuffled_rows(scene: Scene, run: TrainedRun, embeddings: np.ndarray) -> np.ndarray:  # noqa: ARG001
    """The index has its rows in another order than the items."""
    return embeddings[np.random.default_rng(0).permutation(len(embeddings))]


def shifted_rows(scene: Scene, run: TrainedRun, embeddings: np.ndarray) -> np.ndarray:  # noqa: ARG001
    """Every row stands for the item after it."""
    return np.roll(embeddings, 1, axis=0)


def other_index(scene: Scene, run: TrainedRun, embeddings: np.ndarray) -> np.ndarray:  # noqa: ARG001
    """The index is that of another training on the same items."""
    other = scene.run("other_seed", day=scene.served_day + 1, seed=77)
    return encode_corpus(other.model, torch.from_numpy(run.corpus)).numpy()


def popular_boosted(scene: Scene, run: TrainedRun, embeddings: np.ndarray) -> np.ndarray:  # noqa: ARG001
    """The embeddings of popular items are moved towards the mean user embedding."""
    with torch.inference_mode():
        requests = run.dataset.requests("test")
        users = run.model.encode_users(run.builder.requests(requests)).numpy()
    counts = run.dataset.train_count[run.corpus]
    weight = np.log1p(counts) / np.log1p(counts.max())
    leaning = embeddings + 0.4 * weight[:, None] * users.mean(0) / np.linalg.norm(users.mean(0))
    return (leaning / np.linalg.norm(leaning, axis=1, keepdims=True)).astype(np.float32)


def few_directions(scene: Scene, run: TrainedRun, embeddings: np.ndarray) -> np.ndarray:  # noqa: ARG001
    """Embeddings keep two principal directions."""
    u, s, v = np.linalg.svd(embeddings, full_matrices=False)
    return np.ascontiguousarray((u[:, :2] * s[:2]) @ v[:2], np.float32)


def exploded_norms(scene: Scene, run: TrainedRun, embeddings: np.ndarray) -> np.ndarray:  # noqa: ARG001
    """One item in fifty has ten times the norm."""
    longer = np.where(np.arange(len(embeddings)) % 50 == 0, 10, 1)
    return (embeddings * longer[:, None]).astype(np.float32)


def rounded(scene: Scene, run: TrainedRun, embeddings: np.ndarray) -> np.ndarray:  # noqa: ARG001
    """Embeddings keep one bit of each dimension."""
    return np.sign(embeddings).astype(np.float32) / embeddings.shape[1] ** 0.5


def hidden_new_items(scene: Scene, run: TrainedRun, embeddings: np.ndarray) -> np.ndarray:  # noqa: ARG001
    """Items without training events lie where no user is, as if they were the rarest of all."""
    with torch.inference_mode():
        requests = run.dataset.requests("test")
        users = run.model.encode_users(run.builder.requests(requests)).numpy()
    is_new = run.dataset.train_count[run.corpus] == 0
    away = -users.mean(0) / np.linalg.norm(users.mean(0))
    return np.where(is_new[:, None], away, embeddings).astype(np.float32)


PACK_HARMS: dict[PackHarm, tuple[str, ...]] = {
    shuffled_rows: ("index", "not_worse"),
    shifted_rows: ("index", "not_worse"),
    other_index: ("index", "not_worse"),
    popular_boosted: ("popularity",),
    few_directions: ("index", "not_worse"),
    exploded_norms: ("embeddings",),
    rounded: ("index",),
    hidden_new_items: ("new_items",),
}


def packed(scene: Scene, run: TrainedRun, harm: PackHarm) -> Retriever:
    """Return a valid release of the run whose index was built from harmed embeddings."""
    embeddings = encode_corpus(run.model, torch.from_numpy(run.corpus)).numpy()
    harmed = np.ascontiguousarray(harm(scene, run, embeddings))
    index = Exact()
    index.build(harmed)
    measured = {"recall": 1.0, "tuning": {}}
    version = scene.store.publish(
        lambda folder: pack(
            folder, run, index=index, embeddings=harmed, stored=harmed, measured=measured, model="two_tower", corpus={}
        )
    )
    return open_release(scene.store.root, version)


@contextlib.contextmanager
def leaking() -> Iterator[None]:
    """Let a refit train on the test part too."""
    honest = PreparedDataset.refit

    def with_test(self: PreparedDataset) -> PreparedDataset:
        return dataclasses.replace(honest(self), train_end=self.offsets[1:])

    with mock.patch.object(PreparedDataset, "refit", with_test):
        yield


TRAINING_HARMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # Name -> overrides, and gates; at least one of them must stop it.
    "untrained": (("optimizer.lr=1e-9", "trainer.max_epochs=1"), ("not_worse",)),
    "stopped_early": (("trainer.max_epochs=1",), ("not_worse",)),
    "diverged": (("optimizer.lr=3.0", "clip_norm=0"), ("not_worse", "packed", "embeddings")),
    "tiny": (("model.dim=2",), ("not_worse",)),
    "hot": (("model.temperature=5.0",), ("not_worse",)),
    "uncorrected": (("negatives=in_batch", "loss.logq=off"), ("not_worse", "popularity", "coverage")),
    "uniform_negatives": (("negatives=uniform", "loss.logq=off"), ("not_worse", "popularity", "coverage")),
    "without_features": (("item_tower=ids",), ("not_worse",)),
    "slow_tower": (("user_tower=transformer", "user_tower.encoder.num_blocks=12"), ("latency",)),
}
