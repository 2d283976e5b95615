"""The gates on a world that is retrained: honest candidates pass, and harmed ones are stopped by the gate for them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from commands import run_all

from recsys.data.synthetic import WorldSettings
from recsys.retraining.verdict import Verdict
from recsys.runs import TrainedRun

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks/harms"))
import of_data
import of_models
from scene import RECIPE, Scene

pytestmark = pytest.mark.slow
SERVED = 40
# Large enough for a slice to be told, and for tastes to matter among the best hundred.
WORLD = WorldSettings(
    num_users=3000, num_items=1500, num_events=90_000, num_categories=12, topics_per_category=4, days=45
)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("scene"), SERVED, WORLD, RECIPE)


@pytest.fixture(scope="module")
def honest(scene: Scene) -> TrainedRun:
    return scene.run("honest", day=SERVED + 1, seed=1)


def test_an_honest_retraining_passes_and_says_what_it_could_not_tell(scene: Scene, honest: TrainedRun) -> None:
    verdict = scene.judge(honest)
    assert verdict.passed, [(row.gate, row.check, row.reason) for row in verdict.failed]
    by_check = {(row.gate, row.check): row for row in verdict.outcomes}
    assert by_check["not_worse", "recall@100"].status == "pass"
    assert by_check["reproduces", "recall@100"].value == pytest.approx(0, abs=1e-6)
    assert by_check["index", "index recall@100"].value == pytest.approx(1, abs=1e-3)
    assert {row.check for row in verdict.outcomes if row.status == "untested"} <= {
        row.check for row in verdict.outcomes if "/" in row.check or row.check.startswith("served")
    }


@pytest.mark.parametrize("harm", [of_models.tail_shuffled, of_models.head_shuffled, of_models.nan_row])
def test_harmed_weights(harm: of_models.WeightHarm, scene: Scene, honest: TrainedRun) -> None:
    verdict = scene.judge(of_models.with_weights(honest, harm.__name__, harm))
    assert {*verdict.stopped_by} & {*of_models.WEIGHT_HARMS[harm]}
    if harm is of_models.tail_shuffled:
        # One slice alone is lost: the head is not.
        failed = {row.check for row in verdict.failed if row.gate == "not_worse"}
        assert "tail/recall@100" in failed
        assert "head/recall@100" not in failed


def test_an_index_whose_rows_are_shuffled(scene: Scene, honest: TrainedRun) -> None:
    verdict = scene.judge(honest, of_models.packed(scene, honest, of_models.shuffled_rows))
    assert {"index", "not_worse", "reproduces"} <= {*verdict.stopped_by}


@pytest.mark.parametrize("harm", [of_data.truncated_day, of_data.shuffled_items])
def test_harmed_events(harm: of_data.Harm, scene: Scene) -> None:
    tables = harm(scene.until(SERVED + 1), scene.second(SERVED))
    verdict = scene.judge(scene.run(harm.__name__, tables, seed=1))
    assert {*verdict.stopped_by} & {*of_data.HARMS[harm]}


def test_command_writes_the_verdict_and_exits_with_3_where_it_stops(
    scene: Scene, honest: TrainedRun, tmp_path: Path
) -> None:
    assert scene.served.version
    command = ["src/recsys/gates.py", f"run={honest.path}", f"store={scene.store.root}", "against=production"]
    jobs = [
        {"args": command},
        {"args": [*command, "++gates.absolute.floors={recall@10: 0.99}"]},
        {"args": [*command, "gates.latency.slowr=1"]},
    ]
    (passed, text), (stopped, why), (wrong, error) = run_all(jobs, tmp_path)
    assert (passed, stopped, wrong) == (0, 3, 1), (text, why, error)
    assert text.splitlines()[-1] == str(honest.path / "verdict.json")
    verdict = Verdict.load(honest.path / "verdict.json")
    assert verdict.stopped_by == ["absolute"]
    assert json.loads((honest.path / "verdict.json").read_text())["passed"] is False
    assert "slowr" in error
