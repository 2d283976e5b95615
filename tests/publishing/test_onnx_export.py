"""The exported tower equals the packed torch tower, whatever the length of a history."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import worlds
from exports import FOLDER, export, export_once
from worlds import CONF, FEW, MAX_HISTORY, write_blend, write_run, write_world

from recsys.data.dataset import Requests
from recsys.experiments.trained_run import TrainedRun, load_run
from recsys.publishing.onnx_export import export_user_tower, input_specs
from recsys.publishing.release_writer import to_histories
from recsys.release.runtime.user_tower import pad
from recsys.release.tower_graph import read_tower


@pytest.fixture(autouse=True)
def _real_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.onnx, "export", export)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world") / "data")


def _worst_difference(run: TrainedRun, folder: Path) -> float:
    """Over every length of history 0..MAX_HISTORY, batches of several, one and unknown users, and mixed lengths."""
    specs = input_specs(run.model, run.dataset.schema)
    num_items = run.dataset.meta.num_known
    export_user_tower(run.model, num_items, specs=specs, folder=folder, metadata={})
    session = onnxruntime.InferenceSession(str(folder / "user_tower.onnx"))
    offsets = run.dataset.offsets
    long = np.flatnonzero(np.diff(offsets) >= MAX_HISTORY + 2)
    requests = [Requests(np.arange(run.dataset.num_users), offsets[1:]), Requests(np.array([-1]), np.array([0]))]
    for length in range(MAX_HISTORY + 1):
        requests += [Requests(users, offsets[users] + length) for users in (long[:5], long[:1])]
    worst = 0.0
    for request in requests:
        batch = run.builder.requests(request)
        with torch.inference_mode():
            expected = run.model.encode_users(batch).numpy()
        (found,) = session.run(None, pad(to_histories(batch, num_items), specs))
        assert found.shape == expected.shape
        assert np.isfinite(found).all()
        worst = max(worst, float(np.abs(found - expected).max()))
    return worst


ENCODERS = sorted(file.stem for file in (CONF / "user_tower").glob("*.yaml"))
# What reads the features is the same code beside every encoder: so one encoder is exported with features of every kind,
# and the others with one of each role. One of them has another network over the features, and two have several blocks.
RUNNING_MEAN = "transformer user_tower.encoder.norm=after user_tower.encoder.running_mean=0.7"
ONE_BLOCK = "user_tower.encoder.num_blocks=1"
MORE = {
    "mean": "crossing@user_tower.crossing=cross_network crossing@item_tower.crossing=cross_network",
    "modern": f"user_tower.encoder.window=3 {ONE_BLOCK}",
    RUNNING_MEAN: ONE_BLOCK,
}
NONE = [*FEW[:4], "~data.features.interactions.action", "~data.features.interactions.surface"]


def _inputs(run: TrainedRun) -> set[str]:
    return {spec.name for spec in input_specs(run.model, run.dataset.schema)}


def _time(encoder: str) -> set[str]:
    return {"timestamp"} if encoder == "hstu" else set()


@pytest.mark.slow
def test_equals_torch_with_every_kind_of_feature(root: Path, tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", root, "user_tower=attention", "user_tower.use_user_id=true"))
    assert _inputs(run) == {
        "item_idx", "lengths", "user_idx",
        "event.action", "event.dwell", "event.labels", "event.seen_vector", "event.surface", "event.query",
        "request.surface", "request.query", "user.country", "user.age", "user.likes", "user.taste",
    }  # fmt: skip
    assert _worst_difference(run, tmp_path) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [*(encoder for encoder in ENCODERS if encoder != "attention"), RUNNING_MEAN])
def test_equals_torch_with_every_other_encoder(encoder: str, root: Path, tmp_path: Path) -> None:
    words = f"user_tower={encoder} {MORE.get(encoder, '')}".split()
    overrides = [*words, "user_tower.use_user_id=true", *FEW]
    run = load_run(write_run(tmp_path / "run", root, *overrides))
    inputs = {"item_idx", "lengths", "user_idx", "event.action", "event.surface", "request.surface", "user.age"}
    assert _inputs(run) == inputs | _time(encoder)
    assert _worst_difference(run, tmp_path) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["attention", "hstu", "interests"])
def test_equals_torch_with_ids_alone_and_dot(encoder: str, root: Path, tmp_path: Path) -> None:
    """One embedding of a user, several, and an encoder that reads time, here in days."""
    more = [f"user_tower={encoder}", "item_tower=ids", "model.similarity=dot", "user_tower.use_profile=false"]
    more += ["model.prior_shift.weight=0.5", *["data.time=day"] * (encoder == "hstu")]
    run = load_run(write_run(tmp_path / "run", root, *NONE, *more))
    assert _inputs(run) == {"item_idx", "lengths"} | _time(encoder)
    assert _worst_difference(run, tmp_path) < 1e-4


@pytest.mark.slow
def test_equals_torch_where_time_is_not_read(root: Path, tmp_path: Path) -> None:
    time = ["data.time=order", "user_tower.encoder.use_time=false"]
    run = load_run(write_run(tmp_path / "run", root, "user_tower=hstu", ONE_BLOCK, *FEW, *time))
    assert "timestamp" not in _inputs(run)
    assert _worst_difference(run, tmp_path) < 1e-4


@pytest.mark.slow
def test_two_item_tables_and_weights_in_a_second_file(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(write_run(tmp_path / "run", root, "item_tower=pretrained", "user_tower.own_items=true", *FEW))
    monkeypatch.setattr("recsys.publishing.onnx_export.INLINE_BYTES", 0)
    assert _worst_difference(run, tmp_path) < 1e-4
    assert (tmp_path / "user_tower.onnx.data").exists()
    read_tower((tmp_path / "user_tower.onnx").read_bytes(), tmp_path)


@pytest.mark.slow
def test_other_tests_share_an_export_that_equals_torch(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "kept"))
    (tmp_path / "kept").mkdir()
    export_once()
    # Of other items, too.
    monkeypatch.setattr(worlds, "NUM_ITEMS", 85)
    other = write_world(tmp_path / "other/data", seed=1)
    for seed, data in enumerate((root, other)):
        run = load_run(write_run(tmp_path / f"run{seed}", data, "user_tower=mean", *FEW, seed=seed))
        assert run.dataset.meta.num_known == (90, 85)[seed]
        assert _worst_difference(run, tmp_path) < 1e-4
    assert len([*(tmp_path / "kept").iterdir()]) == 1


@pytest.mark.slow
def test_a_blend_equals_torch(root: Path, tmp_path: Path) -> None:
    fewer = [word for word in FEW if "query" not in word and "likes" not in word]
    one = ["user_tower=hstu", "user_tower.encoder.num_blocks=1", "history.max_events=3", "model.temperature=0.1"]
    first = write_run(tmp_path / "first", root, *fewer, *one)
    second = write_run(
        tmp_path / "second", root, *fewer, "user_tower=mean", "user_tower.use_user_id=true", "model.dim=8"
    )
    blend = load_run(write_blend(tmp_path / "blend", {"first": (first, 0.5), "second": (second, 0.5)}, 0.5))
    assert {"timestamp", "user_idx", "event.query", "request.query", "user.likes"} <= _inputs(blend)
    assert _worst_difference(blend, tmp_path) < 1e-4
