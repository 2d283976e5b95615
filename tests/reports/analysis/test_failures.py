"""What is found and missed, against numbers that are worked out and against the evaluation itself."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from handmade import DAY, handmade
from worlds import write_run, write_world

from recsys.data.batches.loaders import RequestLoader
from recsys.data.dataset import PreparedDataset, Requests
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import ModelRanker, evaluate
from recsys.experiments.trained_run import TrainedRun, load_run
from recsys.reports.analysis import failures
from recsys.reports.analysis.failures import Results, by_age, by_category, by_history, by_popularity, examine
from recsys.reports.analysis.item_descriptions import ItemDescriptions

# Trained: 1 (four times), 2, 3; item 4 is known from validation, 5 from the test part alone. One day between events.
DATA = handmade([([1, 1, 1], [4], [2, 3]), ([2, 1], [], [3, 5]), ([3], [], [1])])


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "_FEWEST_USERS", 1)


def results(dataset: PreparedDataset = DATA, num_users: int = 3) -> Results:
    """The first user gets 2 of (2, 3); the second nothing of (3, 5); the third 1 of (1)."""
    requests = Requests(np.arange(num_users), dataset.val_end[:num_users])
    return Results(
        dataset,
        requests,
        np.array([[2, 1], [4, 0], [1, 2]]),
        np.array([0, 0, 1, 1, 2]),
        np.array([2, 3, 3, 5, 1]),
        np.array([True, False, False, False, True]),
        np.array([0.5, 4.0, 4.0, 0.0, 500.0]),
    )


def test_groups_by_hand() -> None:
    found = results()
    assert found.k == 2
    assert found.recall.tolist() == [0.5, 0, 1]
    assert found.history_length.tolist() == [4, 2, 1]
    (group,) = by_history(found)
    assert (group.label, group.recall, group.num_users, group.num_pairs) == ("1 to 4 events", 0.5, 3, 5)
    assert (group.low, group.high) == (0, 1)
    # Items 1, 2 and 3 have 4, 1 and 1 training events: the first user has half, the second nothing, the third all.
    none, some = by_popularity(found)
    assert (none.label, none.recall, none.num_users, none.num_pairs) == ("0 events", 0, 1, 1)
    assert (some.label, some.recall, some.num_users, some.num_pairs) == ("1 to 4 events", 0.5, 3, 4)
    assert {group.kind for group in (none, some)} == {"item's training events"}
    assert [(group.label, group.recall, group.num_pairs) for group in by_age(found)] == [
        ("under a day", 0.5, 2),
        ("1 to 6 days", 0, 2),
        ("365 days or more", 1, 1),
    ]


def test_small_groups_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "_FEWEST_USERS", 2)
    assert [group.label for group in by_age(results())] == ["under a day", "1 to 6 days"]


def test_ages_by_hand() -> None:
    # Users act on days 0, 1, 2, ... of their own: item 3 is first taken on day 0 by the last user, item 2 on day 0 by
    # the second; 5 is new when the second user takes it on his day 3.
    requests = Requests(np.arange(3), DATA.val_end)
    row, item_idx = np.array([0, 0, 1, 1, 2]), np.array([2, 3, 3, 5, 1])
    ages = failures._ages(DATA, requests, row=row, item_idx=item_idx)
    assert ages is not None
    assert ages.tolist() == [4, 5, 2, 0, 1]
    assert (
        failures._ages(
            handmade([([1], [], [2])], "order"), Requests(np.array([0]), np.array([1])), row=row, item_idx=row
        )
        is None
    )


def test_the_first_of_repeated_test_events_counts() -> None:
    data = handmade([([1], [], [2, 1, 2]), ([1], [2], [1])])
    ages = failures._ages(data, Requests(np.array([0]), data.val_end[:1]), row=np.array([0]), item_idx=np.array([2]))
    assert ages is not None
    # Taken on day 1 and 3; first by the other user on day 1.
    assert ages.tolist() == [0]
    assert int(data.time[1]) == DAY


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    folder = tmp_path_factory.mktemp("runs")
    return load_run(write_run(folder / "run", write_world(folder / "data"), "split=temporal"))


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_ranks_as_the_evaluation_does(run: TrainedRun, exclude_seen: bool) -> None:
    run.config.exclude_seen = exclude_seen
    found = examine(run, 5)
    metrics = RetrievalMetrics(run.dataset, len(run.corpus), keep_users=True)
    requests = RequestLoader(run.builder, run.dataset.requests("test"))
    ranker = ModelRanker(run.model, run.corpus)
    expected = evaluate(ranker, run.dataset, part="test", batches=requests, metrics=metrics, exclude_seen=exclude_seen)
    assert 0 < expected["recall@5"] < 1
    assert len(found.recall) == expected["num_users"]
    assert found.recall.mean() == pytest.approx(expected["recall@5"])
    users, columns = metrics.per_user()
    assert found.requests.user_idx.tolist() == users.tolist()
    assert found.recall == pytest.approx(columns["recall@5"].numpy())


def test_ages_are_those_of_a_loop(run: TrainedRun) -> None:
    found, data = examine(run, 5), run.dataset
    first: dict[int, int] = {}
    for item, time in zip(data.item_idx.tolist(), data.time.tolist(), strict=True):
        first[item] = min(time, first.get(item, time))
    assert found.age_days is not None
    for row, item, age in zip(found.row.tolist(), found.item_idx.tolist(), found.age_days.tolist(), strict=True):
        user = int(found.requests.user_idx[row])
        events = slice(int(data.val_end[user]), int(data.offsets[user + 1]))
        taken = min(t for i, t in zip(data.item_idx[events], data.time[events], strict=True) if i == item)
        assert age == pytest.approx((taken - first[item]) / DAY)


def test_a_part_of_many_users(run: TrainedRun) -> None:
    some = examine(run, 5, num_users=10)
    assert len(some.recall) <= 10
    assert some.requests.user_idx.tolist() == examine(run, 5, num_users=10).requests.user_idx.tolist()
    everyone = examine(run, 5)
    part, whole = (
        dict(zip(found.requests.user_idx.tolist(), found.recall.tolist(), strict=True)) for found in (some, everyone)
    )
    assert part.items() <= whole.items()


def test_by_category(run: TrainedRun) -> None:
    found, descriptions = examine(run, 5), ItemDescriptions(run)
    _, values = descriptions.categories("category")
    groups = by_category(found, descriptions, name="category")
    wanted = Counter(value for value in values[found.item_idx] if value is not None)
    assert [(group.label, group.num_pairs) for group in groups] == sorted(wanted.items(), key=lambda p: (-p[1], p[0]))
    for group in groups:
        pairs = values[found.item_idx] == group.label
        recalls = [found.found[pairs & (found.row == row)].mean() for row in np.unique(found.row[pairs])]
        assert group.recall == pytest.approx(np.mean(recalls))
        assert group.low <= group.recall <= group.high
