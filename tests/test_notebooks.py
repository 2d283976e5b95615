"""Both notebooks, executed on runs that are trained here; and what a notebook may hold."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from commands import REPOSITORY, run_all
from nbclient import NotebookClient
from tiny_run import command

from recsys.cli.main import main

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small runs of one data set, one of them trained again on train + val."""
    folder = tmp_path_factory.mktemp("notebooks")
    jobs = [
        {"args": command(folder / "runs" / name, folder / "cache", "data.num_events=1200", *overrides)}
        for name, *overrides in (("both",), ("ids", "item_tower=ids", "refit=true"))
    ]
    for code, output in run_all(jobs, folder):
        assert code == 0, output
    return folder / "runs"


def execute(name: str, monkeypatch: pytest.MonkeyPatch, **settings: str) -> dict[str, Any]:
    """Outputs of the cells by their last line: HTML where there is, else text."""
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    notebook = nbformat.read(REPOSITORY / "notebooks" / name, as_version=4)
    resources = {"metadata": {"path": str(REPOSITORY / "notebooks")}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    outputs = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            assert output.output_type in ("execute_result", "stream"), output
            assert output.get("name") != "stderr", output.text
            shown = output.data.get("text/html") if output.output_type == "execute_result" else output.text
            outputs[cell.source.splitlines()[-1]] = shown
    return outputs


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_import_and_define_nothing(path: Path) -> None:
    notebook = json.loads(path.read_text())
    nbformat.validate(nbformat.from_dict(notebook))
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            assert not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda)
            if isinstance(node, ast.ImportFrom):
                assert node.module is not None
                assert node.module.startswith("recsys.")
            if isinstance(node, ast.Import):
                assert [name.name for name in node.names] == ["os"]


@pytest.mark.slow
def test_compare_variants(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = execute("compare_variants.ipynb", monkeypatch, RUNS=str(runs), BASELINE="both")
    verdict = shown['print("\\n\\n".join(report.verdicts))']
    assert re.match(r"ids (is (better|worse) than|and) both .*in recall@10", verdict), verdict
    pictures = ("forest()", "recall_curves()", 'accuracy_against("coverage")', 'accuracy_against("popularity")')
    for name in (*pictures, "slices_picture()", "learning_curves()", "cost_picture()"):
        assert shown[f"report.{name}"].startswith('<img src="data:image/svg+xml;base64,'), name
        assert 'alt="' in shown[f"report.{name}"]
    metrics = json.loads((runs / "ids/metrics.json").read_text())
    assert f">{metrics['test/recall@10']:.4f}<" in shown["report.metrics_table()"]
    assert ">item_tower<" in shown["report.settings_table()"]
    assert "popular items (head)" in shown["report.slices_table()"]


@pytest.mark.slow
def test_error_analysis(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = execute("error_analysis.ipynb", monkeypatch, RUN=str(runs / "ids"), K="5")
    metrics = json.loads((runs / "ids/metrics.json").read_text())
    (summary,) = (text for text in shown.values() if text.startswith("recall@5 of "))
    assert f"{metrics['test/num_users']:.0f} test users: {metrics['test/recall@5']:.4f}" in summary
    images = [text for text in shown.values() if text.startswith("<img ")]
    assert len(images) >= 3
    assert any("share its category" in image for image in images)
    tables = "".join(text for text in shown.values() if "<table>" in text)
    for title in (
        "Groups with the lowest recall",
        "Most often missed among 5 shown",
        "Users with the",
        "Nearest items",
    ):
        assert title in tables


@pytest.mark.slow
def test_the_same_in_the_terminal(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", str(runs), "baseline=both", f"html={tmp_path / 'report.html'}"])
    output = capsys.readouterr().out
    assert output.splitlines()[-1] == str(tmp_path / "report.html")
    for text in ("Test metrics", "Differences from both", "popular items (head)", "peak memory, GB", "item_tower"):
        assert text in output
    html = (tmp_path / "report.html").read_text()
    assert len(re.findall(r'<img src="data:[^"]+" alt="[^"]+"', html)) == 7
