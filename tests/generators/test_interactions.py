"""What the generators share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from handmade import handmade, ragged
from torch import Tensor

from recsys.data.dataset import Requests
from recsys.errors import UserError
from recsys.evaluation import topk
from recsys.generators.interactions import Interactions

# 1 and 2 are trained, 3 is seen in validation, 4 and 5 only in the test part.
DATA = handmade([([1, 2, 1], [3], [4]), ([1], [2, 3], [5]), ([], [], [1])])


def test_training_part() -> None:
    events = Interactions(DATA, "train")
    assert events.num_items == 2
    assert events.counts().tolist() == [3, 1]
    assert events.users().toarray().tolist() == [[1, 1], [1, 0], [0, 0]]


def test_training_and_validation() -> None:
    events = Interactions(DATA, "val")
    assert events.counts().tolist() == [3, 2, 2]
    assert events.users().toarray().tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 0]]


def test_histories_grow_after_the_fit_and_unknown_users_have_none() -> None:
    events = Interactions(DATA, "train")
    # Up to the end of all events: 3, 4 and 5 are unknown to what was learned from the training part.
    requests = Requests(np.array([1, -1, 2, 0]), np.array([7, 0, 10, 1]))
    assert events.histories(requests).toarray().tolist() == [[1, 1], [0, 0], [1, 0], [1, 0]]


def test_fallback_is_popularity() -> None:
    fallback = Interactions(handmade([([1, 2, 2, 3, 3, 3, 4, 4], [], [])]), "train").fallback()
    assert np.argsort(-fallback).tolist() == [2, 1, 3, 0]
    assert (fallback < 0).all()
    assert (fallback >= -1).all()


def test_ranks_by_the_scores_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk, "BLOCK_BYTES", 0)  # sixteen requests a block
    events = Interactions(DATA, "val")
    users = np.tile([0, 1], 20)

    def score(histories: object, out: np.ndarray) -> None:
        out[:] = histories.toarray() * [1, 2, 3] - [0.5, 0.25, 0]  # type: ignore[attr-defined]

    requests = Requests(users, np.where(users == 0, 1, 7))
    scores, items = events.rank(requests, 4, ragged(*([[4], [3, 3, 0]] * 20)), score)
    # User 0 has had item 1: .5, -.25, 0. User 1 items 1 and 2, and 3 is excluded: .5, 1.75. Items 4 and 0 do not exist.
    assert items.tolist() == [[1, 3, 2, 0], [2, 1, 0, 0]] * 20
    infinite = -float("inf")
    assert scores.tolist() == [[0.5, 0, -0.25, infinite], [1.75, 0.5, infinite, infinite]] * 20
    assert isinstance(scores, Tensor)
    assert scores.dtype == torch.float32


def test_no_events() -> None:
    with pytest.raises(UserError, match="no events up to the end of part 'train'"):
        Interactions(handmade([([], [1], [])]), "train")


def test_unknown_part() -> None:
    with pytest.raises(UserError, match="until=validation: no such part"):
        Interactions(DATA, "validation")  # type: ignore[arg-type]
