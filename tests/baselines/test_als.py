"""Matrix factorisation on two groups of users that share nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from handmade import handmade, ragged

from recsys.baselines.als import ALS
from recsys.baselines.interactions import Interactions
from recsys.core.errors import UserError

# Even users draw from items 1..5, odd ones from 6..10; the last two have nothing before the test part.
GROUPS = [[1 + (user + step) % 5 + 5 * (user % 2) for step in range(3)] for user in range(40)]
DATA = handmade([*((group, [], []) for group in GROUPS), ([], [], [2, 9]), ([], [], [7])])


def fitted(**options: Any) -> ALS:
    generator = ALS(factors=2, **options)
    generator.fit(Interactions(DATA, "train"))
    return generator


def test_finds_the_group(rank: Callable[..., Any]) -> None:
    _, items = rank(fitted(), DATA, [0, 1], [3, 6], 2, ragged(GROUPS[0], GROUPS[1]))
    assert {*items[0]} == {1, 2, 3, 4, 5} - {*GROUPS[0]}
    assert {*items[1]} == {6, 7, 8, 9, 10} - {*GROUPS[1]}


def test_histories_that_grew_are_used(rank: Callable[..., Any]) -> None:
    begin = int(DATA.offsets[40])
    _, items = rank(fitted(), DATA, [40, 40], [begin, begin + 1], 4, ragged([], [2]))
    # Nothing is known: the most popular, whose counts are all equal here, in their order. Then item 2: its group.
    assert items == [[1, 2, 3, 4], items[1]]
    assert {*items[1]} == {1, 3, 4, 5}


def test_factors_of_a_history_are_solved(rank: Callable[..., Any]) -> None:
    generator = fitted(alpha=3, l2=0.5)
    factors = generator._model.item_factors.astype(float)
    # (Y'Y + Y' (C - I) Y + l2 I) x = Y' C p with C = alpha on the history, as implicit defines it.
    own = factors[np.array(GROUPS[0]) - 1]
    user = np.linalg.solve(factors.T @ factors + (3 - 1) * own.T @ own + 0.5 * np.eye(2), 3 * own.sum(0))
    [scores], [items] = rank(generator, DATA, [0], [3], 10)
    np.testing.assert_allclose(scores, (factors @ user)[np.array(items) - 1], atol=1e-4)


def test_is_seeded(rank: Callable[..., Any]) -> None:
    first, again, other = (rank(fitted(seed=seed), DATA, [0], [3], 10)[0][0] for seed in (1, 1, 2))
    assert first == pytest.approx(again, abs=1e-5)
    assert first != pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize(("name", "value"), [("factors", 0), ("alpha", -1), ("iterations", 0), ("l2", -1)])
def test_refuses(name: str, value: int) -> None:
    with pytest.raises(UserError, match=f"generator.{name}={value}: expected"):
        ALS(**{name: value})
