"""The simulated pin world: its values, its files, and whether its oracle tells the truth."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import chi2

import recsys.data.simulation.synthetic
from recsys.core.columns import ragged_positions
from recsys.core.errors import UserError
from recsys.core.schema import Schema, TimeResolution
from recsys.data.dataset import Meta, PreparedDataset
from recsys.data.simulation.oracle import Moments, Truth, oracle_scores
from recsys.data.simulation.synthetic import Synthetic, WorldSettings, generate
from recsys.data.simulation.unknown_popularity import unknown_popularity
from recsys.data.simulation.world import DAY, Boards, World, pick, stay
from recsys.experiments.assembly.oracle import best_reachable

SMALL = WorldSettings(num_users=2_500, num_items=500, num_events=30_000, num_categories=5, topics_per_category=4)
TINY = WorldSettings(
    num_users=30, num_items=40, num_events=60_000, num_categories=2, topics_per_category=3, days=20, explore=0.2
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("worlds") / "small"
    generate(root, SMALL)
    return root


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("worlds") / "tiny"
    generate(root, TINY)
    return root


def read(root: Path) -> tuple[pa.Table, pa.Table, pa.Table]:
    return tuple(pq.read_table(root / f"{name}.parquet") for name in ("interactions", "items", "users"))


def prepared(root: Path, folder: Path, time_resolution: str = "seconds") -> PreparedDataset:
    """Temporal split 80/10/10 of the events, by hand: item_idx is the item_id, every item is known."""
    events = pq.read_table(root / "interactions.parquet")
    seconds, items = events["timestamp"].to_numpy(), events["item_id"].to_numpy()
    user_ids, users = np.unique(events["user_id"].to_numpy(), return_inverse=True)
    num_items = pq.read_metadata(root / "items.parquet").num_rows
    offsets = np.concatenate([[0], np.cumsum(np.bincount(users))])
    ends = [offsets[:-1] + np.bincount(users, seconds < cut).astype(int) for cut in np.quantile(seconds, [0.8, 0.9])]
    (folder / "vocabularies").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"item_id": np.arange(1, num_items + 1)}), folder / "vocabularies/items.parquet")
    pq.write_table(pa.table({"user_id": user_ids}), folder / "vocabularies/users.parquet")
    return PreparedDataset(
        path=folder,
        meta=Meta(
            fingerprint="by hand",
            time_resolution=TimeResolution(time_resolution),
            num_users=len(user_ids),
            num_events=len(items),
            num_trained=num_items,
            num_seen=num_items,
            num_known=num_items,
            num_items=num_items,
            settings={},
        ),
        schema=Schema(()),
        item_idx=items.astype(np.int32),
        time=seconds,
        offsets=offsets,
        train_end=ends[0],
        val_end=ends[1],
        train_count=np.bincount(items[seconds < np.quantile(seconds, 0.8)], minlength=num_items + 1),
        has_features=np.ones(num_items + 1, bool),
        columns={},
    )


# Values


def test_equal_settings_give_equal_files_and_another_seed_other_values(small: Path, tmp_path: Path) -> None:
    generate(tmp_path / "again", SMALL)
    for ours, theirs in zip(read(small), read(tmp_path / "again"), strict=True):
        assert ours.equals(theirs)
    generate(tmp_path / "other", dataclasses.replace(SMALL, seed=1))
    for ours, theirs in zip(read(small), read(tmp_path / "other"), strict=True):
        assert not ours.equals(theirs)


def test_size_of_shards_changes_no_value(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recsys.data.simulation.synthetic, "_EVENTS_PER_SHARD", 10_000)
    generate(tmp_path / "shards", SMALL)
    shards = sorted((tmp_path / "shards/interactions.parquet").iterdir())
    assert [shard.name for shard in shards] == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    for ours, theirs in zip(read(small), read(tmp_path / "shards"), strict=True):
        assert ours.equals(theirs)
    for name in ("events.board.npy", "events.seconds.npy", "boards.topic.npy"):
        assert np.array_equal(np.load(small / "truth" / name), np.load(tmp_path / "shards/truth" / name))
    users_of = [set(pq.read_table(shard)["user_id"].to_pylist()) for shard in shards]
    assert sum(len(users) for users in users_of) == len(set.union(*users_of))


def test_tables_follow_the_contract(small: Path) -> None:
    events, items, users = read(small)
    assert [str(field.type) for field in events.schema] == [
        *("int64", "int64", "int64", "string", "string", "string", "float")
    ]
    assert events.column_names == ["user_id", "item_id", "timestamp", "surface", "query", "action", "dwell"]
    assert len(events) == SMALL.num_events
    assert len(items) == SMALL.num_items
    assert len(users) == SMALL.num_users
    user, seconds = events["user_id"].to_numpy(), events["timestamp"].to_numpy()
    assert (np.diff(user) >= 0).all()
    assert (np.diff(seconds)[np.diff(user) == 0] > 0).all()
    assert seconds.min() >= SMALL.start_seconds
    assert seconds.max() < SMALL.start_seconds + SMALL.days * DAY
    surface = np.array(events["surface"].to_pylist())
    assert np.array_equal(surface == "search", events["query"].is_valid().to_numpy())
    assert abs((surface == "search").mean() - SMALL.search_share) < 0.01
    assert set(events["action"].to_pylist()) == {"save", "click", "closeup", "hide"}
    assert {len(vector) for vector in items["visual"].to_pylist() if vector is not None} == {SMALL.vector_width}
    missing = [events["dwell"], items["category"], items["tags"], items["visual"], users["country"], users["age_group"]]
    assert all(column.null_count > 0 for column in [*missing, users["interests"]])


def test_queries_are_words_of_the_item(small: Path) -> None:
    events, items, _ = read(small)
    title = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    category = dict(zip(items["item_id"].to_pylist(), items["category"].to_pylist(), strict=True))
    searched = events.filter(events["query"].is_valid()).slice(0, 500).to_pylist()
    for event in searched:
        words = {*title[event["item_id"]].split(), category[event["item_id"]], "ideas"}
        if category[event["item_id"]]:
            assert set(event["query"].split()) <= words


def test_interests_are_the_category_of_the_item_and_change_nothing_else(small: Path, tmp_path: Path) -> None:
    generate(tmp_path / "opened", dataclasses.replace(SMALL, interest_share=0.4))
    events, items, _ = read(tmp_path / "opened")
    assert events.drop_columns("interest").equals(read(small)[0])
    opened = events.filter(events["interest"].is_valid())
    # A request is a search, an opened interest, or neither.
    assert opened["query"].null_count == len(opened)
    others = events["query"].null_count
    assert abs(len(opened) / others - 0.4) < 0.01
    category = dict(zip(items["item_id"].to_pylist(), items["category"].to_pylist(), strict=True))
    pairs = [(category[event["item_id"]], event["interest"]) for event in opened.to_pylist()]
    # The table of items leaves some categories out.
    assert all(told == known for known, told in pairs if known is not None)
    assert len({told for _, told in pairs}) == SMALL.num_categories


def test_histories_are_heavy_tailed(small: Path) -> None:
    lengths = np.bincount(read(small)[0]["user_id"].to_numpy(), minlength=SMALL.num_users + 1)[1:]
    mean = SMALL.num_events / SMALL.num_users
    assert 0.6 * mean < np.median(lengths) < 0.9 * mean
    assert lengths.max() > 5 * mean
    assert 20 < (lengths == 0).sum() < 100
    assert (lengths == 1).sum() > 40


def test_no_event_before_the_birth_of_its_item(small: Path) -> None:
    events, items, _ = read(small)
    born = np.zeros(SMALL.num_items + 1, np.int64)
    born[items["item_id"].to_numpy()] = items["born"].to_numpy()
    assert (events["timestamp"].to_numpy() >= born[events["item_id"].to_numpy()]).all()
    assert (born > SMALL.start_seconds).mean() > 0.3
    assert len(set(events["item_id"].to_pylist())) < SMALL.num_items


def test_popularity_within_topics_is_zipf(small: Path) -> None:
    world = Truth(small).world
    by_id = np.argsort(world.item_id)
    counts = np.bincount(by_id[read(small)[0]["item_id"].to_numpy() - 1], minlength=SMALL.num_items)
    rank = np.arange(SMALL.num_items) - np.repeat(world.topic_start[:-1], np.diff(world.topic_start))
    mean = [counts[(rank >= low) & (rank < high)].mean() for low, high in ((0, 3), (3, 10), (10, 20))]
    assert mean[0] > 1.5 * mean[1] > 2 * mean[2]
    ordered = np.sort(counts)[::-1]
    assert ordered[:50].sum() > 0.25 * ordered.sum()


def test_interests_drift_unless_drift_is_zero() -> None:
    week = np.arange(SMALL.days // 7) * 7 * DAY
    for drift, low, high in ((0.0, 0.0, 0.25), (1.5, 0.4, 1.0)):
        settings = dataclasses.replace(SMALL, drift=drift)
        world = World.build(settings)
        boards = Boards.draw(world, np.zeros(200, np.int64), rng=np.random.default_rng(0))
        calm = dataclasses.replace(world, heat=np.ones_like(world.heat))
        interest = boards.interest(calm, np.repeat(np.arange(200), len(week)), seconds=np.tile(week, 200))
        interest = interest.reshape(200, len(week), -1)
        np.testing.assert_allclose(interest.sum(2), 1)
        swing = (interest.max(1) - interest.min(1)).max(1).mean()
        assert low <= swing <= high


def test_trends_heat_up_and_cool_down() -> None:
    world = World.build(SMALL)
    item = int(np.argmax(world.boost * (world.born[world.trending] < world.peak - 15) * (world.peak < SMALL.days - 20)))
    position, peak = world.trending[item], int(world.peak[item])
    near, before, after = (world.item_weights(day)[position] for day in (peak, peak - 15, peak + 20))
    assert near > 2 * before
    assert near > 2 * after


# The oracle


def test_probabilities_sum_to_one_and_are_zero_before_birth() -> None:
    world = World.build(TINY)
    for day in (0, 7, TINY.days - 1):
        probability = world.item_probability(day)
        np.testing.assert_allclose(np.add.reduceat(probability, world.topic_start[:-1]), 1, rtol=1e-5)
        assert (probability[world.born > day] == 0).all()
        np.testing.assert_allclose(world.topic_probability(day).sum(), 1)


def test_pick_never_draws_weight_zero() -> None:
    weight = np.array([0.0, 1.0, 0.0, 3.0, 0.0])
    assert pick(weight[None], np.array([0.0, 0.2499, 0.25, 1.0])).tolist() == [1, 1, 3, 3]


def test_expected_events_are_the_chain_by_hand(tiny: Path) -> None:
    """Two events of a user who stood at board b: keep, then interest; the second step starts from the first."""
    truth = Truth(tiny)
    user = int(np.argmax(np.diff(truth.offsets)))
    seconds = np.load(tiny / "truth/events.seconds.npy")[truth.offsets[user] :][:7]
    state = np.load(tiny / "truth/events.board.npy")[truth.offsets[user] + 4]
    days = np.unique(truth.world.day_of(seconds[5:]))
    mass = truth.expected(Moments(np.array([user]), np.array([0, 2]), seconds[5:]), days)

    boards = truth.boards(np.array([user]))
    probability, want = np.eye(boards.topic.shape[1])[state], np.zeros((TINY.num_topics, len(days)))
    for before, now in zip(seconds[4:6], seconds[5:7], strict=True):
        keep = stay(TINY, np.array([now - before]))[0]
        interest = boards.interest(truth.world, np.array([0]), seconds=np.array([now]))[0]
        probability = keep * probability + (1 - keep) * interest
        day = int(truth.world.day_of(np.array([now]))[0])
        column = np.searchsorted(days, day)
        want[:, column] += TINY.explore * truth.world.topic_probability(day)
        for topic, share in zip(boards.topic[0], probability, strict=True):
            if topic >= 0:
                want[topic, column] += (1 - TINY.explore) * share
    np.testing.assert_allclose(mass[0], want, rtol=1e-9)
    np.testing.assert_allclose(mass.sum(), 2)


def test_drawn_frequencies_match_the_probabilities(tiny: Path) -> None:
    """One step ahead, the counts of items are those that the probabilities promise; another user's are not."""
    truth, events = Truth(tiny), pq.read_table(tiny / "interactions.parquet")
    by_id = np.argsort(truth.world.item_id)
    item = by_id[events["item_id"].to_numpy() - 1]
    days = np.arange(TINY.days)
    likely = np.stack([truth.world.item_probability(int(day)) for day in days])
    busiest = np.argsort(np.diff(truth.offsets))[-4:]
    assert np.diff(truth.offsets)[busiest].min() > 2_500
    for user in busiest:
        rows = slice(truth.offsets[user], truth.offsets[user + 1])
        seconds = events["timestamp"].to_numpy()[rows] - TINY.start_seconds
        counts = np.bincount(item[rows], minlength=TINY.num_items)
        for guess in (user, busiest[0] if user != busiest[0] else busiest[1]):
            each = Moments(np.full(len(seconds), guess), np.arange(len(seconds) + 1), seconds)
            mass = truth.expected(each, days).sum(0)
            np.testing.assert_allclose(mass.sum(), len(seconds))
            promised = np.concatenate(
                [mass[topic] @ likely[:, slice(*truth.world.topic_start[topic : topic + 2])] for topic in range(6)]
            )
            possible = promised > 0
            assert counts[~possible].sum() == 0
            statistic = ((counts - promised)[possible] ** 2 / promised[possible]).sum()
            limit = chi2.ppf(0.999, possible.sum() - 1)
            assert statistic < limit if guess == user else statistic > 5 * limit


