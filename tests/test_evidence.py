"""The evidence suite on a tiny data set: what is missing runs, what is not checked is not written."""

from __future__ import annotations

import json
import os
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
from evidence.checking import is_checked  # noqa: E402
from evidence.plan import Plan, read_plan  # noqa: E402
from evidence.report import BEGIN, END, short, write_report  # noqa: E402
from evidence.rows import described_commit  # noqa: E402
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
    warnings = write_report(plan, runs, page)
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
    write_report(plan, runs, page)
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
    write_report(plan, copy, page)
    text = page.read_text()
    assert "| popularity" not in text
    assert "Not measured yet: plain (seeds 1); later (seeds 0, 1); popularity; transitions." in text
    [row] = [line for line in text.splitlines() if line.startswith("| plain model |")]
    assert "±" not in row


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
        write_report(plan, tmp_path, page)
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
