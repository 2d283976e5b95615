"""A training begins from an earlier run: rows by id, the rest by name, and what is new as unknown."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from worlds import FEATURES, compose, write_run, write_world

from recsys.core.errors import UserError
from recsys.core.schema import FIRST_CODE, UNKNOWN, UNKNOWN_ITEM
from recsys.data.dataset import PreparedDataset
from recsys.experiments.assembly import build_towers, open_data
from recsys.experiments.train import select
from recsys.experiments.trained_run import stored_config
from recsys.experiments.warm_start import EarlierRun, open_earlier_run, start_from
from recsys.models.two_tower import TwoTower
from recsys.training.ema import EMA

OVERRIDES = ("user_tower.use_user_id=true", "user_tower.own_items=true")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a world without its last events, items i08x and the category z, and the whole world."""
    base = tmp_path_factory.mktemp("warm")
    whole = write_world(base / "whole/data")
    early = write_world(base / "early/data")
    events = pq.read_table(whole / "interactions.parquet")
    kept = pc.and_(pc.less(events["timestamp"], 600_000), pc.less(events["item_id"], "i080"))
    pq.write_table(events.filter(kept), early / "interactions.parquet")
    items = pq.read_table(whole / "items.parquet")
    category = pc.if_else(pc.equal(items["category"], "z"), pa.scalar("x"), items["category"])
    changed = items.set_column(items.column_names.index("category"), "category", category)
    pq.write_table(changed.filter(pc.less(items["item_id"], "i080")), early / "items.parquet")
    write_run(base / "early/run", early, *OVERRIDES)
    return base


@pytest.fixture(scope="module")
def earlier(base: Path) -> EarlierRun:
    return open_earlier_run(base / "early/run")


@pytest.fixture
def now(base: Path) -> tuple[PreparedDataset, TwoTower]:
    settings = [f"data.root={base / 'whole/data'}", f"data.cache={base / 'whole/cache'}", "split=leave_last_out"]
    config = compose(
        "train", ["data=parquet", *settings, "model.dim=16", "seed=7", "history.max_events=8", *FEATURES, *OVERRIDES]
    )
    dataset = open_data(config)
    return dataset, build_towers(config, dataset)


def test_rows_go_by_id(earlier: EarlierRun, now: tuple[PreparedDataset, TwoTower]) -> None:
    dataset, model = now
    assert start_from(earlier, model, dataset=dataset) == []
    before = {item: idx for idx, item in enumerate(earlier.dataset.item_ids.to_pylist(), 1)}
    assert list(before) != dataset.item_ids.to_pylist()[: len(before)]
    for tower in ("item_tower", "user_tower.own_items"):
        table, old = model.get_parameter(f"{tower}.table.weight"), earlier.weights[f"{tower}.table.weight"]
        new = 0
        for idx, item in enumerate(dataset.item_ids.to_pylist()[: dataset.num_trained], 1):
            known = before.get(item, 0) if before.get(item, 0) <= earlier.dataset.num_trained else UNKNOWN_ITEM
            assert torch.equal(table[idx], old[known]), item
            new += known == UNKNOWN_ITEM
        assert new > 0
        assert torch.equal(table[0], old[0])


