"""The mirror of a release in W&B, against a recording stand-in for the client."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import wandb

from recsys.experiments import wandb_mirror


class Recorder:
    def __init__(self) -> None:
        self.logged: list[tuple[Any, list[str]]] = []
        self.linked: list[tuple[Any, str, list[str]]] = []

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def log_artifact(self, artifact: Any, aliases: list[str]) -> None:
        self.logged.append((artifact, aliases))

    def link_artifact(self, artifact: Any, target_path: str, aliases: list[str]) -> None:
        self.linked.append((artifact, target_path, aliases))


def test_online_both_halves_are_uploaded_as_one_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "0123456789abcdef"
    folder.mkdir()
    for name in ("user_tower.onnx", "item_index.faiss"):
        (folder / name).write_text(name)
    lineage = {"pair": "p", "run": "runs/a", "git_commit": "c", "dataset_fingerprint": "f", "data": {"until": 7}}
    (folder / "manifest.json").write_text(json.dumps({"dim": 8, **lineage}))
    run = Recorder()
    monkeypatch.setattr(wandb_mirror, "wandb_online", lambda: True)
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    wandb_mirror.mirror_release("recsys", folder, model="two_tower", alias="candidate")
    ((artifact, aliases),) = run.logged
    assert sorted(artifact.manifest.entries) == ["item_index.faiss", "manifest.json", "user_tower.onnx"]
    assert artifact.metadata == {"version": "0123456789abcdef", **lineage}
    assert aliases == ["0123456789abcdef", "candidate"]
    assert run.linked == []
    registry = "wandb-registry-model/two_tower"
    wandb_mirror.mirror_release("recsys", folder, model="two_tower", alias="candidate", registry=registry)
    ((linked, path, named),) = run.linked
    assert linked is run.logged[-1][0]
    assert (path, named) == (registry, aliases)


def test_the_client_has_the_calls_that_the_mirror_makes() -> None:
    for name, arguments in (("log_artifact", {"aliases"}), ("link_artifact", {"target_path", "aliases"})):
        assert arguments <= {*inspect.signature(getattr(wandb.Run, name)).parameters}


@pytest.mark.parametrize(("project", "online"), [(None, True), ("recsys", False)])
def test_nothing_is_sent_offline(
    project: str | None, online: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_mirror, "wandb_online", lambda: online)
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("nothing is to be sent"))
    wandb_mirror.mirror_release(project, tmp_path, model="two_tower", alias=None)
