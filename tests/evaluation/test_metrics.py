"""Metrics against numbers that are worked out, and against the independent reference."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from handmade import handmade, ragged, random_users

from recsys.data.dataset import NO_BIRTH, PreparedDataset
from recsys.evaluation.metrics import CUTOFFS, NAMES, RetrievalMetrics, per_request
from recsys.evaluation.relevance import relevant_items, seen_items
from recsys.evaluation.slices import AMONG_COLD, ITEM_SLICES, SHOWN, USER_SLICES

PROTOCOL = Path(os.environ.get("RECSYS_DATA", "/nowhere")).parent / "protocol.py"

# Item 1 makes half of the training events (head); 2 begins at .5 (mid); 3 at .75 (mid); 4 at .875 (tail); 5 is cold.
DATA = handmade([([1, 1, 1, 1, 2, 2, 3, 4], [], [5]), ([], [], [1, 2])])


def metrics(dataset: PreparedDataset = DATA, **options: Any) -> RetrievalMetrics:
    return RetrievalMetrics(dataset, 5, cutoffs=(1, 2, 3), **options)


def test_one_request_by_hand() -> None:
    # Hits at ranks 2 and 3 of four results; three relevant items.
    result = per_request(torch.tensor([[False, True, True, False]]), torch.tensor([3]), cutoffs=(1, 2, 3, 5))
    recall, hit, ndcg, mrr = result[0].tolist()
    first, second, third = 1.0, 1 / log2(3), 1 / log2(4)
    assert recall == pytest.approx([0, 1 / 3, 2 / 3, 2 / 3])
    assert hit == [0, 1, 1, 1]
    ideal = first + second + third
    assert ndcg == pytest.approx([0, second / (first + second), (second + third) / ideal, (second + third) / ideal])
    assert mrr == [0, 0.5, 0.5, 0.5]


def test_means_are_over_requests_with_relevant_items() -> None:
    counter = metrics()
    ranked = torch.tensor([[1, 2, 3], [2, 1, 4], [5, 4, 0]])
    counter.update(ranked, ragged([3], [], [4, 5]), user_idx=torch.tensor([0, 0, 1]))
    result = counter.compute()
    assert result["num_users"] == 2
    assert [result[f"recall@{k}"] for k in (1, 2, 3)] == pytest.approx([(0 + 0.5) / 2, (0 + 1) / 2, (1 + 1) / 2])
    assert [result[f"mrr@{k}"] for k in (1, 2, 3)] == pytest.approx([0.5, 0.5, (1 / 3 + 1) / 2])
    assert result["ndcg@3"] == pytest.approx((0.5 + 1) / 2)
    # Of requests that count, and not the 0 that stands for no result: {1, 5}, {1, 2, 5, 4}, {1, 2, 3, 5, 4}.
    assert [result[f"coverage@{k}"] for k in (1, 2, 3)] == pytest.approx([2 / 5, 4 / 5, 1])
    # Items 1 to 5 have 4, 2, 1, 1 and 0 training events: 2, 1, .5, .5 and 0 times the mean of the four trained ones.
    # Shown are 1 and 5; then 2 and 4; then 3 and nothing.
    popularity = [2 / 2, (2 + 1.5) / 4, (2 + 1.5 + 0.5) / 5]
    assert [result[f"popularity@{k}"] for k in (1, 2, 3)] == pytest.approx(popularity)


def test_slices_by_hand() -> None:
    counter = metrics()
    # The first request wants a head, a mid and a cold item, and finds the mid one first and the head one third.
    counter.update(torch.tensor([[2, 3, 1], [4, 2, 1]]), ragged([1, 2, 5], [2, 3]), user_idx=torch.tensor([0, 1]))
    result = counter.compute()
    assert [result[f"head/recall@{k}"] for k in (1, 2, 3)] == [0, 0, 1]
    assert [result[f"mid/recall@{k}"] for k in (1, 2, 3)] == pytest.approx([(1 + 0) / 2, (1 + 0.5) / 2, (1 + 0.5) / 2])
    assert [result[f"cold_items/recall@{k}"] for k in (1, 2, 3)] == [0, 0, 0]
    # Nobody wants a tail item; only the second user is without training events.
    assert "tail/recall@1" not in result
    assert [result[f"cold_users/recall@{k}"] for k in (1, 2, 3)] == [0, 0.5, 0.5]
    assert [result[f"warm_users/recall@{k}"] for k in (1, 2, 3)] == pytest.approx([1 / 3, 1 / 3, 2 / 3])


def test_cold_items_by_hand() -> None:
    asked: list[int] = []

    def rank_cold(rows: torch.Tensor) -> torch.Tensor:
        asked.extend(rows.tolist())
        return torch.tensor([[6, 5, 0]])

    # Items 5 and 6 are cold. The first request wants one of them, and finds it in the second place of a list of both.
    ranked, relevant = torch.tensor([[5, 1, 2], [1, 0, 0], [5, 1, 0]]), ragged([1, 5], [2], [])
    data = handmade([([1, 1, 1, 1, 2, 2, 3, 4], [], [5, 6]), ([], [], [1, 2])])
    counter = metrics(data, keep_users=True)
    counter.update(ranked, relevant, user_idx=torch.tensor([0, 1, 0]), rank_cold=rank_cold)
    assert asked == [0]
    result = counter.compute()
    assert [result[f"cold_items/recall@{k}"] for k in (1, 2, 3)] == [1, 1, 1]
    assert [result[f"among_cold_items/recall@{k}"] for k in (1, 2, 3)] == [0, 1, 1]
    # The third request is not counted. The second list ends after its first item.
    assert [result[f"cold_items/shown@{k}"] for k in (1, 2, 3)] == pytest.approx([1 / 2, (1 / 2) / 2, (1 / 3) / 2])
    assert result["cold_items/relevant"] == pytest.approx(1 / 3)
    _, columns = counter.per_user()
    assert columns["cold_items/shown@2"].tolist() == [0.5, 0]
    assert columns["among_cold_items/recall@1"].tolist() == [0, pytest.approx(math.nan, nan_ok=True)]


def test_metrics_of_cold_items_are_absent_without_any() -> None:
    counter = metrics(handmade([([1, 2], [], [1]), ([1], [], [2])]), keep_users=True)
    counter.update(torch.tensor([[1, 2, 0], [2, 0, 0]]), ragged([1], [2]), user_idx=torch.tensor([0, 1]))
    assert not [name for name in counter.compute() if "cold_items" in name or "age_" in name or "profile" in name]
    assert not [name for name in counter.per_user()[1] if "among" in name or "shown" in name or "profile" in name]
    # Nobody asks for the lists of cold items alone.
    counter = metrics()
    counter.update(torch.tensor([[1, 2, 0]]), ragged([5]), user_idx=torch.tensor([0]))
    assert not [name for name in counter.compute() if "among" in name]


def test_slices_equal_a_slow_reference() -> None:
    rng = np.random.default_rng(2)
    data = handmade(random_users(rng, 120, 150, longest=20))
    born = np.where(rng.random(data.num_items + 1) < 0.1, NO_BIRTH, rng.integers(-200, 60, data.num_items + 1) * 86_400)
    data = dataclasses.replace(data, born=born)
    requests, k = data.requests("test"), 20
    relevant = relevant_items(data, "test", requests=requests)
    ranked = np.stack([rng.permutation(data.num_items)[:k] + 1 for _ in requests.user_idx])
    ranked[rng.random(len(ranked)) < 0.3, 7:] = 0
    is_cold = data.train_count == 0
    cold_lists = np.stack([rng.permutation(np.flatnonzero(is_cold[1:]) + 1)[:k] for _ in requests.user_idx])
    counter = RetrievalMetrics(data, data.num_items, cutoffs=(5, 20))
    counter.update(
        torch.from_numpy(ranked),
        relevant,
        user_idx=torch.from_numpy(requests.user_idx),
        rank_cold=lambda rows: torch.from_numpy(cold_lists)[rows],
    )
    result = counter.compute()
    begin = min(int(data.time[end]) for end in requests.end)
    limits = {"age_0_to_1_days": (0, 1), "age_1_to_7_days": (1, 7), "age_7_to_30_days": (7, 30)}
    limits |= {"age_30_to_90_days": (30, 90), "age_over_90_days": (90, 1e9), "born_later": (-1e9, 0)}
    expected: dict[str, list[float]] = {}
    for row, user in enumerate(requests.user_idx):
        wanted = set(relevant.values[relevant.offsets[row] : relevant.offsets[row + 1]].tolist())
        for cutoff in (5, 20):
            shown = [item for item in ranked[row, :cutoff].tolist() if item]
            found = wanted & set(shown)
            slices = {"cold_items": {item for item in wanted if is_cold[item]}}
            for name, (low, high) in limits.items():
                slices[name] = {
                    i for i in wanted if born[i] != NO_BIRTH and low <= (begin - int(born[i])) / 86_400 < high
                }
            for name, items in slices.items():
                if items:
                    expected.setdefault(f"{name}/recall@{cutoff}", []).append(len(found & items) / len(items))
            if cold := slices["cold_items"]:
                best = set(cold_lists[row, :cutoff].tolist())
                expected.setdefault(f"among_cold_items/recall@{cutoff}", []).append(len(best & cold) / len(cold))
            if wanted:
                share = sum(is_cold[i] for i in shown) / len(shown)
                expected.setdefault(f"cold_items/shown@{cutoff}", []).append(share)
                is_warm = data.train_end[user] > data.offsets[user]
                name = "warm_users" if is_warm else "cold_users"
                expected.setdefault(f"{name}/recall@{cutoff}", []).append(len(found) / len(wanted))
    assert len(expected) == 2 * (1 + 6 + 2 + 2)
    assert {name: result[name] for name in expected} == pytest.approx({n: np.mean(v) for n, v in expected.items()})


def test_lists_shorter_than_the_cutoffs() -> None:
    counter = metrics()
    counter.update(torch.tensor([[4]]), ragged([4, 5]), user_idx=torch.tensor([0]))
    result = counter.compute()
    assert [result[f"recall@{k}"] for k in (1, 2, 3)] == [0.5, 0.5, 0.5]
    assert result["ndcg@2"] == pytest.approx(1 / (1 + 1 / log2(3)))


def test_no_request_counts() -> None:
    counter = metrics()
    counter.update(torch.tensor([[1, 2, 3]]), ragged([]), user_idx=torch.tensor([0]))
    counter.update(torch.zeros(0, 3, dtype=torch.int64), ragged(), user_idx=torch.zeros(0, dtype=torch.int64))
    result = counter.compute()
    assert result["recall@3"] == result["coverage@3"] == result["popularity@3"] == result["num_users"] == 0


def test_metrics_of_each_user() -> None:
    counter = metrics(keep_users=True)
    counter.update(torch.tensor([[1, 2, 3], [1, 2, 3]]), ragged([], [3]), user_idx=torch.tensor([0, 1]))
    counter.update(torch.tensor([[1, 2, 3]]), ragged([1, 4]), user_idx=torch.tensor([0]))
    users, columns = counter.per_user()
    assert users.tolist() == [1, 0]
    slices = [*(f"{name}/recall" for name in (*ITEM_SLICES, *USER_SLICES, AMONG_COLD)), SHOWN]
    assert list(columns) == [f"{name}@{k}" for name in (*NAMES, *slices) for k in (1, 2, 3)]
    assert columns["recall@3"].tolist() == [1, 0.5]
    assert columns["mrr@1"].tolist() == [0, 1]


def test_slices_of_each_user() -> None:
    counter = metrics(keep_users=True)
    counter.update(torch.tensor([[2, 3, 1], [4, 2, 1]]), ragged([1, 2, 5], [2, 3]), user_idx=torch.tensor([0, 1]))
    _, columns = counter.per_user()
    found = {name: values.tolist() for name, values in columns.items()}
    nan = pytest.approx(math.nan, nan_ok=True)
    assert found["head/recall@2"] == [0, nan]
    assert found["mid/recall@2"] == [1, 0.5]
    assert found["tail/recall@2"] == [nan, nan]
    assert found["warm_users/recall@2"] == [pytest.approx(1 / 3), nan]
    assert found["cold_users/recall@2"] == [nan, 0.5]
    # Their means are the metrics.
    result = counter.compute()
    for name, values in columns.items():
        if "/" in name and not values.isnan().all():
            assert result[name] == pytest.approx(float(values.nanmean()))


def test_batches_add_up() -> None:
    rng = np.random.default_rng(0)
    dataset = handmade(random_users(rng, 60, 40))
    requests = dataset.requests("test")
    relevant = relevant_items(dataset, "test", requests=requests)
    ranked = torch.from_numpy(np.stack([rng.permutation(dataset.num_items)[:20] + 1 for _ in requests.user_idx]))
    users = torch.from_numpy(requests.user_idx)
    whole, parts = RetrievalMetrics(dataset, 40), RetrievalMetrics(dataset, 40)
    whole.update(ranked, relevant, user_idx=users)
    for rows in np.array_split(np.arange(len(users)), 7):
        parts.update(ranked[rows], relevant.take(rows), user_idx=users[rows])
    assert parts.compute() == pytest.approx(whole.compute())


@pytest.mark.skipif(not PROTOCOL.exists(), reason="needs the reference beside RECSYS_DATA")
@pytest.mark.parametrize("exclude_seen", [True, False])
def test_equals_the_reference(tmp_path: Path, exclude_seen: bool) -> None:
    spec = importlib.util.spec_from_file_location("protocol", PROTOCOL)
    assert spec is not None
    assert spec.loader is not None
    protocol = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(protocol)
    rng = np.random.default_rng(1)
    users = random_users(rng, 200, 300, longest=30)
    # Cold items of the reference have neither train nor val events.
    dataset = handmade(users, path=tmp_path).refit()
    for part, name in enumerate(("train", "val", "test")):
        rows = [(user, item) for user, parts in enumerate(users) for item in parts[part]]
        columns = {"user_id": [user for user, _ in rows], "item_id": [item for _, item in rows]}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    requests = dataset.requests("test")
    seen = seen_items(dataset, requests)
    ranked = np.zeros((len(requests.user_idx), 100), np.int64)
    recommended = []
    for row in range(len(ranked)):
        history = seen.values[seen.offsets[row] : seen.offsets[row + 1]] if exclude_seen else []
        # Lists of any length, an empty one included.
        items = np.setdiff1d(np.arange(1, dataset.num_items + 1), history)
        items = rng.permutation(items)[: rng.integers(0, 101)]
        ranked[row, : len(items)] = items
        recommended.append(items.tolist())
    table = pa.table({"user_id": requests.user_idx, "item_ids": pa.array(recommended, pa.list_(pa.int64()))})
    pq.write_table(table, tmp_path / "recs.parquet")
    expected = protocol.score(tmp_path / "test.parquet", tmp_path / "recs.parquet", exclude_seen)
    counter = RetrievalMetrics(dataset, dataset.num_items)
    relevant = relevant_items(dataset, "test", requests=requests, exclude_seen=exclude_seen)
    counter.update(torch.from_numpy(ranked), relevant, user_idx=torch.from_numpy(requests.user_idx))
    result = counter.compute()
    assert expected["users"] == result["num_users"]
    for name in NAMES:
        for cutoff in CUTOFFS:
            assert result[f"{name}@{cutoff}"] == pytest.approx(expected[f"{name}@{cutoff}"], abs=1e-5)
    for name in ("cold_items/recall", "cold_items/shown"):
        for cutoff in CUTOFFS:
            assert result[f"{name}@{cutoff}"] == pytest.approx(expected[f"{name}@{cutoff}"], abs=1e-5)
    for cutoff in (10, 100):
        assert result[f"coverage@{cutoff}"] * dataset.num_items == pytest.approx(expected[f"items_shown@{cutoff}"])
