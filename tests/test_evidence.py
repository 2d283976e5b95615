"""The evidence suite on a tiny data set: what is missing runs, what is not checked is not written, figures are kept."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from composing import composition_error
from worlds import write_world

from recsys.cli.main import main

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from evidence.checking import digest, is_checked  # noqa: E402
from evidence.measured import read_measured, short, write_measured  # noqa: E402
from evidence.plan import Plan, read_plan  # noqa: E402
from evidence.report import BEGIN, END, described_commit, render, write_report  # noqa: E402
from evidence.running import Clock, run_missing  # noqa: E402

PROTOCOL = Path(os.environ.get("RECSYS_DATA", "/nowhere")).parent / "protocol.py"
SMALL = ["user_tower=mean", "model.dim=8", "batch_size=16", "trainer.max_epochs=1"]
PLAN = {
    "metrics": ["test/recall@10", "test/ndcg@10", "test_rolling/recall@10"],
    "seeds": [0, 1],
    "baselines": ["popularity", "transitions"],
    "variants": {
        "plain": {"title": "plain model", "overrides": [*SMALL, "item_tower=ids"]},
        "later": {"title": "nobody ran it", "overrides": SMALL},
    },
    "data": {
        "tiny": {
            "title": "Tiny world",
            "protocol": "loo",
            "overrides": ["data=parquet", "data.root={data}/tiny", "split=leave_last_out", "data.cache={data}/cache"],
            "variants": ["plain", "later"],
            "baseline": "popularity",
            "published": [{"model": "Paper model", "source": "a paper", "metrics": {"test/recall@10": 0.99}}],
            "bars": [
                {"row": "plain", "metric": "test/recall@10", "at_least": 0.0},
                {"row": "plain", "metric": "test/ndcg@10", "at_least": 1.5},
                {"row": "plain", "metric": "test/hit@5", "at_least": 1.5},
                {"row": "plain", "metric": "test/recall@10", "above": "transitions", "p": 0.00001},
            ],
        }
    },
}
# It finds the figures of the run itself, and others after `worse`.
SCORER = """
import json
from pathlib import Path
def split(protocol, raw, out):
    out.mkdir(parents=True); (out / "test.parquet").write_text(protocol)
def score(test, lists):
    metrics = json.loads((Path(lists).parent / "metrics.json").read_text())
    return {name.removeprefix("test/"): value + WORSE for name, value in metrics.items()} | {"unserved": 0}
