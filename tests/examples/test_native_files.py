"""Files in the native form of public data sets become a release by settings alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from native_files import KINDS, draw

import recsys
from recsys.data.dataset import PreparedDataset

TINY = [
    "user_tower=mean",
    "model.dim=8",
    "batch_size=16",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "evaluation.val_users=8",
    "logger=csv",
]
# Features that each kind has, and the resolution of its times.
FEATURES = {
    "groceries": ([], "day"),
    "hetrec_lastfm": ([], "none"),
    "uci_restaurants": (["items.latitude", "items.longitude", "items.city", "items.alcohol", "items.zip"], "none"),
    "recbole": (["items.movie_title", "items.release_year", "items.class", "users.age", "users.gender"], "seconds"),
    "transformers4rec_tabular": (["interactions.category"], "seconds"),
    "transformers4rec_lists": (["interactions.category-list"], "order"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_release_by_settings_alone(tmp_path: Path, kind: str) -> None:
    settings = KINDS[kind](tmp_path / "files")
    run = recsys.train([*settings, f"data.cache={tmp_path / 'cache'}", *TINY], path=tmp_path / "run")
    recsys.promote(run, store=tmp_path / "store", alias="candidate")
    release = recsys.load_release("candidate", store=tmp_path / "store", data="own")
    lists = release.recommend("all", k=3)

    (meta,) = (tmp_path / "cache/prepared").glob("*/meta.json")
    dataset = PreparedDataset.open(meta.parent)
    drawn = draw()
    assert lists["user_id"].to_pylist() == dataset.user_ids.to_pylist()
    assert dataset.num_users == len({*drawn.users})
    assert dataset.num_items == len({*drawn.items})
    assert ([feature.key for feature in dataset.schema.features], dataset.meta.time_resolution) == FEATURES[kind]
    seconds = np.array([moment.timestamp() for moment in drawn.moments], np.int64)
    if kind == "groceries":
        assert sorted(dataset.time) == sorted(seconds // 86_400 * 86_400)
        assert pa.types.is_string(dataset.item_ids.type)
    elif kind == "hetrec_lastfm":
        assert dataset.weight is not None
        assert dataset.meta.num_events == len(dataset.weight) == len({*zip(drawn.users, drawn.items, strict=True)})
        assert dataset.weight.max() > 1000
    elif kind == "uci_restaurants":
        assert 0.8 < dataset.meta.num_events / len(drawn.users) < 0.95
        assert "San Luis Potosí" in dataset.vocabulary(dataset.schema.features[2]).to_pylist()
    elif kind == "transformers4rec_lists":
        assert dataset.meta.num_events == len(drawn.users)
        first = [item for user, item in zip(drawn.users, drawn.items, strict=True) if user == 0]
        ids = dataset.item_ids.take(pa.array(np.asarray(dataset.item_idx[: len(first)]) - 1))
        assert ids.to_pylist() == first
    else:
        assert sorted(dataset.time) == sorted(seconds)


@pytest.mark.parametrize(("column", "found"), [("visitor", 7), ("item_id", "x")])
def test_nothing_to_tell_apart(tmp_path: Path, column: str, found: object) -> None:
    rows = list(range(40))
    table = {"visitor": rows, "item_id": [str(row % 5) for row in rows], "timestamp": rows} | {column: [found] * 40}
    pq.write_table(pa.table(table), tmp_path / "interactions.parquet")
    overrides = ["data=parquet", f"data.root={tmp_path}", "data.columns.user_id=visitor", *TINY]
    message = rf"column '{column}' of the interactions: every training event has {found!r}, expected several; data.col"
    with pytest.raises(recsys.UserError, match=message):
        recsys.train([*overrides, f"data.cache={tmp_path / 'cache'}"], path=tmp_path / "run")
