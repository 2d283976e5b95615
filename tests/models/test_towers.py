"""Both towers on a world with every kind of feature."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from handmade import training_only
from omegaconf import DictConfig
from torch import Tensor
from worlds import FEATURES, compose, write_world

from recsys.core.errors import UserError
from recsys.core.schema import Schema
from recsys.data.batches.batch import Batch, RaggedTensor, Windows
from recsys.data.batches.builder import BatchBuilder
from recsys.data.dataset import PreparedDataset, Requests
from recsys.experiments.assembly import build_towers, open_data
from recsys.models.hstu import HSTU
from recsys.models.towers import UserTower
from recsys.models.two_tower import MAX_INVERSE_TEMPERATURE, TwoTower

USER_TOWERS = ("mean", "attention", "transformer", "modern", "hstu", "interests")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world") / "data")


def settings(world: Path, *overrides: str) -> DictConfig:
    common = ["data=parquet", f"data.root={world}", f"data.cache={world.parent}/cache", "split=leave_last_out"]
    return compose("train", [*common, "model.dim=8", "history.max_events=8", *FEATURES, *overrides])


def build(world: Path, *overrides: str) -> tuple[TwoTower, PreparedDataset]:
    config = settings(world, *overrides)
    dataset = open_data(config)
    return build_towers(config, dataset).eval(), dataset


def whole_history(dataset: PreparedDataset, user: int, max_history: int = 8) -> Batch:
    """All query positions of a user's first events."""
    begin = dataset.offsets[user]
    end = min(begin + max_history, dataset.train_end[user] - 1)
    window = Windows(np.array([user]), np.array([begin]), np.array([end]), np.array([True]))
    return BatchBuilder(dataset, max_history).training(window)


def longest_user(dataset: PreparedDataset) -> int:
    return int(np.argmax(dataset.train_end - dataset.offsets[:-1]))


@pytest.mark.parametrize("tower", USER_TOWERS)
def test_changing_an_event_changes_no_query_before_it(world: Path, tower: str) -> None:
    model, dataset = build(world, f"user_tower={tower}", "user_tower.use_user_id=true")
    batch = whole_history(dataset, longest_user(dataset))
    before = model.encode_users(batch)
    assert len(before) == 9
    for changed in range(len(batch.item_idx)):
        item_idx = batch.item_idx.clone()
        item_idx[changed] = item_idx[changed] % dataset.num_trained + 1
        after = model.encode_users(dataclasses.replace(batch, item_idx=item_idx))
        untouched = batch.query <= changed
        torch.testing.assert_close(after[untouched], before[untouched], atol=1e-6, rtol=1e-5)
        assert bool(((after - before)[~untouched].abs().amax(1) > 1e-6).all())


@pytest.mark.parametrize("name", ["action", "dwell", "labels", "seen_vector"])
@pytest.mark.parametrize("tower", USER_TOWERS)
def test_the_outcome_of_an_event_reaches_later_queries_only(world: Path, tower: str, name: str) -> None:
    model, dataset = build(world, f"user_tower={tower}")
    batch = whole_history(dataset, longest_user(dataset))
    before = model.encode_users(batch)
    changed = 4
    column = batch.events[name]
    if isinstance(column, RaggedTensor):
        # One more label.
        values = torch.cat(
            [column.values[: column.offsets[changed]], torch.tensor([2]), column.values[column.offsets[changed] :]]
        )
        offsets = column.offsets.clone()
        offsets[changed + 1 :] += 1
        other: Tensor | RaggedTensor = RaggedTensor(values, offsets)
    elif column.dtype == torch.int64:
        other = column.clone()
        other[changed] = (other[changed] + 1) % 4
    else:
        other = column.clone()
        other[changed] = torch.nan_to_num(other[changed]) * 0.5 + 0.3
        if other.ndim == 2:
            other[changed, 0] += 1.0
    after = model.encode_users(dataclasses.replace(batch, events=batch.events | {name: other}))
    # Position `changed` predicts the event; positions after it have seen its outcome.
    torch.testing.assert_close(after[batch.query <= changed], before[batch.query <= changed], atol=1e-6, rtol=1e-5)
    assert bool(((after - before)[batch.query > changed].abs().amax(1) > 1e-7).all())


