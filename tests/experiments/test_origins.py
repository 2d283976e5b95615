"""Views of the data at several origins, and what they change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from worlds import compose

from recsys.core.columns import ragged_positions
from recsys.data.dataset import PreparedDataset
from recsys.experiments.assembly import open_data
from recsys.experiments.baseline_check import best_half_life
from recsys.experiments.origins import earlier_origins, new_user_share


def write(root: Path, rows: list[tuple[int, int, float]]) -> list[str]:
    columns = {
        "user_id": [user for user, _, _ in rows],
        "item_id": [item for _, item, _ in rows],
        "timestamp": [int(day * 86400) for _, _, day in rows],
    }
    pq.write_table(pa.table(columns), root / "interactions.parquet")
    return ["data=parquet", f"data.root={root}", f"data.cache={root}/cache"]


def times(view: PreparedDataset, part: str) -> np.ndarray:
    begin, end = (view.offsets[:-1], view.train_end) if part == "train" else view.part_bounds("val")
    return np.sort(np.asarray(view.time)[ragged_positions(begin, end - begin)]) // 86400


def test_each_origin_is_followed_by_as_many_events_up_to_the_next_one(tmp_path: Path) -> None:
    # One event each day. A user comes for ten days.
    words = write(tmp_path, [(day // 10, day % 7, day) for day in range(100)])
    dataset = open_data(compose("train", [*words, "split=temporal"]))
    views = earlier_origins(dataset, 4)
    assert views[0] is dataset
    assert [(times(view, "train")[[0, -1]].tolist(), times(view, "val")[[0, -1]].tolist()) for view in views] == [
        ([0, end - 1], [end, end + 9]) for end in (80, 70, 60, 50)
    ]
    assert new_user_share(views) == 1.0
    assert earlier_origins(dataset, 1) == [dataset]
    assert new_user_share([dataset]) is None
    # An origin needs at least as many events before it as after it.
    assert len(earlier_origins(dataset, 100)) == 8


def test_a_day_of_more_events_than_validation_is_one_origin(tmp_path: Path) -> None:
    # Two hundred events each day, of which validation has the last fifty of a day.
    words = write(tmp_path, [(user, (user + day) % 7, day + user / 1000) for day in range(9) for user in range(200)])
    split = ["split=temporal", "split.train=0.8611", "split.val=0.0278", "data.time=day"]
    dataset = open_data(compose("train", [*words, *split]))
    views = earlier_origins(dataset, 4)
    sizes = [int((view.val_end - view.train_end).sum()) for view in views]
    assert len(views) == 4
    assert all(size >= sizes[0] for size in sizes)
    assert new_user_share(views) == 0.0
    # The first day has no events before it.
    assert len(earlier_origins(dataset, 100)) == 8


@pytest.mark.parametrize("words", [["split=leave_last_out"], ["split=random"], ["split=temporal", "data.time=order"]])
def test_parts_without_an_order_in_time_have_one_origin(tmp_path: Path, words: list[str]) -> None:
    data = write(tmp_path, [(user, day % 5, day + 3 * user) for user in range(6) for day in range(20)])
    dataset = open_data(compose("train", [*data, *words]))
    assert earlier_origins(dataset, 6) == [dataset]


def test_the_half_life_suits_most_origins(tmp_path: Path) -> None:
    # Five users take item 0 each day, and fifteen others an item of that day. Only the last of these stays popular.
    rows = [(user, 0 if user < 5 else 100 + day, day) for day in range(80) for user in range(20)]
    rows += [(user, 179, day) for day in range(80, 92) for user in range(20)]
    words = [*write(tmp_path, rows), "split=temporal", "split.train=0.8696", "split.val=0.1087", "exclude_seen=false"]
    words.append("evaluation.metric=val/mrr@5")
    chosen = {}
    for origins in (1, 6):
        config = compose("train", [*words, f"evaluation.origins={origins}"])
        chosen[origins] = best_half_life(config, open_data(config))
    assert chosen[1] == 1
    assert chosen[6] == 3
