"""What is a run, which runs can be compared, and how they learned."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from written import CONFIG, write, write_log

from recsys.core.errors import UserError
from recsys.experiments.run_folder import RunState
from recsys.experiments.run_logs import Curve, curves_of
from recsys.reports.comparison.measured import choose, read_folder
from recsys.reports.comparison.reading import read_runs, run_folder

RECALL = {"recall@10": [0.0, 1.0]}


def test_a_run_and_a_baseline(tmp_path: Path) -> None:
    write(tmp_path / "a", RECALL, {"seconds": 3.0}, overrides=["model.dim=8"], coverage_at_10=0.5)
    write(tmp_path / "knn", RECALL, {"exclude_seen": True}, config=None)
    run, baseline = read_runs([tmp_path / "a", str(tmp_path / "knn")])
    assert (run.name, baseline.name) == ("a", "knn")
    assert run.metrics == {"test/recall@10": 0.5, "test/coverage@10": 0.5}
    assert run.columns == {"recall@10"}
    assert run.row.overrides == {"model.dim": "8"}
    assert run.state.seconds == 3
    assert run.config == CONFIG
    assert baseline.config == {}
    assert baseline.curves == {}


def test_the_chosen_settings_of_a_baseline(tmp_path: Path) -> None:
    state = {"generator": "ease", "settings": {"l2": 60}, "tried": [{"settings": {"l2": 60}, "val/ndcg@10": 0.1}]}
    (run,) = read_folder(write(tmp_path / "ease", RECALL, state))
    assert run.row.overrides == {"generator": "ease", "generator.l2": "60"}


def test_a_folder_with_only_metrics(tmp_path: Path) -> None:
    path = write(tmp_path / "knn", RECALL, config=None)
    (path / "run.json").unlink()
    (run,) = read_folder(path)
    assert (run.name, run.state, run.test) == ("knn", RunState(), {})
    assert run.metrics == {"test/recall@10": 0.5}


def test_a_sweep(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("0", "1", "2"):
        write(tmp_path / "sweep" / name, RECALL)
    write(tmp_path / "a", RECALL)
    (tmp_path / "sweep/1/per_user.parquet").unlink()
    with caplog.at_level(logging.WARNING):
        runs = read_runs([tmp_path / "sweep", tmp_path / "a"])
    assert [run.name for run in runs] == ["0", "2", "a"]
    assert "sweep/1 is left out: it has no per_user.parquet (status 'finished')" in caplog.text


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, RECALL) for name in ("x/s/0", "y/s/0", "y/1")]
    assert [run.name for run in read_runs(paths)] == ["x/s/0", "y/s/0", "1"]
    runs = read_runs([tmp_path / "x/s", tmp_path / "y"])
    assert [run.name for run in runs] == ["0", "s/0", "1"]
    with pytest.raises(UserError, match="x/s/0: given twice"):
        read_runs([paths[0], paths[0]])


def test_the_baseline_by_name_or_folder(tmp_path: Path) -> None:
    runs = read_runs([write(tmp_path / name, RECALL) for name in ("first", "second")])
    assert choose(runs, "second") is runs[1]
    assert choose(runs, str(tmp_path / "first/")) is runs[0]
    with pytest.raises(UserError, match="baseline: no run 'secnd'; did you mean 'second'"):
        choose(runs, "secnd")


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no runs given"):
        read_runs([])
    with pytest.raises(UserError, match="nowhere is not a folder"):
        read_runs([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no run "):
        read_runs([tmp_path / "empty"])
    path = write(tmp_path / "a", RECALL, {"status": "selected"})
    (path / "per_user.parquet").unlink()
    with pytest.raises(UserError, match=r"a: no per_user.parquet; expected a finished run, found status 'selected'"):
        read_runs([path])
    (path / "per_user.parquet").write_bytes(b"x")
    with pytest.raises(UserError, match=r"per_user.parquet: not a readable Parquet file"):
        read_runs([path])


@pytest.mark.parametrize(
    ("state", "config", "message"),
    [
        (
            {"dataset_fingerprint": "bad"},
            CONFIG | {"data": {"root": "there"}},
            r"b has dataset_fingerprint bad, a has f00 \(settings that differ: data.root here and there\)",
        ),
        ({"dataset_fingerprint": "bad"}, CONFIG, r"\(their settings are the same: the source has changed\)"),
        ({}, CONFIG | {"split": {"name": "leave_last_out"}}, "b has split {'name': 'leave_last_out'}, a has"),
        ({}, CONFIG | {"exclude_seen": False}, "b has exclude_seen False, a has True"),
        # A baseline says it in run.json.
        ({"exclude_seen": False}, None, "b has exclude_seen False, a has True"),
        ({"dataset_fingerprint": "bad"}, None, "b has dataset_fingerprint bad, a has f00; expected runs of the same"),
    ],
)
def test_another_test_is_refused(
    tmp_path: Path, state: dict[str, Any], config: dict[str, Any] | None, message: str
) -> None:
    first = write(tmp_path / "a", RECALL)
    second = write(tmp_path / "b", RECALL, state, config)
    with pytest.raises(UserError, match=f"not the same test: .*{message}"):
        read_runs([first, second])


def test_other_settings_do_not_matter(tmp_path: Path) -> None:
    first = write(tmp_path / "a", RECALL)
    second = write(tmp_path / "b", RECALL, config=CONFIG | {"model": {"dim": 9}})
    assert len(read_runs([first, second])) == 2


def test_curves_continue_after_a_restart(tmp_path: Path) -> None:
    path = write(tmp_path / "a", RECALL)
    write_log(
        path, 0, [{"step": 3, "train/loss": 2.0}, {"step": 4, "val/ndcg@10": 0.1}, {"step": 9, "val/ndcg@10": 0.2}]
    )
    # Killed and started again from a checkpoint at step 6; then the selected checkpoint and the test are looked at.
    last = [{"step": 9, "val/ndcg@10": 0.2}, {"step": 14, "val/ndcg@10": 0.15}, {"step": 15, "train/loss": 1.0}]
    behind = [{"step": 0, "val/ndcg@10": 0.2}, {"step": 3, "train/loss": 3.0}, {"step": 0, "test/ndcg@10": 0.3}]
    write_log(path, 10, [*last, *behind])
    (run,) = read_folder(path)
    assert run.curves == {"val/ndcg@10": Curve([5, 10, 15], [0.1, 0.2, 0.15]), "train/loss": Curve([4, 16], [2.0, 1.0])}


def test_curves_of_a_run_that_was_chosen_from_several(tmp_path: Path) -> None:
    path = write(tmp_path / "a", RECALL, {"variant": "mean"})
    for name, value in (("mean", 0.5), ("attention", 0.4)):
        write_log(path / "variants" / name, 0, [{"step": 4, "val/ndcg@10": value}])
    write_log(path, 0, [{"step": 0, "test/ndcg@10": 0.3}])
    (run,) = read_folder(path)
    assert run.curves == {"val/ndcg@10": Curve([5], [0.5])}


def test_rows_without_a_step_are_left_out() -> None:
    assert curves_of([{"val/x": 1.0}, {"step": None, "val/x": 2.0}], "step") == {}


def test_the_folder_of_a_local_run(tmp_path: Path) -> None:
    assert run_folder(str(tmp_path)) == tmp_path