def test_oracle_beats_popularity_and_item_knn(small: Path, tmp_path: Path) -> None:
    dataset = prepared(small, tmp_path)
    oracle = best_reachable(small, dataset, part="test")
    values = [oracle[f"best_reachable/recall@{k}"] for k in (5, 10, 20, 50, 100)]
    assert sorted(values) == values

    begin, end = dataset.part_bounds("test")
    seen = np.zeros((dataset.num_users, dataset.num_items + 1), np.float32)
    history = ragged_positions(dataset.offsets[:-1], begin - dataset.offsets[:-1])
    seen[np.repeat(np.arange(dataset.num_users), begin - dataset.offsets[:-1]), dataset.item_idx[history]] = 1
    together = seen.T @ seen
    norm = np.sqrt(np.diag(together)) + 1e-9
    similar = together / norm[:, None] / norm
    np.fill_diagonal(similar, 0)
    popular = seen.sum(0)
    recalls: dict[str, list[float]] = {"popular": [], "knn": []}
    for user in np.flatnonzero(end > begin):
        relevant = set(dataset.item_idx[begin[user] : end[user]]) - set(np.flatnonzero(seen[user]))
        if relevant:
            for name, scores in (("popular", popular), ("knn", seen[user] @ similar)):
                best = np.argsort(-np.where(seen[user] > 0, -np.inf, scores), kind="stable")[:10]
                recalls[name].append(len(relevant & set(best)) / len(relevant))
    assert 2 * np.mean(recalls["popular"]) < np.mean(recalls["knn"]) < 0.75 * oracle["best_reachable/recall@10"]