def test_request_features_are_part_of_their_own_query_alone(world: Path) -> None:
    model, dataset = build(world)
    batch = whole_history(dataset, longest_user(dataset))
    before = model.encode_users(batch)
    surface = batch.requests["surface"]
    assert isinstance(surface, Tensor)
    other = surface.clone()
    other[3] = (other[3] + 1) % 4
    after = model.encode_users(dataclasses.replace(batch, requests=batch.requests | {"surface": other}))
    moved = (after - before).abs().amax(1) > 1e-7
    assert moved.nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("tower", USER_TOWERS)
def test_users_without_history_and_unknown_users(world: Path, tower: str) -> None:
    model, dataset = build(world, f"user_tower={tower}", "user_tower.use_user_id=true")
    builder = BatchBuilder(dataset, 8)
    user = longest_user(dataset)
    begin, end = dataset.offsets[user], dataset.train_end[user]
    empty = Requests(np.array([user, -1]), np.array([begin, 0]))
    alone = model.encode_users(builder.requests(empty))
    assert alone.shape == ((2, 4, 8) if tower == "interests" else (2, 8))
    assert bool(torch.isfinite(alone).all())
    # Among others, the empty history stays the empty history.
    mixed = Requests(np.array([user, user, -1]), np.array([end, begin, 0]))
    together = model.encode_users(builder.requests(mixed))
    torch.testing.assert_close(together[1:], alone, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("tower", USER_TOWERS)
def test_training_positions_equal_requests(world: Path, tower: str) -> None:
    model, dataset = build(world, f"user_tower={tower}", "user_tower.use_user_id=true")
    user = longest_user(dataset)
    batch = whole_history(dataset, user)
    ends = dataset.offsets[user] + np.arange(9)
    requests = Requests(np.full(9, user), ends)
    torch.testing.assert_close(
        model.encode_users(batch), model.encode_users(BatchBuilder(dataset, 8).requests(requests)), atol=1e-5, rtol=1e-4
    )


def test_unknown_items_share_an_embedding(world: Path) -> None:
    ids, dataset = build(world, "item_tower=ids")
    untrained = torch.tensor([0, dataset.num_trained + 1, dataset.num_items])
    rows = ids.item_tower(untrained)
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])
    both, _ = build(world, "item_tower=ids_and_features")
    new = torch.arange(dataset.num_trained + 1, dataset.num_items + 1)
    new = new[torch.from_numpy(dataset.has_features[new.numpy()])]
    assert len(new)
    # Features place new items apart from those of which nothing is known.
    placed, nothing = both.item_tower(new), both.item_tower(torch.tensor([0]))
    assert bool(((placed - nothing).abs().amax(1) > 1e-4).all())


def test_a_history_of_unknown_items(world: Path) -> None:
    model, dataset = build(world)
    batch = whole_history(dataset, longest_user(dataset))
    unknown = dataclasses.replace(batch, item_idx=torch.zeros_like(batch.item_idx))
    assert bool(torch.isfinite(model.encode_users(unknown)).all())


def test_features_alone_ignore_ids(world: Path) -> None:
    model, dataset = build(world, "item_tower=features")
    assert model.item_tower.table is None
    assert model.item_tower.reads_features
    # All items without a row in the items table look alike.
    bare = torch.from_numpy(np.flatnonzero(~dataset.has_features)[1:])
    rows = model.item_tower(bare)
    assert len(bare) > 1
    assert torch.equal(rows, rows[:1].expand_as(rows))


@pytest.mark.parametrize(
    ("override", "lookup", "reads"),
    [
        ("item_tower=ids", True, False),
        ("item_tower=features", False, True),
        ("item_tower=ids_and_features", False, True),
    ],
)
def test_properties_of_item_towers(world: Path, override: str, lookup: bool, reads: bool) -> None:
    tower = build(world, override)[0].item_tower
    assert (tower.is_lookup, tower.reads_features) == (lookup, reads)


def test_deviation_of_the_first_id_embeddings(world: Path) -> None:
    for option, expected in (("null", 8**-0.5), ("0.02", 0.02), ("0", 0.0)):
        table = build(world, "item_tower=ids", "model.dim=8", f"item_tower.init_std={option}")[0].item_tower.table
        assert table is not None
        assert float(table.weight.detach().std()) == pytest.approx(expected, rel=0.2)
    with pytest.raises(UserError, match="init_std: found -1, expected at least 0, or null"):
        build(world, "item_tower=ids", "item_tower.init_std=-1")


