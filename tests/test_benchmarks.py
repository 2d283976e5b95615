"""Every benchmark runs on tiny data, and every script imports names that exist, so that none breaks unnoticed.

Those of `simulated_months`, `gates_harm`, the evidence and serving are in the tests of what they measure.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import io
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from omegaconf import OmegaConf
from worlds import compose, write_run, write_world

from recsys.cli.main import main
from recsys.experiments.assembly import open_data
from recsys.experiments.blend_validation import BlendValidation
from recsys.experiments.conf_files import CONF
from recsys.experiments.run_folder import RunFolder
from recsys.experiments.trained_run import stored_config
from recsys.training.frequency import prior_shift

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted([*ROOT.glob("*.py"), *ROOT.glob("benchmarks/**/*.py"), *ROOT.glob("examples/**/*.py")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_imported_name_exists(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "recsys":
            module = importlib.import_module(str(node.module))
            for name in node.names:
                if not hasattr(module, name.name):
                    importlib.import_module(f"{node.module}.{name.name}")


Load = Callable[..., ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """`load(name, *arguments)`: the module of a benchmark, whose `main` will read these arguments."""

    def loaded(name: str, *arguments: object) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / f"benchmarks/{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        return module

    return loaded


SMALL: dict[str, tuple[tuple[object, ...], str]] = {
    "catalogue_size": (("--num-items", 20, 40, "--num-events", 900, "--num-steps", 2), "40 items: "),
    "evaluation_speed": (("--users", 40, "--items", 300, "--dim", 8, "--repeats", 1, "--threads", 1), ""),
    "frequency_estimation": (
        ("--num-items", 200, "--num-steps", 20, "--num-targets", 16, "--powers", 8), "count-min"
    ),
    "gpu": (
        ("--device", "cpu", "--users", 60, "--items", 100, "--sampled-items", 200, "--seconds", 0),
        "| sampled negatives, targets/s | ",
    ),
    "index_throughput": (
        ("--num-items", 2000, "--dim", 8, "--queries", 40, "--k", 10, "--backends", "flat", "exact"), "exact"
    ),
    "preparation": (("--num-events", 3000, "--num-users", 60, "--num-items", 400), ""),
    "refresh_speed": (("--items", 600, "--events", 6000, "--threads", 1), "600 items: "),
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_small_runs(name: str, load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, expected = SMALL[name]
    load(name, *arguments).main()
    output = capsys.readouterr().out
    assert output
    assert expected in output


def test_long_ones_begin(load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("retraining_kills", "gates_harm"):
        with pytest.raises(SystemExit, match="0"):
            load(name, "--help").main()
        assert "--folder" in capsys.readouterr().out


def test_training_speed(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both modes and both losses; the peers are not installed."""
    (tmp_path / "amazon-beauty").mkdir()
    events = {"user_id": np.repeat(np.arange(20), 6), "item_id": np.arange(120) * 7 % 300, "timestamp": np.arange(120)}
    pq.write_table(pa.table(events), tmp_path / "amazon-beauty/interactions.parquet")
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path))
    for variable in ("RECSYS_PEER_REPLAY", "RECSYS_PEER_RECTOOLS"):
        monkeypatch.delenv(variable, raising=False)

    def run(side: str, data: Path, loss: str, mode: str, window: int, given: argparse.Namespace) -> list[float]:
        assert side == "recsys"
        words = ("--data", data, "--loss", loss, "--mode", mode, "--window", window, "--seconds", given.seconds)
        with redirect_stdout(io.StringIO()) as output:
            load("training_step", *words, "--threads", 1).main()
        rates: list[float] = json.loads(output.getvalue().splitlines()[-1])["targets_per_second"]
        return rates

    module = load("training_speed", "--cases", "beauty_full", "beauty_sampled", "--rounds", 1, "--seconds", 0)
    monkeypatch.setattr(module, "run", run)
    module.main()
    output = capsys.readouterr().out
    assert "replay: skipped, RECSYS_PEER_REPLAY does not name" in output
    for case in ("beauty_full", "beauty_sampled"):
        for mode in ("loop", "fit"):
            [line] = [line for line in output.splitlines() if line.split()[:2] == [case, mode]]
            assert float(line.split()[3].replace(",", "")) > 0


