"""Run folders, opened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from worlds import write_run, write_world

from recsys.core.errors import UserError
from recsys.data.batches.loaders import RequestLoader
from recsys.experiments.trained_run import EARLIER, TrainedRun, load_run, read_checkpoint


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return write_run(folder / "run", write_world(folder / "data"))


def embeddings(run: TrainedRun) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat(
            [run.model.encode_users(b) for b, _ in RequestLoader(run.builder, run.dataset.requests("test"))]
        )


def test_an_old_run_keeps_the_values_of_settings_added_later(path: Path) -> None:
    now = embeddings(load_run(path))
    config = OmegaConf.load(path / "config.yaml")
    for group, settings in EARLIER.items():
        if not isinstance(settings, dict):
            del config[group]
            continue
        for key in settings:
            del config[group][key]
    # The MLPs over features were settings of the towers.
    for tower in (config.user_tower, config.item_tower):
        tower.hidden, dropout = tower.crossing.hidden, tower.pop("crossing").dropout
        if dropout is not None:
            tower.dropout = dropout
    assert (config.user_tower.hidden, config.item_tower.dropout) == (128, 0.1)
    OmegaConf.save(config, path / "config.yaml")
    assert torch.equal(embeddings(load_run(path)), now)


def test_a_run_with_removed_negatives_opens_and_one_with_a_removed_loss_says_so(path: Path) -> None:
    now = embeddings(load_run(path))
    whole = (path / "config.yaml").read_text()
    config = OmegaConf.create(whole)
    config.negatives = {"_target_": "recsys.negatives.CrossBatch", "_partial_": True, "bank_size": 9}
    OmegaConf.save(config, path / "config.yaml")
    content = torch.load(path / "checkpoints/best.ckpt", weights_only=True)
    content["state_dict"]["negatives.bank.embeddings"] = torch.ones(3, 16)
    torch.save(content, path / "checkpoints/best.ckpt")
    assert torch.equal(embeddings(load_run(path)), now)
    config.loss = {"_target_": "recsys.losses.GBCE", "_partial_": True, "calibration": 0.75}
    OmegaConf.save(config, path / "config.yaml")
    with pytest.raises(UserError, match="^loss: found recsys.training.losses.GBCE, which .* loss=sampled_softmax, or"):
        load_run(path)
    (path / "config.yaml").write_text(whole)


def test_an_unfinished_run_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not a folder"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"run.json: missing or damaged"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text('{"status": "running"}')
    with pytest.raises(UserError, match="status is 'running', expected 'finished'"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text(
        (path / "run.json").read_text().replace('"dataset_fingerprint": "', '"dataset_fingerprint": "x')
    )
    (tmp_path / "config.yaml").write_text((path / "config.yaml").read_text())
    with pytest.raises(UserError, match="the data has changed since"):
        load_run(tmp_path)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "emptied", "replaced", "removed"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "best.ckpt"
    torch.save({"state_dict": {"model.table": torch.arange(4096.0)}, "global_step": 3}, path)
    found = read_checkpoint(path)
    assert (found.steps, found.weights["table"][-1]) == (3, 4095)
    content = bytearray(path.read_bytes())
    # One bit in the middle, where the values are.
    content[len(content) // 2] ^= 1
    contents = {"truncated": content[: len(content) // 2], "emptied": b"", "replaced": b"text" * 1000}
    path.unlink()
    if damage != "removed":
        path.write_bytes(contents.get(damage, bytes(content)))
    with pytest.raises(UserError, match=f"{path}: not a readable checkpoint"):
        read_checkpoint(path)
