"""Blends by hand: turns with budgets, what is left over, and who goes."""

from __future__ import annotations

import pytest
from made import made

from recsys.reports.generators.blending import Funnel, equal_turns, plan_blends

A, B = [1, 2, 3, 4], [2, 5, 6, 7]
POPULAR = [8, 9, 10, 11]


def recall(first: list[int], second: list[int], budgets: tuple[int, int], keep: bool = False) -> float:
    funnel = Funnel(made("ab", [[first, second, POPULAR]], [[2, 6, 9]], 4), keep)
    return float(funnel.recall([budgets])[0, 0])


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    ("budgets", "hits"),
    [
        # 1, 2, then 3 since 2 was given, then 5.
        ((2, 2), 1),
        # 1, 2, 5, 6.
        ((1, 3), 2),
        ((0, 4), 2),
        ((4, 0), 1),
    ],
)
def test_budgets(budgets: tuple[int, int], hits: int, keep: bool) -> None:
    assert recall(A, B, budgets, keep) == pytest.approx(hits / 3)


def test_an_unspent_budget_goes_to_the_others_and_then_to_popular_items() -> None:
    # The second gives 2 alone: 1, 2, 3 and, beyond its budget, 4.
    assert recall(A, [2], (2, 2)) == pytest.approx(1 / 3)
    # Both run out: 1, 2, then 8 and 9.
    assert recall([1], [2], (2, 2)) == pytest.approx(2 / 3)
    # One without a budget does not step in: 1, then 8, 9, 10.
    assert recall([1], B, (4, 0)) == pytest.approx(1 / 3)


def test_budgets_are_chosen_step_by_step_for_who_adds_most() -> None:
    # Of one candidate: the first finds half for one user (.25 on average), the second all for the other (.5). Of two:
    # one each (.75). Of three: the first has more to give (1.0).
    lists = made("ab", [[[1, 2, 3], [5, 6, 7], []]] * 2, [[1, 2], [5]], 3)
    funnel = Funnel(lists, keep=True)
    assert funnel.choose([0, 1], 3) == (2, 1)
    assert funnel.choose([1], 3) == (0, 3)
    assert funnel.mean_recall((2, 1)) == 1.0
    assert funnel.mean_recall((1, 0)) == 0.25


def test_of_duplicate_generators_one_is_retired() -> None:
    users = [[[1, 2, 3], [1, 2, 3], [5, 6, 7], []]] * 2
    chosen = plan_blends(Funnel(made(["one", "twin", "other"], users, [[1, 2], [5]], 3), keep=True), 3, tolerance=0.01)
    assert chosen.everyone == (2, 0, 1)
    # Of all three, and of the two that are left without the twin.
    assert chosen.without == ({0: (0, 2, 1), 1: (2, 0, 1), 2: (3, 0, 0)}, {0: (0, 0, 3), 2: (3, 0, 0)})
    assert chosen.retired == (1,)
    assert chosen.stages == ((2, 0, 1),)
    assert chosen.equal == (1, 1, 1)
    assert chosen.equal_without == ((0, 2, 1), (2, 0, 1), (2, 1, 0))


def test_tolerance_says_how_much_may_be_lost() -> None:
    # The second finds a third of what is found in all: without it 2/3 are left.
    users = [[[1, 2, 3], [4, 5, 6], []]]
    lists = made("ab", users, [[1, 2, 4]], 3)
    assert plan_blends(Funnel(lists, keep=True), 3, tolerance=0.3).retired == ()
    assert plan_blends(Funnel(lists, keep=True), 3, tolerance=0.34).retired == (1,)


def test_equal_turns() -> None:
    assert equal_turns([0, 2, 3], 4, k=8) == (3, 0, 3, 2)