def test_oracle_equals_plain_arithmetic(small: Path, tmp_path: Path) -> None:
    """The blocked ranking against one user and one event at a time, for val."""
    dataset, truth = prepared(small, tmp_path), Truth(small)
    begin, end = dataset.part_bounds("val")
    user_ids = dataset.user_ids.to_numpy()
    recalls = []
    for user in np.flatnonzero(end > begin):
        seconds = dataset.time[begin[user] : end[user]] - SMALL.start_seconds
        days = np.unique(truth.world.day_of(seconds))
        mass = truth.expected(Moments(user_ids[[user]] - 1, np.array([0, len(seconds)]), seconds), days)[0]
        likely = np.stack([truth.world.item_probability(int(day)) for day in days])
        scores = (mass[truth.world.item_topic] * likely.T).sum(1)
        seen = set(dataset.item_idx[dataset.offsets[user] : begin[user]])
        ranked = [i for i in truth.world.item_id[np.argsort(-scores, kind="stable")] if i not in seen]
        relevant = set(dataset.item_idx[begin[user] : end[user]]) - seen
        if relevant:
            recalls.append(len(relevant & set(ranked[:20])) / len(relevant))
    found = best_reachable(small, dataset, part="val", cutoffs=(20,))
    assert found["best_reachable/recall@20"] == pytest.approx(np.mean(recalls), abs=2e-3)


