"""Neighbours, axes and agreement against slower ways to find them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from worlds import write_run, write_world

from recsys.core.errors import UserError
from recsys.experiments.trained_run import TrainedRun, load_run
from recsys.reports.analysis.space import ItemSpace


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    folder = tmp_path_factory.mktemp("runs")
    # Items that are neither trained nor listed are outside the corpus.
    return load_run(write_run(folder / "run", write_world(folder / "data"), "model.similarity=dot"))


def test_neighbours(run: TrainedRun) -> None:
    space = ItemSpace(run)
    assert np.linalg.norm(space.vectors, axis=1) == pytest.approx(np.ones(len(run.corpus)))
    cosines = space.vectors @ space.vectors.T
    for place in (0, 5, len(run.corpus) - 1):
        order = [other for other in np.argsort(-cosines[place]) if other != place][:4]
        values, items = space.neighbours(int(run.corpus[place]), 4)
        assert items.tolist() == run.corpus[order].tolist()
        assert values == pytest.approx(cosines[place][order])
    assert len(space.neighbours(int(run.corpus[0]), 10_000)[0]) == len(run.corpus) - 1
    with pytest.raises(UserError, match="item 0 is not in the corpus"):
        space.neighbours(0, 3)
    assert int(run.corpus[0]) in space
    assert run.dataset.num_items + 1 not in space


def test_the_popularity_term_is_not_a_direction(tmp_path: Path) -> None:
    root = write_world(tmp_path / "data")
    plain = ItemSpace(load_run(write_run(tmp_path / "plain", root, "split=temporal")))
    shifted = write_run(tmp_path / "shifted", root, "split=temporal", "model.prior_shift.weight=1")
    space = ItemSpace(load_run(shifted))
    assert space.vectors.shape[1] == 16
    assert np.array_equal(space.vectors, plain.vectors)


def test_the_plane_is_that_of_a_singular_value_decomposition(run: TrainedRun) -> None:
    space = ItemSpace(run)
    points, shares = space.plane()
    centred = space.vectors.astype(np.float64) - space.vectors.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    expected = left[:, :2] * values[:2]
    signs = np.sign((expected * points).sum(0))
    assert points == pytest.approx(expected * signs, abs=1e-5)
    assert shares == pytest.approx(tuple(values[:2] ** 2 / (values**2).sum()))
    assert np.array_equal(points, ItemSpace(run).plane()[0])


def test_agreement_by_hand(run: TrainedRun) -> None:
    space = ItemSpace(run)
    # Two tight pairs and one item between: of the two nearest to an item of a pair, one is its twin.
    angles = np.radians([0, 1, 90, 91, 50])
    space.vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    labels = np.array(["a", "a", "b", "b", None], object)
    assert space.agreement(labels, k=1) == pytest.approx((1.0, 1 / 3))
    # Of three others each: a twin and two strangers, whatever the space.
    assert space.agreement(labels, k=3) == pytest.approx((1 / 3, 1 / 3))
    labels = np.array(["a", "b", "a", "b", None], object)
    assert space.agreement(labels, k=1) == pytest.approx((0.0, 1 / 3))
    with pytest.raises(UserError, match="0 items have a label"):
        space.agreement(np.array([None] * 5, object))