def test_growth_is_measured_once(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages in this process, on the least data; a size that is in the file is not measured again."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    file, taken = tmp_path / "growth.jsonl", []
    sizes = {"preparation": 2000, "training": 90, "evaluation": 300, "index": 600}
    kinds = {"preparation": "1GB", "index": "ivf_sq8"}
    for stage, size in sizes.items():
        for _ in range(2):
            words = ("--stages", stage, "--sizes", size, "--kinds", kinds.get(stage, ""))
            module = load("growth", *words, "--file", file, "--work", tmp_path)
            sys.modules["growth_stages"].NUM_STEPS = 2  # type: ignore[attr-defined]

            def run(step: str, *given: Any, child: Callable[..., None] = module.child) -> dict[str, float]:
                taken.append((step, given[0]))
                child(step, *given[:-1])
                return {"wall_s": 1.0, "cpu_s": 1.0, "peak_gib": 0.5}

            monkeypatch.setattr(module, "run", run)
            module.main()
    assert taken == [(step, stage) for stage in sizes for step in ("make", "measure")]
    tables = importlib.import_module("growth_report").render(module.read(file))
    for stage, size in sizes.items():
        assert f"\n| {size / 1e6:g} | " in tables[stage]
    assert list(tables) == list(sizes)


def test_growth_fits_laws_and_plans(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    report = importlib.import_module("growth_report")
    line = {"stage": "divided", "cpu_s": 1.0}
    lines = [
        line | {"size": n * 1_000_000, "kind": str(p), "process_gib": 0.5 + 0.25 * n + 2 * n / p}
        for n, p in [(1, 1), (1, 2), (2, 1), (4, 2), (4, 4)]
    ]
    lines.append({"stage": "divided", "size": 20_000_000, "kind": "1", "stopped": "measure: not done after 900 s"})
    laws = report.fitted(lines)
    law = laws["divided", "", "peak of a process, GiB"]
    assert law.factors == pytest.approx((0.5, 0, 0.25, 2))
    assert max(map(abs, law.residuals)) < 1e-9
    assert law(100, 10) == pytest.approx(45.5)
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n<!-- growth: divided --> old <!-- end -->\n\n<!-- growth: plans --><!-- end -->\n")
    file = tmp_path / "growth.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in lines))
    load("growth", "--file", file, "--page", page).main()
    text = page.read_text()
    assert "old" not in text
    assert "| peak of a process, GiB | 0.5 + 0.25 n + 2 n/p | +0%, +0%, +0%, +0%, +0% |" in text.replace("-0%", "+0%")
    assert "| 20 | 1 | not measured: measure: not done after 900 s |" in text
    assert text.endswith("<!-- growth: plans -->\n\nNot measured yet.\n\n<!-- end -->\n")
    capsys.readouterr()


def test_growth_plans_with_the_laws_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    report = importlib.import_module("growth_report")
    step = {"stage": "training", "kind": "", "targets": 400, "steps": 4, "open_cpu_s": 1.0}
    lines = [step | {"size": n * 1_000_000, "steps_cpu_s": 0.44, "peak_gib": 1 + 0.5 * n} for n in (1, 2, 4)]
    parts = report.render(lines)
    # 10^9 events / 100 targets x 110 ms are 306 CPU hours, for which 32 busy cores need 9.5 hours.
    assert "| training, one epoch | 306 CPU hours: 9.5 h on 1 | 30,556 CPU hours: 11.9 h on 80 | " in parts["plans"]
    assert "| memory of a process, replicated tables | 51 GiB | 501 GiB | " in parts["plans"]
    assert "| memory of its driver | not measured | not measured | " in parts["plans"]
    # 8 (1 + n / 2) = 410 GiB.
    [line] = [line for line in parts["limits"].splitlines() if "replicated" in line]
    assert line.endswith("| 100 million items | holds | breaks | `item_tower.sharding=row_wise` |")
    assert "One size gives no law." in report.render(lines[:1])["training"]
    assert "plans" not in report.render(lines[:1])


def test_growth_reads_what_the_spark_benchmark_prints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    stages = importlib.import_module("growth_stages")
    printed = (
        "2,000 events on two workers: 51.5 s, 120.4 CPU s\ndriver: at most 0.83 GiB (bar: 1)\nDuckDB: 3.0 s\n"
        "8 of 9 files have the bytes of DuckDB"
    )
    run = SimpleNamespace(PIPE=-1, run=lambda *_, **__: SimpleNamespace(stdout=printed))
    monkeypatch.setattr(stages, "subprocess", run)
    found = {"prepare_wall_s": 51.5, "prepare_cpu_s": 120.4, "driver_gib": 0.83, "equal_files": 8, "files": 9}
    assert stages.spark(2000, "", tmp_path) == found


def test_a_limit_is_where_a_law_meets_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    plan = importlib.import_module("growth_plan")
    assert plan.reached(lambda n: 2 + 0.5 * n, 12) == pytest.approx(20)
    assert plan.reached(lambda _: 1.0, 12) == float("inf")
    assert plan.processes(lambda n, p: 1 + n / p, 400) == 8
    assert plan.processes(lambda n, _: 1 + n, 400) is None


def test_the_page_of_growth_has_the_tables_of_its_measurements(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    report, growth = importlib.import_module("growth_report"), importlib.import_module("growth")
    page = tmp_path / "how-far.md"
    page.write_text((ROOT / "docs/how-far.md").read_text())
    report.replace(page, report.render(growth.read(ROOT / "benchmarks/growth.jsonl")))
    assert page.read_text() == (ROOT / "docs/how-far.md").read_text()


def test_origins(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, days = tmp_path / "pins", np.arange(120)
    root.mkdir()
    events = {"user_id": days % 9, "item_id": days % 7, "timestamp": days * 86400}
    pq.write_table(pa.table(events), root / "interactions.parquet")
    config = compose("train", ["data=parquet", f"data.root={root}", f"data.cache={tmp_path}/cache", "split=temporal"])
    OmegaConf.save(config, tmp_path / "config.yaml")
    module = load("origins", tmp_path)
    monkeypatch.setattr(module, "HALF_LIVES", (1, 30))
    module.main()
    assert [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()[2:]] == [
        "| pins, test", "| pins, validation"
    ]  # fmt: skip


def test_shifts(load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_world(tmp_path / "data")
    write_run(tmp_path / "pins/variants/mean", root, "user_tower=mean", "split=temporal")
    load("shifts", tmp_path / "pins").main()
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[1].split(" of ")[0] for row in rows] == [
        "0.5 prior^1", "1 prior^1", "1 prior^2", "1 prior^4", "1 prior^16"
    ]  # fmt: skip
    # The first shift by hand, on validation.
    config = stored_config(tmp_path / "pins/variants/mean")
    validation = BlendValidation(config, fits_level=False)
    validation.add("mean", config, run=RunFolder(tmp_path / "pins/variants/mean", config))
    days = float(rows[0].split("prior^1 of ")[1].split(" days")[0])
    bias = prior_shift(validation.dataset, days).mul(0.5).float()
    before, after = (validation.measure({"mean": 1.0}, each)["val/recall@20"] for each in (None, bias))
    assert rows[0].split(" | ")[2] == f"{after / before - 1:+.1%}"


def test_ablation(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = {
        "base": ["user_tower=mean", "model.dim=8", "batch_size=16", "trainer.max_epochs=1"],
        "variants": {"another seed": {"overrides": ["seed=1"]}, "days": {"overrides": ["seed=2"], "time": ["day"]}},
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    data = ["data=parquet", f"data.root={write_world(tmp_path / 'data')}", f"data.cache={tmp_path}/cache"]
    words = ["--variants", tmp_path / "plan.yaml", "--out", tmp_path / "out"]
    module = load("ablation", *words, *data, "split=leave_last_out")

    def start(command: list[str], **_: Any) -> None:
        main(["train", *command[2:]])

    monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=start, STDOUT=None))
    module.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows] == ["| variant", "| base", "| another seed"]
    plan = yaml.safe_load(Path(module.__file__).with_suffix(".yaml").read_text())
    for word in [*plan["base"], *(word for variant in plan["variants"].values() for word in variant["overrides"])]:
        key, _, option = word.partition("=")
        group = key.partition("@")[0]
        assert "." in group or group == "seed" or (CONF / group / f"{option}.yaml").is_file(), word


def test_repeat_purchases(load: Load, tmp_path: Path) -> None:
    load("repeat_purchases", tmp_path, "--customers", 40).main()
    config = compose("train", ["data=parquet", f"data.root={tmp_path}", f"data.cache={tmp_path / 'cache'}"])
    dataset = open_data(config)
    assert dataset.num_users == 40
    bought = [len(part) - len({*part}) for part in np.split(dataset.item_idx, dataset.offsets[1:-1])]
    assert 0.4 < sum(bought) / len(dataset.item_idx) < 0.7
