"""Quantiles of ranges, which are found without a copy of all values."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.core import columns
from recsys.core.columns import quantile_of_ranges, ragged_positions


@pytest.mark.parametrize("spread", [1, 3, 1 << 20, 1 << 62])
def test_a_quantile_of_ranges_is_that_of_numpy(monkeypatch: pytest.MonkeyPatch, spread: int) -> None:
    monkeypatch.setattr(columns, "READ", 64)
    draw = np.random.default_rng(0)
    lengths = draw.integers(0, 9, 400)
    begin = np.cumsum(lengths + 2) - lengths
    values = draw.integers(-spread, spread, int(begin[-1] + 20)) // 5
    inner = values[ragged_positions(begin, lengths)]
    for share in [0.0, 0.25, 0.5, 0.7123, 0.999, 1.0]:
        assert quantile_of_ranges(values, share, begin=begin, end=begin + lengths) == np.quantile(inner, share)
