"""A small world with every kind and role of feature, and run folders of untrained models on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import hydra
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from omegaconf import DictConfig, OmegaConf

from recsys.experiments.assembly import build_towers, open_data

CONF = Path(__file__).parents[2] / "conf"
NUM_USERS, NUM_ITEMS, MAX_HISTORY = 60, 90, 8


def write_world(root: Path, seed: int = 0, string_ids: bool = True) -> Path:
    """Write tables of `NUM_USERS` users with 1 to 25 events, with nulls, and with items and users without rows."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True)
    lengths = rng.integers(1, 26, NUM_USERS)
    user = np.repeat(np.arange(NUM_USERS), lengths)
    num_events = len(user)
    # Squares favour low numbers: some items are popular, some are never seen.
    item = (rng.random(num_events) ** 2 * NUM_ITEMS).astype(int)
    words = np.array(["red", "blue", "old house", "garden; tools", "çay"])

    def some(values: np.ndarray) -> list[object]:
        hidden = rng.random(len(values)) < 0.2
        return [None if gone else value for gone, value in zip(hidden, values.tolist(), strict=True)]

    def bags(size: int) -> list[object]:
        return some(
            np.array([rng.choice(["a", "b", "c", "d"], rng.integers(0, 4)).tolist() for _ in range(size)], object)
        )

    def vectors(size: int) -> list[object]:
        return some(np.array([*rng.normal(size=(size, 3)).round(3), None], object)[:-1])

    user_ids = np.array([f"u{number:03d}" if string_ids else number for number in range(NUM_USERS)])
    item_ids = np.array([f"i{number:03d}" if string_ids else 10 * number for number in range(NUM_ITEMS)])
    interactions = {
        "user_id": user_ids[user],
        "item_id": item_ids[item],
        "timestamp": rng.integers(0, 10**6, num_events),
        "action": some(rng.choice(["save", "click", "hide"], num_events)),
        "dwell": some(rng.exponential(10.0, num_events).round(2)),
        "labels": bags(num_events),
        "seen_vector": vectors(num_events),
        "surface": some(rng.choice(["home", "search"], num_events)),
        "query": some(rng.choice(words, num_events)),
    }
    pq.write_table(pa.table(interactions), root / "interactions.parquet")
    listed = rng.permutation(NUM_ITEMS)[:80]
    items = {
        "item_id": item_ids[listed],
        "title": [f"Title {number}" for number in listed],
        "category": some(rng.choice(["x", "y", "z"], 80)),
        "tags": bags(80),
        "price": some(rng.exponential(20.0, 80).round(2)),
        "visual": vectors(80),
    }
    pq.write_table(pa.table(items), root / "items.parquet")
    users = {
        "user_id": user_ids[:50],
        "country": some(rng.choice(["de", "fr"], 50)),
        "age": some(rng.integers(18, 80, 50)),
        "likes": bags(50),
        "taste": vectors(50),
    }
    pq.write_table(pa.table(users), root / "users.parquet")
    return root


FEATURES = [
    "+data.features.interactions.action.role=event",
    "+data.features.interactions.dwell.role=event",
    "+data.features.interactions.labels.role=event",
    "+data.features.interactions.seen_vector.role=event",
    "+data.features.interactions.surface.role=request",
    "+data.features.interactions.query={kind: text, role: request, buckets: 64}",
    "+data.features.users.age.kind=numeric",
]

# An export takes longer with every feature: without these, one of each role is left.
FEW = [f"~data.features.interactions.{name}" for name in ("dwell", "labels", "seen_vector", "query")]
FEW += [f"+data.features.users.{name}.ignore=true" for name in ("country", "likes", "taste")]


def compose(name: str, overrides: list[str]) -> DictConfig:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(name, overrides=overrides)


def write_run(path: Path, root: Path, *overrides: str, seed: int = 0) -> Path:
    """Write a run folder of `root` whose model has seeded, untrained weights."""
    config = compose(
        "train",
        [
            "data=parquet",
            f"data.root={root}",
            f"data.cache={root.parent / 'cache'}",
            "split=leave_last_out",
            "model.dim=16",
            f"history.max_events={MAX_HISTORY}",
            f"seed={seed}",
            *FEATURES,
            *overrides,
        ],
    )
    dataset = open_data(config)
    model = build_towers(config, dataset)
    (path / "checkpoints").mkdir(parents=True)
    (path / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True).replace("???", "null"))
    state = {"status": "finished", "dataset_fingerprint": dataset.meta.fingerprint, "git_commit": "0" * 40}
    (path / "run.json").write_text(json.dumps(state))
    (path / "metrics.json").write_text(json.dumps({"val/recall@100": 0.5 + 0.01 * seed, "test/recall@10": 0.1}))
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": weights, "global_step": 0}, path / "checkpoints/best.ckpt")
    return path


def write_blend(
    path: Path,
    members: dict[str, tuple[Path, float]],
    shift_weight: float = 0.0,
    *,
    level: tuple[float, float] = (1.0, 0.0),
) -> Path:
    """Write a run folder whose model is a blend of written runs, NAME: (folder, weight)."""
    from recsys.experiments.blend_selection import blend_config, write_checkpoint
    from recsys.experiments.level_fit import Level
    from recsys.experiments.trained_run import stored_config

    configs = {name: stored_config(folder) for name, (folder, _) in members.items()}
    runs = {name: SimpleNamespace(checkpoints=folder / "checkpoints") for name, (folder, _) in members.items()}
    (path / "checkpoints").mkdir(parents=True)
    shift = {"weight": shift_weight, "half_life_days": 1.0, "power": 1.0}
    weights = {name: weight for name, (_, weight) in members.items()}
    config = blend_config(configs, weights, prior_shift=shift, level=Level(*level))
    (path / "config.yaml").write_text(OmegaConf.to_yaml(config))
    write_checkpoint(configs, runs, path=path / "checkpoints/best.ckpt")
    for file in ("run.json", "metrics.json"):
        shutil.copyfile(next(iter(members.values()))[0] / file, path / file)
    return path
