"""Forgotten users are left out of prepared data, and a run keeps the list with which it began."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import DictConfig, OmegaConf
from worlds import compose

from recsys.core.errors import UserError
from recsys.core.suppression import SuppressionList, frozen, frozen_now, hash_of
from recsys.data.preparation.from_config import configured_data, with_root
from recsys.experiments.assembly import freeze_suppressed, open_data
from recsys.operations.cycle.arrivals import list_folder
from recsys.operations.cycle.plan import _with_data
from recsys.operations.cycle.state import Cycle


def write_data(root: Path, users: list[Any]) -> Path:
    root.mkdir()
    rows = [(user, item, 100 * n + item) for n, user in enumerate(users) for item in range(5)]
    table = dict(zip(("user_id", "item_id", "timestamp"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(table), root / "interactions.parquet")
    pq.write_table(pa.table({"user_id": users, "city": [f"city of {user}" for user in users]}), root / "users.parquet")
    return root


def composed(root: Path, *more: str) -> DictConfig:
    cache = f"data.cache={root.parent / 'cache'}"
    return compose("train", ["data=parquet", f"data.root={root}", "split=leave_last_out", cache, *more])


@pytest.mark.parametrize("users", [[1, 2, 3, 4, 5], ["1", "2", "ü", "4", "a'b"]])
def test_forgotten_users_are_left_out(tmp_path: Path, users: list[Any]) -> None:
    root, file = write_data(tmp_path / "data", users), tmp_path / "list"
    whole = open_data(composed(root))
    SuppressionList(file).add(map(hash_of, [users[1], users[4], "nobody"]))
    listed = f"data.suppressed={file}"
    dataset = open_data(composed(root, listed))
    assert {*dataset.user_ids.to_pylist()} == {users[0], users[2], users[3]}
    assert (whole.meta.num_events, dataset.meta.num_events) == (25, 15)
    assert "city of 2" not in str(pq.read_table(dataset.path / "vocabularies").to_pydict())
    # A list with nobody of the data, and no list, change nothing; the same list is the same data.
    assert open_data(composed(root, listed)).meta.fingerprint == dataset.meta.fingerprint != whole.meta.fingerprint
    assert open_data(composed(root, f"data.suppressed={file}@2")).num_users == 3
    assert open_data(composed(root, f"data.suppressed={file}@1")).num_users == 4


def test_nulls_are_reported_all_the_same(tmp_path: Path) -> None:
    root, file = write_data(tmp_path / "data", ["a", "b", None]), tmp_path / "list"
    SuppressionList(file).add([hash_of("a")])
    with pytest.raises(UserError, match="column 'user_id' has 5 nulls"):
        open_data(composed(root, f"data.suppressed={file}"))


def test_a_list_that_is_missing_or_has_lost_lines_is_refused(tmp_path: Path) -> None:
    root, file = write_data(tmp_path / "data", ["a", "b"]), tmp_path / "list"
    for reference, message in ((file, "no such file"), (f"{file}@2", "no such file")):
        with pytest.raises(UserError, match=f"data.suppressed: .*list: {message}"):
            configured_data(composed(root, f"data.suppressed={reference}"))
    SuppressionList(file).add([hash_of("a")])
    with pytest.raises(UserError, match="found 1 lines, expected 2"):
        configured_data(composed(root, f"data.suppressed={file}@2"))


def test_a_run_keeps_the_list_with_which_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root, run = write_data(tmp_path / "data", ["a", "b", "c"]), tmp_path / "run"
    before = composed(root)
    freeze_suppressed(before, run)
    assert "suppressed" not in before.data
    listed = SuppressionList("releases/state/suppressed")
    listed.add([hash_of("b")])
    config = composed(root)
    freeze_suppressed(config, run)
    reference = f"{listed.path.absolute()}@1"
    assert config.data.suppressed == reference == frozen(None)
    run.mkdir()
    OmegaConf.save(config, run / "config.yaml", resolve=True)
    listed.add([hash_of("c")])
    again = composed(root)
    freeze_suppressed(again, run)
    assert again.data.suppressed == reference
    assert open_data(again).user_ids.to_pylist() == ["a", "c"]
    # Another data folder is read with the list as it is now.
    assert with_root(again, str(root)).data.suppressed == frozen_now(reference) == f"{listed.path.absolute()}@2"
    # A run that began without a list goes on without one.
    OmegaConf.save(before, run / "config.yaml", resolve=True)
    late = composed(root)
    freeze_suppressed(late, run)
    assert "suppressed" not in late.data


def test_a_cycle_keeps_the_list_with_which_it_began(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", ["a", "b", "c"])
    listed = SuppressionList(tmp_path / "store/state/suppressed")
    listed.add([hash_of("b")])
    cycle = Cycle(1, "then", listing=list_folder(str(root)), suppressed=frozen(None, store=tmp_path / "store"))
    listed.add([hash_of("c")])
    config = _with_data(composed(root), cycle, warm_start=None)
    freeze_suppressed(config, tmp_path / "run")
    assert config.data.suppressed == f"{listed.path.absolute()}@1"
    assert open_data(config).user_ids.to_pylist() == ["a", "c"]
