"""Objects that configurations describe."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recsys.core.errors import UserError
from recsys.core.instantiate import REMOVED, class_of, instantiate
from recsys.core.stored_config import load_config


@pytest.mark.parametrize("is_stored", [False, True])
@pytest.mark.parametrize(("target", "instead"), REMOVED.items())
def test_a_removed_class_is_named(target: str, instead: str, is_stored: bool, tmp_path: Path) -> None:
    config = OmegaConf.create({"user_tower": {"encoder": {"_target_": target}}})
    if is_stored:
        OmegaConf.save(config, tmp_path / "config.yaml")
        config = load_config(tmp_path / "config.yaml")
    for make, node in ((instantiate, config.user_tower), (class_of, config.user_tower.encoder)):
        with pytest.raises(UserError) as caught:
            make(node)
        assert str(caught.value) == (
            f"user_tower.encoder: found {target}, which this version of recsys no longer has; train again with "
            f"{instead}, or use the version that wrote the run"
        )
