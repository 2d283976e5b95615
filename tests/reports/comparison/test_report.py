"""The comparison as a whole: in the terminal and as a page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from written import CONFIG, write, write_log

from recsys.cli.main import main
from recsys.core.errors import UserError
from recsys.reports.comparison.comparison_report import ComparisonReport
from recsys.reports.comparison.reading import read_runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs and a baseline; `good` finds more than `plain` for every second user."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    plain = rng.integers(0, 2, 200) / 2
    good = np.where(np.arange(200) % 2, plain, plain + 0.25)
    for name, recall, dim in (("plain", plain, 8), ("good", good, 16)):
        tail = [value if place % 3 else None for place, value in enumerate(recall.tolist())]
        path = write(
            folder / name,
            {"recall@10": recall.tolist(), "recall@100": (recall + 0.1).tolist(), "tail/recall@10": tail},
            {
                "seconds": 100.0,
                "steps": 20,
                "targets_per_second": 5e3,
                "peak_memory_bytes": 2e9,
                "parameters": {"total": 1234},
            },
            CONFIG | {"evaluation": {"metric": "val/ndcg@10"}},
            [f"model.dim={dim}", "seed=1", f"data.root={name}", f"logger={'csv' if dim == 8 else 'wandb'}"],
            coverage_at_10=0.4,
            popularity_at_10=12.5,
            num_users=200.0,
        )
        write_log(path, 0, [{"step": 9, "val/ndcg@10": 0.1}, {"step": 19, "val/ndcg@10": 0.2}])
    write(folder / "knn", {"recall@10": plain.tolist(), "recall@100": plain.tolist()}, {"seconds": 2.0}, None)
    return folder


def test_in_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", str(folder / "plain"), str(folder / "good"), "metrics=[test/recall@10]"])
    output = capsys.readouterr().out
    assert "good is better than plain in recall@10 by " in output
    for line in (
        r"good +│ +0\.4025 │ +0\.4000 │ +12\.50",
        r"plain \(baseline\) +│ +0\.2775 ",
        r"recall@10 │ good │ \+\d+\.\d% │ ▲ better │ \+\d+\.\d% to \+\d+\.\d% │ +< 0\.001 │",
        r"rare items \(tail\) │ good │ .* ▲ better .* │ +133 │",
        r"good +│ +100 │ +20 │ +5,000 │ +1,234 │ +2\.00 │",
        r"model.dim │ +8 │ +16 │",
    ):
        assert re.search(line, output), line
    for setting in ("seed", "data.root", "logger"):
        assert setting not in output
    assert "recall@100" not in output


def test_as_a_page(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "report.html"
    runs = [str(folder / name) for name in ("plain", "good", "knn")]
    main(["compare", *runs, "baseline=good", f"html={page}"])
    assert capsys.readouterr().out.splitlines()[-1] == str(page)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    html = page.read_text()
    # Nothing is read from anywhere, and every picture says what it shows.
    assert not re.search(r"https?:|//|@import|url\(|<script|<link", re.sub(r'src="data:[^"]+"', "", html))
    images = re.findall(r"<img [^>]*>", html)
    assert len(images) == len(re.findall(r'<img src="data:image/svg\+xml;base64,[^"]+" alt="[^"]{80,}"', html)) == 6
    assert html.index("<b>Against good in recall@10, better: none; worse: plain and knn") < html.index("<h2>")
    # The baseline has no slices, so that none are compared; nor are its settings known.
    assert "Slices" not in html
    for heading in ("Which run is better", "Accuracy and variety", "Learning and cost", "Settings"):
        assert f"<h2>{heading}</h2>" in html
    assert "200 test users, data f00" in html
    assert f"knn: {folder / 'knn'}" in html


def test_the_same_every_time(folder: Path, tmp_path: Path) -> None:
    pages = [tmp_path / f"{number}.html" for number in range(2)]
    for page in pages:
        ComparisonReport(read_runs([folder / "plain", folder / "good"])).write(page)
    assert pages[0].read_text() == pages[1].read_text()


def test_all_pairs(folder: Path) -> None:
    report = ComparisonReport(read_runs([folder]), ["recall@100"], all_pairs=True)
    assert [(d.run, d.baseline) for d in report.differences] == [("knn", "good"), ("plain", "good"), ("plain", "knn")]
    assert len(report.verdicts) == 3
    assert {row[1] for row in report.gains_table().rows} == {"knn − good", "plain − good", "plain − knn"}


def test_missing_values_of_runs_are_left_out(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, {"recall@10": [0.0, 1.0]}, config=None)
    report = ComparisonReport(read_runs([tmp_path]))
    assert report.accuracy_against("coverage") is None
    assert report.slices_picture() is None
    assert report.learning_curves() is None
    assert report.cost_picture() is None
    assert report.metrics_table().columns == ("run", "recall@10")
    assert report.verdicts == [
        "b and a do not differ significantly in recall@10 "
        "(0.5000 against 0.5000, +0.0%, 95% interval +0.0% to +0.0%, p = 1)."
    ]
    report.write(tmp_path / "report.html")


def test_a_slice_decides(folder: Path, tmp_path: Path) -> None:
    report = ComparisonReport(read_runs([folder / "plain", folder / "good"]), ["test/tail/recall@10"])
    assert report.verdicts[0].startswith("good is better than plain in tail/recall@10 by ")
    report.write(tmp_path / "report.html")
    nobody: list[float | None] = [None, 1.0]
    for name, users in (("a", nobody), ("b", nobody[::-1])):
        write(tmp_path / name, {"tail/recall@10": users})
    with pytest.raises(UserError, match="no test user has a value of tail/recall@10 in two runs"):
        ComparisonReport(read_runs([tmp_path / "a", tmp_path / "b"])).write(tmp_path / "none.html")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plain"], "found 1 run (plain), expected at least two to compare"),
        (["plain", "nowhere"], "runs: nowhere: no such file or folder"),
        (["plain", "good", "metrics=[test/coverage@10]"], "not every run has 'test/coverage@10' for each test user"),
        (["plain", "good", "baseline=godo"], "baseline: no run 'godo'; did you mean 'good'"),
        (["plain", "good", "html=no/where.html"], "html: no is not a folder"),
    ],
)
def test_mistakes(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as exit_:
        main(["compare", *arguments])
    assert exit_.value.code == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err


def test_no_runs() -> None:
    with pytest.raises(UserError, match="no runs given"):
        read_runs([])


def test_more_new_items_shown_are_not_better(tmp_path: Path) -> None:
    for name, shown in (("a", 0.1), ("b", 0.3)):
        found = {"recall@10": [0.2, 0.1, 0.4, 0.0] * 5, "cold_items/recall@10": [0.0, None, 0.5, 1.0] * 5}
        write(tmp_path / name, found | {"cold_items/shown@10": [shown] * 20})
    report = ComparisonReport(read_runs([tmp_path]))
    assert [row[:4] for row in report.slices_table().rows] == [
        ("new items", "b", "+0.0%", "no difference shown"),
        ("share of new items shown", "b", "+200.0%", "▲ more"),
    ]
    picture = report.slices_picture()
    assert picture is not None
    assert "new items: a 0.5000" in picture.alt
    assert "shown" not in picture.alt
    table = report.metrics_table()
    assert table.columns == ("run", "recall@10", "cold_items/recall@10", "cold_items/shown@10")
    assert "shown: their share of the items shown" in table.note