def test_rows_are_used_again(base: Path, earlier: EarlierRun, now: tuple[PreparedDataset, TwoTower]) -> None:
    dataset, whole = now
    settings = [f"data.root={base / 'whole/data'}", f"data.cache={base / 'whole/cache'}", "split=leave_last_out"]
    capacity = "item_tower.admission.capacity=12"
    more = ["model.dim=16", "history.max_events=8", *FEATURES, *OVERRIDES, capacity]
    model = build_towers(compose("train", ["data=parquet", *settings, *more]), dataset)
    assert start_from(earlier, model, dataset=dataset) == []
    start_from(earlier, whole, dataset=dataset)
    small = {}
    for tower in ("item_tower", "user_tower.own_items"):
        rows = small[f"{tower}.id_rows"] = model.get_buffer(f"{tower}.id_rows")
        table = small[f"{tower}.table.weight"] = model.get_parameter(f"{tower}.table.weight").detach()
        assert len(table) == 13
        # By id, and the row of unknown items for all that have none.
        expected = whole.get_parameter(f"{tower}.table.weight")
        assert torch.equal(table[rows], expected[torch.where(rows > 0, torch.arange(len(rows)), 0)])
    # From a small table to a whole one: evicted items begin as unknown ones.
    run = EarlierRun(earlier.path, dataset, {**whole.state_dict(), **small}, 0)
    with torch.no_grad():
        whole.get_parameter("item_tower.table.weight").zero_()
    start_from(run, whole, dataset=dataset)
    assert torch.equal(
        whole.get_parameter("item_tower.table.weight"), small["item_tower.table.weight"][small["item_tower.id_rows"]]
    )


def test_rows_of_users_are_used_again(base: Path, earlier: EarlierRun, now: tuple[PreparedDataset, TwoTower]) -> None:
    settings = [f"data.root={base / 'whole/data'}", f"data.cache={base / 'whole/cache'}", "split=leave_last_out"]
    small = "user_tower.admission={capacity: 9, window_days: 5}"
    more = ["model.dim=16", "history.max_events=8", *FEATURES, *OVERRIDES, small]
    config, months = compose("train", ["data=parquet", *settings, *more]), (earlier.dataset, now[0])
    first, second = (build_towers(config, dataset) for dataset in months)
    ids = [
        {dataset.user_ids[user].as_py(): int(rows[user]) for user in rows.nonzero()[:, 0].tolist()}
        for dataset, rows in zip(months, (m.user_tower.users.rows for m in (first, second)), strict=True)
    ]
    tables = [model.user_tower.users.table.weight for model in (first, second)]
    assert [len(table) for table in tables] == [10, 10]
    start_from(EarlierRun(earlier.path, earlier.dataset, first.state_dict(), 0), second, dataset=months[1])
    stay, admitted, evicted = ids[0].keys() & ids[1], ids[1].keys() - ids[0], ids[0].keys() - ids[1]
    assert min(map(len, (stay, admitted, evicted))) > 0
    for user in ids[1]:
        assert torch.equal(tables[1][ids[1][user]], tables[0][ids[0].get(user, 0)])
    with pytest.raises(UserError, match=r"admission\.capacity: found 9 with use_user_id=false"):
        build_towers(compose("train", ["data=parquet", *settings, *FEATURES, small]), months[1])


def test_users_and_values_are_matched_by_id(earlier: EarlierRun, now: tuple[PreparedDataset, TwoTower]) -> None:
    dataset, model = now
    start_from(earlier, model, dataset=dataset)
    rows, rows_before = model.user_tower.users.rows, earlier.weights["user_tower.users.rows"]
    table, old = model.user_tower.users.table.weight, earlier.weights["user_tower.users.table.weight"]
    before = {user: idx for idx, user in enumerate(earlier.dataset.user_ids.to_pylist())}
    new = 0
    for idx, user in enumerate(dataset.user_ids.to_pylist()):
        known = int(rows_before[before[user]]) if user in before else 0
        if rows[idx] > 0:
            assert torch.equal(table[rows[idx]], old[known]), user
            new += known == 0
    assert new > 0

    ((number, feature),) = ((n, f) for n, f in enumerate(dataset.schema.owned_by("items")) if f.name == "category")
    values, then = dataset.vocabulary(feature).to_pylist(), earlier.dataset.vocabulary(feature).to_pylist()
    assert "z" in {*values} - {*then}
    name = f"item_tower.features.inputs.{number}.table.weight"
    table, old = model.get_parameter(name), earlier.weights[name]
    for code, value in enumerate(values, FIRST_CODE):
        assert torch.equal(table[code], old[then.index(value) + FIRST_CODE if value in then else UNKNOWN])
    assert torch.equal(table[:FIRST_CODE], old[:FIRST_CODE])