def test_a_tower_without_inputs_is_refused(world: Path) -> None:
    with pytest.raises(UserError, match="needs ids, features, content"):
        build(world, "item_tower=ids", "item_tower.use_id=false")


def test_profile_may_be_left_out(world: Path) -> None:
    model, dataset = build(world, "user_tower.use_profile=false")
    batch = whole_history(dataset, longest_user(dataset))
    country = batch.users["country"]
    assert isinstance(country, Tensor)
    other = dataclasses.replace(batch, users=batch.users | {"country": (country + 1) % 4})
    assert torch.equal(model.encode_users(batch), model.encode_users(other))
    reading, _ = build(world)
    assert not torch.allclose(reading.encode_users(batch), reading.encode_users(other))


def test_user_ids(world: Path) -> None:
    model, dataset = build(world, "user_tower.use_user_id=true")
    batch = whole_history(dataset, longest_user(dataset))
    strangers = dataclasses.replace(batch, user_idx=torch.tensor([-1]))
    assert not torch.allclose(model.encode_users(batch), model.encode_users(strangers))
    users = model.user_tower.users
    assert users is not None
    trained = dataset.train_end > dataset.offsets[:-1]
    # Users without training events and strangers share row 0; the others have their own.
    rows = users.rows.tolist()
    assert rows[-1] == 0
    assert [row for row, has in zip(rows, trained, strict=False) if not has] == [0] * int((~trained).sum())
    assert sorted(row for row, has in zip(rows, trained, strict=False) if has) == list(range(1, int(trained.sum()) + 1))


def test_histories_may_have_an_item_table_of_their_own(world: Path) -> None:
    model, dataset = build(world, "user_tower.own_items=true", "item_tower=ids")
    own, batch, items = model.user_tower.own_items, whole_history(dataset, longest_user(dataset)), torch.arange(20)
    assert own is not None
    assert model.history_tower is own
    assert own.table is not None
    assert model.item_tower.table is not None
    assert "user_tower.own_items.table.weight" in model.state_dict()
    assert not torch.equal(own.table.weight, model.item_tower.table.weight)
    users, candidates = model.encode_users(batch), model.encode_items(items)
    with torch.no_grad():
        model.item_tower.table.weight.add_(torch.randn_like(model.item_tower.table.weight))
    assert torch.equal(model.encode_users(batch), users)
    assert not torch.allclose(model.encode_items(items), candidates)
    candidates = model.encode_items(items)
    with torch.no_grad():
        own.table.weight.add_(torch.randn_like(own.table.weight))
    assert torch.equal(model.encode_items(items), candidates)
    # All but the query before the first event.
    assert ((model.encode_users(batch) - users).abs().amax(1) > 1e-4).tolist() == [False] + 8 * [True]
    shared, _ = build(world)
    assert shared.user_tower.own_items is None
    assert shared.history_tower is shared.item_tower


@pytest.mark.parametrize(("similarity", "unit"), [("cosine", True), ("dot", False)])
def test_norms(world: Path, similarity: str, unit: bool) -> None:
    model, dataset = build(world, f"model.similarity={similarity}")
    batch = whole_history(dataset, longest_user(dataset))
    for embeddings in (model.encode_users(batch), model.encode_items(torch.arange(dataset.num_items + 1))):
        assert torch.allclose(embeddings.norm(dim=1), torch.ones(len(embeddings)), atol=1e-5) == unit


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_a_bias_is_added_to_logits(world: Path, similarity: str) -> None:
    plain, dataset = build(world, f"model.similarity={similarity}")
    bias = torch.linspace(-2, 2, dataset.num_trained + 1)
    biased = TwoTower(
        plain.user_tower, plain.item_tower, similarity=similarity, temperature=0.05, item_bias=bias
    ).eval()  # type: ignore[arg-type]
    batch, items = whole_history(dataset, longest_user(dataset)), torch.arange(dataset.num_items + 1)
    users = plain.encode_users(batch), biased.encode_users(batch)
    logits = [user @ model.encode_items(items).T * 20 for user, model in zip(users, (plain, biased), strict=True)]
    # Items that the bias does not know share the unknown one's.
    expected = bias[torch.where(items < len(bias), items, 0)]
    assert torch.allclose(logits[1] - logits[0], expected, atol=1e-4)
    assert (plain.dim, biased.dim, biased.metric) == (users[0].shape[1], users[1].shape[1], "dot")


