import json

import numpy as np
import pytest

from recsys.core.errors import UserError
from recsys.index import (
    HNSW,
    IVFSQ8,
    Effort,
    Exact,
    IVFFlat,
    IVFPQFastScan,
    exact_search,
    load_index,
    save_index,
    tune,
)


def test_reaches_the_target_and_no_further(items, queries):
    index = IVFFlat(num_lists=64)
    index.build(items)
    tuning = tune(index, items, queries=queries, recall_target=0.9, k=50)
    assert tuning.reached
    assert 0.9 <= tuning.chosen.recall < 0.97
    assert index.effort == Effort(tuning.chosen.breadth, 1, 50)
    below = [m for m in tuning.curve if m.breadth < tuning.chosen.breadth / 1.2]
    assert all(m.recall < 0.92 for m in below)
    # The chosen effort is set on the index.
    found, expected = index.search(queries, 50)[1], exact_search(items, queries, k=50)[1]
    ids = np.mean([np.isin(e, f).mean() for f, e in zip(found, expected, strict=True)])
    assert ids == pytest.approx(tuning.chosen.recall, abs=1e-3)


def test_curve_rises_and_is_plain_json(items, queries):
    index = IVFFlat(num_lists=64)
    index.build(items)
    tuning = tune(index, items, queries=queries, recall_target=0.98)
    recalls = [m.recall for m in tuning.curve]
    assert recalls == sorted(recalls)
    content = json.loads(json.dumps(tuning.to_json()))
    assert content["recall_target"] == 0.98
    assert content["chosen"] in content["curve"]
    assert set(content["chosen"]) == {"breadth", "refine", "recall", "queries_per_second"}


def test_refines_if_codes_are_too_coarse(items, queries):
    index = IVFPQFastScan(num_codes=8)
    index.build(items)
    tuning = tune(index, items, queries=queries)
    assert tuning.reached
    assert tuning.chosen.refine > 1


def test_an_unreachable_target_is_reported():
    # One code of 4 bits for an item: sixteen kinds of items, whatever the effort.
    rng = np.random.default_rng(0)
    items, queries = (rng.standard_normal((num, 32), np.float32) for num in (12_000, 50))
    index = IVFPQFastScan(num_lists=1, num_codes=1)
    index.build(items)
    tuning = tune(index, items, queries=queries)
    assert not tuning.reached
    assert tuning.chosen.recall == max(m.recall for m in tuning.curve) < 1
    assert index.effort.breadth == tuning.chosen.breadth


def test_exact_index_needs_no_sweep(items, queries):
    index = Exact()
    index.build(items)
    tuning = tune(index, items, queries=queries)
    assert tuning.reached
    assert len(tuning.curve) == 1
    assert tuning.chosen.recall == 1
    assert tuning.chosen.queries_per_second > 0


def test_more_results_than_items():
    items = np.random.default_rng(0).standard_normal((30, 4), np.float32)
    index = IVFFlat()
    index.build(items)
    tuning = tune(index, items, queries=items, k=100)
    assert (tuning.k, tuning.reached) == (30, True)


@pytest.mark.parametrize("target", [0, 1.01, -1])
def test_bad_target(target, items, queries):
    index = Exact()
    index.build(items)
    with pytest.raises(UserError, match="recall_target: found"):
        tune(index, items, queries=queries, recall_target=target)


def test_no_queries(items):
    index = Exact()
    index.build(items)
    with pytest.raises(UserError, match="expected at least one"):
        tune(index, items, queries=items[:0])


@pytest.mark.parametrize("make", [IVFFlat, IVFSQ8, IVFPQFastScan])
def test_an_index_follows_an_earlier_one_and_keeps_its_effort(make, items, queries, tmp_path, monkeypatch):
    earlier = make()
    earlier.build(items)
    first = tune(earlier, items, queries=queries)
    save_index(earlier, tmp_path)
    earlier = load_index(tmp_path, items)
    # The last dimension, a bias, changes, and some items are new.
    rng = np.random.default_rng(1)
    newer = np.concatenate([items, items[:200] + 0.1 * rng.standard_normal((200, items.shape[1]), np.float32)])
    newer[:, -1] += 0.05 * rng.standard_normal(len(newer), np.float32)
    index = make()
    index.follow(earlier)
    monkeypatch.setattr(make, "_train", None)
    index.build(newer)
    tuning = tune(index, newer, queries=queries, start=earlier.effort)
    assert tuning.reached
    assert tuning.curve == (tuning.chosen,)
    assert index.effort == earlier.effort == Effort(first.chosen.breadth, first.chosen.refine, 100)
    found, expected = index.search(queries, 100)[1], exact_search(newer, queries, k=100)[1]
    assert np.mean([np.isin(e, f).mean() for f, e in zip(found, expected, strict=True)]) >= 0.98


@pytest.mark.parametrize(
    "earlier", [Exact(), HNSW(), IVFFlat(num_lists=60), IVFFlat(num_lists=64, seed=1), IVFSQ8(num_lists=64)]
)
def test_an_index_of_another_kind_is_not_followed(earlier, items):
    earlier.build(items[:2000])
    plain, index = IVFFlat(num_lists=64), IVFFlat(num_lists=64)
    index.follow(earlier)
    for one in (plain, index):
        one.build(items)
    assert np.array_equal(plain._centroids(), index._centroids())


def test_an_earlier_effort_that_misses_the_target_is_replaced(items, queries):
    index = IVFFlat(num_lists=64)
    index.build(items)
    plain = tune(index, items, queries=queries, recall_target=0.9)
    for start in (Effort(1, 1, 100), Effort(99, 1, 100), Effort(64, 4, 100), Effort(64, 1, 50)):
        again = tune(index, items, queries=queries, recall_target=0.9, start=start)
        assert again.reached
        assert again.chosen.breadth <= 1.5 * plain.chosen.breadth
    high = tune(index, items, queries=queries, recall_target=0.999)
    start = Effort(round(high.chosen.breadth / 1.3), 1, 100)
    near = tune(index, items, queries=queries, recall_target=0.999, start=start)
    assert near.reached
    assert 1 < len(near.curve) <= 4
    assert near.chosen.breadth <= 2 * start.breadth