"""


def launch(words: Sequence[str], log: Path, threads: int) -> int:
    """Run the command in this process."""
    with log.open("a") as file:
        file.write(f"{threads} {' '.join(words)}\n")
    grids = ["~grids.popularity", "~grids.transitions"] if words[0] == "baselines" else []
    main([*words, *grids])
    return 0


def refuse(words: Sequence[str], log: Path, threads: int) -> int:  # noqa: ARG001
    raise AssertionError(f"started: {words}")


def fail(words: Sequence[str], log: Path, threads: int) -> int:  # noqa: ARG001
    return 1


def scorer(folder: Path, worse: float = 0.0) -> Path:
    path = folder / f"scorer{worse}.py"
    path.write_text(SCORER.replace("WORSE", str(worse)))
    return path


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    file = tmp_path_factory.mktemp("plan") / "plan.yaml"
    file.write_text(yaml.safe_dump(PLAN, sort_keys=False))
    return read_plan(file)


@pytest.fixture(scope="module")
def runs(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evidence")
    write_world(root / "data/tiny")
    program = PROTOCOL if PROTOCOL.exists() else scorer(root)
    jobs = plan.jobs(rows=["plain", "baselines"])
    assert run_missing(jobs, root / "runs", data=root / "data", scorer=program, launch=launch) == 0
    return root / "runs"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "results.md"
    path.write_text(f"# Results\n\n{BEGIN}\n\nearlier table\n\n{END}\n\nThe rest.\n")
    return path


def report(plan: Plan, runs: Path, page: Path) -> list[str]:
    return write_report(plan, runs, kept=page.with_name("measured.json"), page=page)


def line(page: Path, begin: str) -> str:
    """Return the only line with this beginning."""
    [found] = [one for one in page.read_text().splitlines() if one.startswith(begin)]
    return found


def prose(page: Path) -> str:
    """Return the page as one line."""
    return " ".join(page.read_text().split())


def measure_again(folder: Path, metric: str, value: float) -> None:
    """Give a run another result, which the scorer has confirmed."""
    file = folder / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {metric: value}))
    check = json.loads((folder / "check.json").read_text())
    (folder / "check.json").write_text(json.dumps(check | {"metrics": digest(file)}))


def test_what_is_finished_does_not_run_again(plan: Plan, runs: Path) -> None:
    jobs = plan.jobs(rows=["plain", "baselines"])
    assert [job.folder(runs).relative_to(runs).as_posix() for job in jobs] == [
        "tiny/baselines/popularity", "tiny/baselines/transitions", "tiny/plain/seed0", "tiny/plain/seed1"
    ]  # fmt: skip
    assert all(is_checked(job.folder(runs)) for job in jobs)
    assert run_missing(jobs, runs, data=runs.parent / "data", scorer=PROTOCOL, launch=refuse) == 0
    # Lists are large, and are made again where they are needed.
    assert not list(runs.rglob("recommendations.parquet"))


def test_the_page(plan: Plan, runs: Path, page: Path) -> None:
    warnings = report(plan, runs, page)
    text = page.read_text()
    assert text.startswith(f"# Results\n\n{BEGIN}\n\n![R@10 on every data set. Tiny world: plain model ")
    assert text.endswith(f"{END}\n\nThe rest.\n")
    assert "earlier table" not in text
    assert "<svg" in page.with_name("evidence.svg").read_text()
    first, second = (json.loads((runs / f"tiny/plain/seed{n}/metrics.json").read_text()) for n in (0, 1))
    [row] = [line for line in text.splitlines() if line.startswith("| plain model |")]
    mean = (first["test/recall@10"] + second["test/recall@10"]) / 2
    spread = abs(first["test/recall@10"] - second["test/recall@10"]) / 2**0.5
    assert f"{short(mean)} ± {short(spread)} [" in row
    state = json.loads((runs / "tiny/plain/seed0/run.json").read_text())
    assert "| 0, 1 | " in row
    assert f"| {state['parameters']['total']:,} | {state['git_commit'][:7]}" in row
    [popular] = [line for line in text.splitlines() if line.startswith("| popularity")]
    assert "[" not in popular
    assert "| Paper model (published: a paper) | .9900 |  | | | | | |" in text
    assert "rolling" not in text
    assert f"- plain model, R@10: {short(mean)}, bar .0000: reached" in text
    # A bar may be on a metric without a column.
    assert "- plain model, hit@5: " in text
    assert "bar 1.5000: **missed**" in text
    assert "bar p < 1e-05: **missed**" in text
    assert warnings == ["tiny: not measured: later (seeds 0, 1)"]
    assert "Not measured yet: later (seeds 0, 1)." in text


def test_users_are_means_over_seeds(plan: Plan, runs: Path, page: Path) -> None:
    report(plan, runs, page)
    tables = [pq.read_table(runs / f"tiny/plain{folder}/per_user.parquet") for folder in ("/seed0", "/seed1", "")]
    one, other, both = (
        dict(zip(table["user_id"].to_pylist(), table["ndcg@10"].to_pylist(), strict=True)) for table in tables
    )
    assert both == pytest.approx({user: (one[user] + other[user]) / 2 for user in one})


def test_rows_without_a_passing_check_are_not_written(plan: Plan, runs: Path, page: Path, tmp_path: Path) -> None:
    copy = tmp_path / "runs"
    shutil.copytree(runs, copy)
    changed = copy / "tiny/plain/seed1/metrics.json"
    changed.write_text(changed.read_text().replace('"test/recall@10": 0.', '"test/recall@10": 0.9'))
    for file in copy.glob("tiny/baselines/*/check.json"):
        file.unlink()
    # The scorer finds other figures, and the run stays out.
    jobs = plan.jobs(rows=["popularity"])
    assert run_missing(jobs, copy, data=runs.parent / "data", scorer=scorer(tmp_path, 0.01), launch=launch) == 1
    assert not json.loads((copy / "tiny/baselines/popularity/check.json").read_text())["passed"]
    report(plan, copy, page)
    text = page.read_text()
    assert "| popularity" not in text
    assert "Not measured yet: plain (seeds 1); later (seeds 0, 1); popularity; transitions." in text
    [row] = [line for line in text.splitlines() if line.startswith("| plain model |")]
    assert "±" not in row


def test_rows_stay_when_their_folders_are_gone(plan: Plan, runs: Path, page: Path, tmp_path: Path) -> None:
    report(plan, runs, page)
    names = ("results.md", "evidence.svg", "measured.json")
    before = [page.with_name(name).read_text() for name in names]
    assert report(plan, tmp_path / "nothing", page) == ["tiny: not measured: later (seeds 0, 1)"]
    assert [page.with_name(name).read_text() for name in names] == before
    # A row that is read again, and is what it was, keeps its comparisons with baselines that are gone.
    models = tmp_path / "models"
    shutil.copytree(runs / "tiny/plain", models / "tiny/plain")
    report(plan, models, page)
    assert [page.with_name(name).read_text() for name in names] == before


def test_new_runs_replace_a_row_as_a_whole(plan: Plan, runs: Path, page: Path, tmp_path: Path) -> None:
    report(plan, runs, page)
    assert "| 0, 1 | " in line(page, "| plain model |")
    popular = line(page, "| popularity")
    shutil.copytree(runs / "tiny/plain/seed1", tmp_path / "runs/tiny/plain/seed1")
    measure_again(tmp_path / "runs/tiny/plain/seed1", "test/recall@10", 0.9)
    warnings = report(plan, tmp_path / "runs", page)
    assert warnings == [
        "tiny: not measured: plain (seeds 0); later (seeds 0, 1)",
        "tiny: plain: the new runs replace a row that had seeds [0] too",
    ]
    row = line(page, "| plain model |")
    # Its new figures are not compared with baselines whose files are gone.
    assert row.startswith("| plain model | .9000 (not compared) | ")
    assert "±" not in row
    assert "| 1 | " in row
    assert line(page, "| popularity") == popular
    assert "Not compared: the runs of popularity or of the row are gone." in prose(page)
    assert "plain model, against the best tuned baseline of each metric: R@10 not compared: the runs of " in prose(page)
    bars = [one for one in page.read_text().splitlines() if one.startswith("- plain model, R@10: ")]
    assert bars == [
        "- plain model, R@10: .9000, bar .0000: reached",
        "- plain model, R@10: .9000; not compared: the runs of transitions or of this row are gone",
    ]


def test_a_comparison_is_out_of_date_when_its_baseline_has_changed(
    plan: Plan, runs: Path, page: Path, tmp_path: Path
) -> None:
    report(plan, runs, page)
    assert "not compared" not in prose(page)
    shutil.copytree(runs / "tiny/baselines/popularity", tmp_path / "runs/tiny/baselines/popularity")
    measure_again(tmp_path / "runs/tiny/baselines/popularity", "test/recall@10", 0.95)
    report(plan, tmp_path / "runs", page)
    row = line(page, "| plain model |")
    # The baseline has the same NDCG as before, so this comparison holds.
    assert row.count("(not compared)") == row.count("%: ") == 1
    assert "R@10 not compared: the runs of popularity or of this row are gone; N@10 " in prose(page)
    assert " | .9500 | " in line(page, "| popularity")
    # With the folders of both they are compared again.
    shutil.copytree(runs / "tiny/plain", tmp_path / "runs/tiny/plain")
    report(plan, tmp_path / "runs", page)
    assert "not compared" not in line(page, "| plain model |")
    assert "R@10 WORSE (popularity, p " in prose(page)
    assert " | .1750 (not compared) | " in line(page, "| transitions")


def test_the_picture_is_drawn_from_the_file(plan: Plan, runs: Path, page: Path) -> None:
    report(plan, runs, page)
    kept, picture = page.with_name("measured.json"), page.with_name("evidence.svg")
    first, text = picture.read_text(), kept.read_text()
    figure = json.loads(text)["tiny"]["plain"]["figures"]["test/recall@10"]
    assert figure["low"] < figure["mean"] < figure["high"]
    # An interval that is not known is not drawn.
    kept.write_text(re.sub(r', "low": [\d.]+, "high": [\d.]+\}', "}", text))
    render(read_measured(kept, plan), plan, page)
    assert picture.read_text() != first
    kept.write_text(text)
    render(read_measured(kept, plan), plan, page)
    assert picture.read_text() == first


def test_the_file_is_written_as_it_was_read(plan: Plan, runs: Path, page: Path) -> None:
    report(plan, runs, page)
    kept = page.with_name("measured.json")
    text = kept.read_text()
    tables = read_measured(kept, plan)
    write_measured(kept, tables)
    assert kept.read_text() == text
    assert read_measured(kept, plan) == tables
    assert [*json.loads(text)["tiny"]] == ["plain", "popularity", "transitions"]
    # A figure is a line, so that a diff shows which one has changed.
    assert re.search(r'^ +"test/recall@10": \{"mean": \d\.\d+, "deviation": \d\.\d+, "low": .*\},$', text, re.MULTILINE)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("{", "measured.json: not rows by data set"),
        ('{"huge": {"plain": {}}}', "measured.json: huge.plain: not in the plan, expected \\['tiny'\\]"),
        ('{"tiny": {"plane": {}}}', "measured.json: tiny.plane: not in the plan, expected \\['plain', 'later', "),
        ('{"tiny": {"plain": {}}}', "measured.json: tiny.plain: Object missing required field `commits`"),
        ('{"tiny": {"plain": {"second": 1}}}', "measured.json: tiny.plain: Object contains unknown field `second`"),
        ('{"tiny": {"plain": {"seconds": "1"}}}', "measured.json: tiny.plain: .* got `str` - at `\\$.seconds`"),
    ],
)
def test_a_broken_file_is_an_error_with_its_place(plan: Plan, page: Path, broken: str, message: str) -> None:
    page.with_name("measured.json").write_text(broken)
    with pytest.raises(ValueError, match=message):
        report(plan, page.parent, page)
    # Nothing is lost.
    assert page.with_name("measured.json").read_text() == broken


def test_the_real_page_is_made_from_the_real_file(page: Path) -> None:
    folder = ROOT / "benchmarks/evidence"
    plan = read_plan(folder / "evidence.yaml")
    shutil.copy(ROOT / "docs/results.md", page)
    render(read_measured(folder / "measured.json", plan), plan, page)
    # How many commits came after a row differs with each commit.
    first, second = (
        re.sub(r", (older by \d+ commits?|not in this history)", "", path.read_text())
        for path in (ROOT / "docs/results.md", page)
    )
    assert first == second


def test_a_failed_run_does_not_stop_the_others(plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = plan.jobs(rows=["plain"])
    failed = run_missing(jobs, tmp_path, data=tmp_path, scorer=PROTOCOL, num_jobs=2, launch=fail)
    assert failed == 2
    assert "tiny, plain, seed 0: failed, see" in capsys.readouterr().err


def test_time_left() -> None:
    # Another seed of the first row took 600 s; nothing is known of the others.
    clock = Clock([600.0, None, None, 7200.0], num_jobs=2)
    clock.finish(1, 1200.0)
    assert clock.left() == "3 left, about 1 h 15 min"
    for place in (0, 2, 3):
        clock.finish(place, 60.0)
    assert clock.left() == "nothing left"


def test_commits() -> None:
    assert described_commit(None) == "unknown"
    assert described_commit("f" * 40) == "fffffff, not in this history"


def test_mistakes(plan: Plan, page: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--rows: no \\['plane'\\], expected some of plain, later"):
        plan.jobs(rows=["plane"])
    page.write_text("# Results\n")
    with pytest.raises(ValueError, match="no markers"):
        report(plan, tmp_path, page)
    wrong = tmp_path / "wrong.yaml"
    data = {"tiny": PLAN["data"]["tiny"] | {"baseline": "popular"}}  # type: ignore[index]
    wrong.write_text(yaml.safe_dump(PLAN | {"data": data}))
    with pytest.raises(ValueError, match="data.tiny: no row \\['popular'\\]"):
        read_plan(wrong)


def test_the_real_plan_composes() -> None:
    real = read_plan(ROOT / "benchmarks/evidence/evidence.yaml")
    # Each data set once, and the variants with most overrides.
    jobs = real.jobs(rows=["popularity"])
    jobs += real.jobs(data=["amazon-beauty"], rows=["refit", "blend_of_ids"], seeds=[0])
    assert len(jobs) == len(real.data) + 2
    for job in jobs:
        command, *words = job.command(Path("runs"), Path("DATA"))
        assert composition_error(command, words) is None, words
