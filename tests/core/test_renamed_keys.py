"""An old configuration key is refused with its new name, wherever it is written."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from composing import composition_error
from omegaconf import DictConfig, OmegaConf, open_dict
from worlds import compose

from recsys.core.errors import UserError
from recsys.core.renamed_keys import RENAMED
from recsys.experiments.config_check import check

COMMANDS = {"gates": ["run=RUN", "against=RELEASE"], "retrain": ["data.root=DIR"]}


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_key_is_refused_and_the_new_one_exists(old: str) -> None:
    new, message = RENAMED[old], f"{old}: renamed, use {RENAMED[old]}"
    # The command line is refused before anything is composed, so this is quick for every key.
    for word in (f"{old}=1", f"+{old}=1", f"++{old}=1", f"~{old}"):
        assert composition_error("gates", [*COMMANDS["gates"], word]) == message
    assert not OmegaConf.is_missing(_default(), new)
    assert OmegaConf.select(_default(), new) is not None
    assert OmegaConf.select(_default(), old) is None


@pytest.mark.parametrize("command", COMMANDS)
def test_the_new_keys_compose(command: str) -> None:
    words = ["gates.volume.min_ratio=0.5", "gates.shadow.max_latency_ratio=2", "gates.absolute.min_ratio=1.5"]
    assert composition_error(command, [*COMMANDS[command], *words]) is None


def test_an_option_of_an_own_folder_with_an_old_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gates").mkdir()
    (tmp_path / "gates/mine.yaml").write_text(
        "volume: {_target_: recsys.operations.gates.event_volume.Volume, least: 0.6}\n"
    )
    words = [*COMMANDS["gates"], "gates=mine", f"hydra.searchpath=[file://{tmp_path}]"]
    assert composition_error("gates", words) == "gates.volume.least: renamed, use gates.volume.min_ratio"


def test_a_composed_configuration_with_an_old_key_is_refused() -> None:
    config = _default().copy()
    with open_dict(config):
        config.gates.nulls.more = 0.2
    with pytest.raises(UserError, match="gates.nulls.more: renamed, use gates.nulls.max_increase"):
        check(config, _default())


@functools.cache
def _default() -> DictConfig:
    return compose("gates", COMMANDS["gates"])