def test_on_the_same_data_it_is_the_earlier_model(base: Path, earlier: EarlierRun) -> None:
    settings = [f"data.root={base / 'early/data'}", f"data.cache={base / 'early/cache'}", "split=leave_last_out"]
    config = compose(
        "train", ["data=parquet", *settings, "model.dim=16", "seed=7", "history.max_events=8", *FEATURES, *OVERRIDES]
    )
    model = build_towers(config, earlier.dataset)
    start_from(earlier, model, dataset=earlier.dataset)
    state = model.state_dict()
    assert state.keys() == earlier.weights.keys()
    assert all(torch.equal(state[name], value) for name, value in earlier.weights.items())


def test_content_keeps_the_vectors_that_weights_were_learned_with(base: Path, tmp_path: Path) -> None:
    content = ["item_tower=content", "item_tower.content.columns=[category, tags]"]
    write_run(tmp_path / "run", base / "early/data", *content)
    earlier = open_earlier_run(tmp_path / "run")
    settings = [f"data.root={base / 'whole/data'}", f"data.cache={base / 'whole/cache'}", "split=leave_last_out"]
    config = compose("train", ["data=parquet", *settings, "model.dim=16", "history.max_events=8", *FEATURES, *content])
    dataset = open_data(config)
    model = build_towers(config, dataset)
    fresh = model.item_tower(torch.arange(dataset.num_items + 1))[:, :10]
    assert start_from(earlier, model, dataset=dataset) == []
    found = model.item_tower(torch.arange(dataset.num_items + 1))[:, :10]
    old_model = build_towers(stored_config(earlier.path), earlier.dataset)
    old_model.load_state_dict(earlier.weights)
    old = old_model.item_tower(torch.arange(earlier.dataset.num_items + 1))[:, :10]
    whole = pq.read_table(base / "whole/data/items.parquet").select(["item_id", "category"]).to_pylist()
    now_idx = {item: idx for idx, item in enumerate(dataset.item_ids.to_pylist(), 1)}
    before = {item: idx for idx, item in enumerate(earlier.dataset.item_ids.to_pylist(), 1)}
    same = [row["item_id"] for row in whole if row["category"] in ("x", "y") and row["item_id"] in before]
    assert len(same) > 20
    rows = [now_idx[item] for item in same]
    torch.testing.assert_close(found[rows], old[[before[item] for item in same]], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(fresh[rows], found[rows], atol=0.1)


def test_semantic_ids_keep_their_meaning(base: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "run", base / "early/data", "item_tower=semantic_ids")
    earlier = open_earlier_run(tmp_path / "run")
    settings = [f"data.root={base / 'whole/data'}", f"data.cache={base / 'whole/cache'}", "split=leave_last_out"]
    words = ["data=parquet", *settings, "model.dim=16", "history.max_events=8", *FEATURES, "item_tower=semantic_ids"]
    dataset = open_data(compose("train", words))
    model = build_towers(compose("train", words), dataset)
    assert start_from(earlier, model, dataset=dataset) == []
    ids = model.item_tower.semantic_ids
    old = build_towers(stored_config(earlier.path), earlier.dataset, fresh=False)
    old.load_state_dict(earlier.weights)
    assert ids is not None
    assert old.item_tower.semantic_ids is not None
    # An item whose values were all known has the codes that it had, although the data have further values now.
    codes, before = (
        ids.codes(model.item_tower.rows.columns),
        old.item_tower.semantic_ids.codes(old.item_tower.rows.columns),
    )
    places = {item: idx for idx, item in enumerate(dataset.item_ids.to_pylist(), 1)}
    whole = pq.read_table(base / "whole/data/items.parquet").select(["item_id", "category"]).to_pylist()
    known = {row["item_id"] for row in whole if row["category"] in ("x", "y")}
    same = [(i, places[item]) for i, item in enumerate(earlier.dataset.item_ids.to_pylist(), 1) if item in known]
    assert len(same) > 20
    assert torch.equal(before[[i for i, _ in same]], codes[[i for _, i in same]])
    # With other columns of content, or other codes, all of them are fresh.
    parts = ("codebooks", "content.idf", "content.projection", "table.weight")
    for word in ("+data.features.items.category.ignore=true", "item_tower.semantic_ids.num_levels=3"):
        dataset = open_data(compose("train", [*words, word]))
        fresh = start_from(earlier, build_towers(compose("train", [*words, word]), dataset), dataset=dataset)
        assert {f"item_tower.semantic_ids.{part}" for part in parts} <= {*fresh}
        assert "item_tower.table.weight" not in fresh


def test_averages_go_on_from_the_earlier_steps(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    run = tmp_path / "early"
    shutil.copytree(base / "early/run", run)
    content = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    torch.save(content | {"global_step": 40}, run / "checkpoints/best.ckpt")
    begun: list[int] = []
    setup = EMA.setup

    def noted(self: EMA, *arguments: Any, **named: Any) -> None:
        begun.append(self.steps_before)
        setup(self, *arguments, **named)

    monkeypatch.setattr(EMA, "setup", noted)
    where = [f"data.root={base / 'whole/data'}", f"data.cache={base / 'whole/cache'}", f"warm_start={run}"]
    how = ["split=leave_last_out", "model.dim=16", "history.max_events=8", *FEATURES, *OVERRIDES, "callbacks=ema"]
    little = ["trainer.max_epochs=1", "+trainer.enable_progress_bar=false", "logger=csv", "test=false"]
    select(compose("train", ["data=parquet", *where, *how, *little]), tmp_path / "run")
    assert begun == [40]
    assert not [warning for warning in recwarn if "WeightAveraging" in str(warning.message)]


def test_weights_of_another_shape_stay_fresh(base: Path, earlier: EarlierRun) -> None:
    settings = [f"data.root={base / 'early/data'}", f"data.cache={base / 'early/cache'}", "split=leave_last_out"]
    deeper = [
        *settings,
        "model.dim=16",
        "history.max_events=8",
        "user_tower.encoder.expansion=2",
        *FEATURES,
        *OVERRIDES,
    ]
    config = compose("train", ["data=parquet", *deeper])
    fresh = start_from(earlier, build_towers(config, earlier.dataset), dataset=earlier.dataset)
    assert fresh
    assert all("user_tower.encoder" in name for name in fresh)
    narrow = compose("train", ["data=parquet", *settings, "model.dim=12", "item_tower=ids", "user_tower=mean"])
    with pytest.raises(UserError, match="none of its weights fits this model"):
        start_from(_only(earlier, "item_tower"), build_towers(narrow, earlier.dataset), dataset=earlier.dataset)


def _only(earlier: EarlierRun, begin: str) -> EarlierRun:
    kept = {name: value for name, value in earlier.weights.items() if name.startswith(begin)}
    return dataclasses.replace(earlier, weights=kept)


def test_ids_of_another_type_are_refused(earlier: EarlierRun, tmp_path: Path) -> None:
    root = write_world(tmp_path / "data", string_ids=False)
    settings = [f"data.root={root}", f"data.cache={tmp_path / 'cache'}", "split=leave_last_out", "model.dim=16"]
    config = compose("train", ["data=parquet", *settings, *FEATURES])
    dataset = open_data(config)
    with pytest.raises(UserError, match="its item_id is string, expected int64 as in this data"):
        start_from(earlier, build_towers(config, dataset), dataset=dataset)


def test_a_folder_that_is_no_trained_run_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the folder of a trained run"):
        open_earlier_run(tmp_path)
    run = base / "early/run"
    for name in ("config.yaml", "run.json"):
        (tmp_path / name).write_text((run / name).read_text())
    state = json.loads((run / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(state | {"status": "running"}))
    with pytest.raises(UserError, match="its run is 'running', expected one that is trained"):
        open_earlier_run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(state | {"dataset_fingerprint": "gone"}))
    with pytest.raises(UserError, match="its prepared data are missing"):
        open_earlier_run(tmp_path)
