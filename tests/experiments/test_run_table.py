"""The table of local runs."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from run_rows import write

from recsys.core.errors import UserError
from recsys.experiments.run_table import best_first, is_maximized, print_runs, read_runs


def test_runs_are_found_but_not_folders_within_them(tmp_path: Path) -> None:
    write(tmp_path / "b", ["+experiment=x", "model.dim=8"], **{"val/recall@10": 0.5})
    write(tmp_path / "b/variants/mean", **{"val/recall@10": 0.9})
    write(tmp_path / "a/2", ["model.dim=16", "~callbacks.early_stopping"], "running")
    (tmp_path / "c").mkdir()
    first, second = read_runs(tmp_path)
    assert (first.name, first.path, first.state.status, first.state.seconds) == (
        "a/2",
        tmp_path / "a/2",
        "running",
        12.5,
    )
    assert (second.name, second.overrides) == ("b", {"experiment": "x", "model.dim": "8"})
    assert (first.value("val/recall@10"), second.value("val/recall@10")) == (None, 0.5)
    assert [row.name for row in read_runs(tmp_path / "b")] == ["b"]


def test_numbers_come_by_value(tmp_path: Path) -> None:
    for name in ("10", "2", "b/1", "a", "1"):
        write(tmp_path / name)
    assert [row.name for row in read_runs(tmp_path)] == ["a", "b/1", "1", "2", "10"]


def test_best_first_by_the_direction_of_the_metric(tmp_path: Path) -> None:
    for number, (recall, loss) in enumerate([(0.1, 3.0), (0.3, 2.0), (0.3, 1.0)]):
        write(tmp_path / str(number), **{"val/recall@10": recall, "train/loss": loss})
    write(tmp_path / "3", **{"val/recall@10": float("nan")})
    rows = read_runs(tmp_path)
    assert [row.name for row in best_first(rows, "val/recall@10")] == ["1", "2", "0"]
    assert [row.name for row in best_first(rows, "train/loss")] == ["2", "1", "0"]
    assert [row.name for row in best_first(rows, "val/recall@10", maximize=False)] == ["0", "1", "2"]
    assert is_maximized("val/warm_users/ndcg@10")
    with pytest.raises(UserError, match="none of 4 runs has 'val/recal@10'; did you mean 'val/recall@10'"):
        best_first(rows, "val/recal@10")


def test_printed(tmp_path: Path) -> None:
    write(tmp_path / "0", ["model.dim=8"], **{"val/recall@10": 0.25})
    write(tmp_path / "1", ["model.dim=16"], "running")
    output = io.StringIO()
    print_runs(read_runs(tmp_path), ["val/recall@10"], console=Console(file=output, width=120))
    lines = [line.replace("│", " ").split() for line in output.getvalue().splitlines()]
    assert ["model.dim=8", "finished", "0.2500", "12", "0"] in lines
    assert ["model.dim=16", "running", "12", "1"] in lines


def test_missing_and_damaged_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not a folder"):
        read_runs(tmp_path / "nowhere")
    path = write(tmp_path / "0")
    (path / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics.json: missing or damaged"):
        read_runs(tmp_path)
