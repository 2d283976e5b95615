"""Generators from files to figures, scored by the independent reference as well."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recsys.baselines.interactions import Interactions
from recsys.baselines.item_knn import ItemKNN
from recsys.baselines.popularity import Popularity
from recsys.baselines.random_walk import RandomWalk
from recsys.baselines.transitions import Transitions
from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.loaders import RequestLoader
from recsys.data.preparation.prepare import prepare
from recsys.data.preparation.settings import DataSettings
from recsys.data.preparation.splits import TemporalSplit
from recsys.data.sources import ParquetFolder
from recsys.evaluation.metrics import CUTOFFS, NAMES, RetrievalMetrics
from recsys.evaluation.ranking import evaluate
from recsys.evaluation.relevance import seen_items

DATA = Path(os.environ.get("RECSYS_DATA", "/nowhere"))
PROTOCOL = DATA.parent / "protocol.py"
ROOT = DATA / "movielens-100k"


@pytest.mark.skipif(not (ROOT.exists() and PROTOCOL.exists()), reason="needs RECSYS_DATA and the reference beside it")
def test_figures_equal_those_of_the_reference(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("protocol", PROTOCOL)
    assert spec is not None
    assert spec.loader is not None
    protocol: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(protocol)
    protocol.split("temporal", ROOT / "interactions.parquet", tmp_path)
    dataset = prepare(ParquetFolder(str(ROOT)), TemporalSplit(), settings=DataSettings(), cache=tmp_path / "cache")
    item_ids, user_ids = dataset.item_ids.to_numpy(zero_copy_only=False), dataset.user_ids
    batches = list(RequestLoader(BatchBuilder(dataset, 1), dataset.requests("test"), batch_size=64))
    for generator in (
        Popularity(half_life_days=30),
        ItemKNN(num_neighbours=50),
        RandomWalk(num_steps=500),
        Transitions(),
    ):
        generator.fit(Interactions(dataset, "val"))
        metrics = RetrievalMetrics(dataset, dataset.num_items)
        result = evaluate(generator, dataset, part="test", batches=batches, metrics=metrics)
        users, lists = [], []
        for batch, requests in batches:
            _, items = generator.rank(batch, requests, k=100, exclude=seen_items(dataset, requests))
            users.append(requests.user_idx)
            lists += [item_ids[row[row > 0] - 1].tolist() for row in items.numpy()]
            assert torch.equal(items, generator.rank(batch, requests, k=100, exclude=seen_items(dataset, requests))[1])
        table = {"user_id": user_ids.take(pa.array(np.concatenate(users))), "item_ids": lists}
        pq.write_table(pa.table(table), tmp_path / "recs.parquet")
        expected = protocol.score(tmp_path / "test.parquet", tmp_path / "recs.parquet")
        assert result["num_users"] == expected["users"]
        assert expected["unserved"] == 0
        for name in (f"{name}@{cutoff}" for name in NAMES for cutoff in CUTOFFS):
            assert result[name] == pytest.approx(expected[name], abs=1e-5)
        assert result["coverage@100"] * dataset.num_items == pytest.approx(expected["items_shown@100"])