def test_temperature(world: Path) -> None:
    fixed, _ = build(world, "model.temperature=0.004")
    assert float(fixed.inverse_temperature) == pytest.approx(250.0, rel=1e-4)
    learned, _ = build(world, "model.temperature=0.004", "model.learn_temperature=true")
    # Capped where it is learned.
    assert float(learned.inverse_temperature.detach()) == MAX_INVERSE_TEMPERATURE
    for value, message in (("0", "temperature: found 0"), ("-0.1", "temperature: found -0.1")):
        with pytest.raises(UserError, match=message):
            build(world, f"model.temperature={value}")


def test_networks_over_features_are_the_mlps_they_were(world: Path) -> None:
    """Numbers of the towers from before their networks could be chosen."""
    model, dataset = build(world)
    requests = Requests(np.array([0, 7, -1]), np.array([dataset.offsets[1], dataset.offsets[8] - 1, 0]))
    users = model.encode_users(BatchBuilder(dataset, 8).requests(requests))
    expected = [[-0.259411, -0.063864, 0.361455], [-0.165119, 0.037775, -0.025913], [-0.17116, 0.024118, -0.03662]]
    torch.testing.assert_close(users[:, :3], torch.tensor(expected), atol=2e-5, rtol=0)
    items = model.encode_items(torch.tensor([1, 40, dataset.num_items]))
    expected = [[0.516101, -0.223466, 0.044565], [-0.293399, -0.288916, 0.431366], [-0.559689, -0.211684, -0.527417]]
    torch.testing.assert_close(items[:, :3], torch.tensor(expected), atol=2e-5, rtol=0)
    names = {name.removesuffix(".weight") for name in model.state_dict() if "mlp" in name or "mixer" in name}
    assert {name for name in names if not name.endswith("bias")} == {
        "user_tower.mixer.0", "user_tower.mixer.2", "item_tower.mlp.0", "item_tower.mlp.3"
    }  # fmt: skip


def test_the_same_seed_builds_the_same_model(world: Path) -> None:
    first, second, other = (build(world, f"seed={seed}")[0].state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("time", ["order", "none"])
def test_time_that_is_no_clock_is_refused_by_encoders_that_read_it(world: Path, time: str) -> None:
    with pytest.raises(UserError, match=f"use_time=true.*found data.time={time}; expected use_time=false"):
        build(world, "user_tower=hstu", f"data.time={time}")
    model, _ = build(world, "user_tower=hstu", f"data.time={time}", "user_tower.encoder.use_time=false")
    assert not model.user_tower.encoder.reads_time


def test_gaps_between_events_reach_the_user(world: Path) -> None:
    model, dataset = build(world, "user_tower=hstu")
    batch = whole_history(dataset, longest_user(dataset))
    before = model.encode_users(batch)
    time = batch.time.clone()
    time[4:] += 10**7
    after = model.encode_users(dataclasses.replace(batch, time=time))
    moved = (after - before).abs().amax(1) > 1e-6
    assert moved.tolist() == (batch.query > 4).tolist()
    transformer, _ = build(world)
    other = dataclasses.replace(batch, time=time)
    assert torch.equal(transformer.encode_users(batch), transformer.encode_users(other))


def test_served_times_are_rounded_down_to_days_where_training_saw_days() -> None:
    dataset = dataclasses.replace(training_only([[(1, 0)]], "day"), schema=Schema(()))
    tower = UserTower(HSTU(8, 8), 8, sizes=dataset.sizes).eval()
    items, length, nobody = torch.randn(1, 4, 8), torch.tensor([4]), torch.tensor([-1])
    answers = [
        tower.forward_padded(
            items, length, events={}, users={}, requests={}, user_idx=nobody, time=torch.tensor([time])
        )
        for time in ([-5, 86_399, 86_400, 200_000], [-86_400, 0, 86_400, 172_800])
    ]
    assert torch.equal(*answers)
