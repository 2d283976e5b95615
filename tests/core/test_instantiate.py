"""Objects that configurations describe."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from recsys.core.errors import UserError
from recsys.core.instantiate import REMOVED, instantiate


@pytest.mark.parametrize("target", REMOVED)
def test_a_removed_class_is_named(target: str) -> None:
    config = OmegaConf.create({"user_tower": {"encoder": {"_target_": target}}})
    with pytest.raises(UserError, match=rf"user_tower.encoder: found {target}, which this version .* no longer has"):
        instantiate(config.user_tower.encoder)