def test_the_oracle_ignores_the_drawn_items(small: Path, tmp_path: Path) -> None:
    dataset = prepared(small, tmp_path)
    begin, end = dataset.part_bounds("test")
    drawn, items = ragged_positions(begin, end - begin), dataset.item_idx.copy()
    items[drawn] = np.random.default_rng(0).permutation(items[drawn])
    (before,), (after,) = (
        list(oracle_scores(small, data, part="test", max_users=200))
        for data in (dataset, dataclasses.replace(dataset, item_idx=items))
    )
    np.testing.assert_array_equal(before.best, after.best)
    assert len(before.best) == 200


def test_the_oracle_without_the_popularity_of_new_items(small: Path, tmp_path: Path) -> None:
    dataset = prepared(small, tmp_path)
    world, is_new = Truth(small).world, dataset.train_count[1:] == 0
    (scores,) = oracle_scores(small, dataset, part="test", max_users=50)
    assert scores.no_popularity is not None
    # Items are in the order of their ids; new ones of one topic that are born on one day have one score.
    kinds = np.stack([world.item_topic, world.born])[:, np.argsort(world.item_id)]
    alike = np.unique(kinds[:, is_new], axis=1, return_inverse=True)[1].ravel()
    known, unknown = (each[:, 1:][:, is_new] for each in (scores.best, scores.no_popularity))
    pairs = [np.flatnonzero(alike == kind) for kind in np.unique(alike) if (alike == kind).sum() > 1]
    assert len(pairs) > 3
    for pair in pairs:
        np.testing.assert_allclose(unknown[:, pair], unknown[:, pair[:1]].repeat(len(pair), 1), rtol=1e-6)
        assert not np.allclose(known[:, pair], known[:, pair[:1]].repeat(len(pair), 1))
    # What is unknown costs recall.
    found = best_reachable(small, dataset, part="test")
    best, without = (found[f"{name}/recall@20"] for name in ("best_reachable", "best_without_popularity"))
    assert 0.9 * best < without < best
    assert 0 < found["best_without_popularity/cold_items/shown@20"] < 0.2
    known_alone = dataclasses.replace(dataset, train_count=np.ones_like(dataset.train_count))
    assert next(oracle_scores(small, known_alone, part="test", max_users=5)).no_popularity is None


def test_expected_weight_of_a_new_item_by_plain_arithmetic(small: Path, tmp_path: Path) -> None:
    dataset, world = prepared(small, tmp_path), Truth(small).world
    position, day = np.argsort(world.item_id), 85
    weights = np.stack([world.item_weights(day)])
    found = unknown_popularity(world, dataset, position=position, days=np.array([day]), weights=weights)[0]
    changed = np.flatnonzero(dataset.train_count[1:] == 0)
    assert {*np.flatnonzero(found != weights[0])} <= {*position[changed]}
    train = np.concatenate([np.arange(*bounds) for bounds in zip(dataset.offsets[:-1], dataset.train_end, strict=True)])
    days = world.day_of(dataset.time[train] - SMALL.start_seconds)
    topics = world.item_topic[position[dataset.item_idx[train] - 1]]

    def trend(at: int) -> float:
        return 1 + sum(world.boost * np.exp(-0.5 * ((at - world.peak) / world.width) ** 2)) / SMALL.num_items

    sample = world.half_life[:: SMALL.num_items // 256]
    # One item that was born in training, and one that was not.
    born = world.born[position[changed]]
    for item in (position[changed[born < 60][0]], position[changed[born > 80][0]]):
        topic, events = world.item_topic[item], 0.0
        own = slice(world.topic_start[topic], world.topic_start[topic + 1])
        for at in range(int(max(world.born[item], 0)), 90):
            interest = np.mean(0.03 + 0.97 * 0.5 ** ((at - world.born[item]) / sample))
            share = interest * np.mean([trend(t) for t in range(90)]) / world.item_weights(at)[own].sum()
            events += share * ((days == at) & (topics == topic)).sum()
        none = np.exp(-world.zipf[own] * events)
        zipf = (world.zipf[own] * none).sum() / none.sum()
        interest = np.mean(0.03 + 0.97 * 0.5 ** ((day - world.born[item]) / sample)) if day >= world.born[item] else 0
        assert found[item] == pytest.approx(zipf * interest * trend(day), rel=1e-4)


def test_oracle_samples_users_and_refuses_other_data(small: Path, tiny: Path, tmp_path: Path) -> None:
    dataset = prepared(small, tmp_path)
    sample = best_reachable(small, dataset, part="test", cutoffs=(10,), max_users=100)
    assert sample == best_reachable(small, dataset, part="test", cutoffs=(10,), max_users=100)
    assert sample != best_reachable(small, dataset, part="test", cutoffs=(10,), max_users=100, seed=1)
    with pytest.raises(UserError, match="do not belong to .*tiny, expected whole numbers from 1 to 30"):
        best_reachable(tiny, dataset, part="test")
    with pytest.raises(UserError, match=r"data\.time=day, expected seconds"):
        best_reachable(small, prepared(small, tmp_path, time_resolution="day"), part="test")
    with pytest.raises(UserError, match="not the truth of a simulated world"):
        best_reachable(tmp_path, dataset, part="test")


# The source


def test_the_source_reuses_existing_data(tmp_path: Path) -> None:
    source = Synthetic(num_users=50, num_items=100, num_events=500)
    tables = source.tables(tmp_path)
    written = {path: os.stat(path).st_mtime_ns for path in (*tables.interactions, *tables.items, *tables.users)}
    assert source.tables(tmp_path) == tables
    assert {path: os.stat(path).st_mtime_ns for path in written} == written
    assert Synthetic(num_users=50, num_items=100, num_events=501).folder(tmp_path) != source.folder(tmp_path)
    assert sum(pq.read_metadata(path).num_rows for path in tables.interactions) == 500
    with pytest.raises(UserError, match="already exists"):
        generate(source.folder(tmp_path), source)


def test_partial_data_of_a_killed_generator_is_not_reused(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; import recsys.data.simulation.synthetic as s\n"
        "s._write_shard = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "s.Synthetic(num_users=50, num_items=100, num_events=500).tables(Path(sys.argv[1]))"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    source = Synthetic(num_users=50, num_items=100, num_events=500)
    assert not source.folder(tmp_path).exists()
    source.tables(tmp_path)
    assert len(read(source.folder(tmp_path))[0]) == 500
    assert [path.name for path in source.folder(tmp_path).parent.iterdir() if path.is_dir()] == [
        source.folder(tmp_path).name
    ]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_users": 0}, "data.num_users=0: expected a number at least 1"),
        ({"num_items": 59}, "data.num_items=59: expected a number at least 60"),
        ({"explore": 1.5}, "data.explore=1.5: expected a number from 0 to 1"),
        ({"seed": "x"}, "data.seed=x: expected a number at least 0"),
        ({"start": "today"}, "data.start=today: expected a date such as 2024-01-01"),
    ],
)
def test_impossible_settings_are_refused_by_name(setting: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        Synthetic(**setting)


def test_more_events_than_a_user_has_time_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.num_events=1000000: a user would have"):
        generate(tmp_path / "world", WorldSettings(num_users=2, num_events=1_000_000, days=3))
    assert not (tmp_path / "world").exists()


@pytest.mark.parametrize("sizes", [(1, 1), (1, 5), (5, 2), (3, 40)])
def test_smallest_worlds(tmp_path: Path, sizes: tuple[int, int]) -> None:
    num_users, num_events = sizes
    settings = WorldSettings(num_users, 1, num_events, 1, 1, days=1, search_share=1.0, explore=1.0)
    generate(tmp_path / "world", settings)
    events, items, users = read(tmp_path / "world")
    assert (len(events), len(items), len(users)) == (num_events, 1, num_users)
    assert events["query"].null_count == 0
