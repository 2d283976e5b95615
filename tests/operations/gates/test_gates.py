"""Gates on a simulated world: honest candidates pass, and harmed ones are stopped by the right gates."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.compute as pc
import pytest
from commands import run_all

from recsys.data.simulation.synthetic import WorldSettings
from recsys.experiments.trained_run import TrainedRun
from recsys.operations.gates.judge import JudgeSettings, judge_run
from recsys.operations.gates.staging import PackingSettings, stage
from recsys.operations.gates.verdict import Verdict
from recsys.release.runtime.retriever import Retriever
from recsys.serving.events import Event, Restored, SQLiteEvents
from recsys.serving.http.app import App
from recsys.serving.observability.samples import RequestSample, read_samples

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks/harms"))
import of_data
import of_models
from asking import call, living, settings
from publishing import Published
from scene import RECIPE, Scene
from worlds import compose

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


def test_an_honest_retraining_passes_and_lists_untested_checks(scene: Scene, honest: TrainedRun) -> None:
    verdict = scene.judge(honest)
    assert verdict.passed, [(row.gate, row.check, row.reason) for row in verdict.failed]
    by_check = {(row.gate, row.check): row for row in verdict.outcomes}
    assert by_check["not_worse", "recall@100"].status == "pass"
    assert by_check["reproduces", "recall@100"].value == pytest.approx(0, abs=1e-6)
    assert by_check["index", "index recall@100"].value == pytest.approx(1, abs=1e-3)
    assert {row.check for row in verdict.outcomes if row.status == "untested"} <= {
        row.check for row in verdict.outcomes if "/" in row.check or row.check.startswith("served")
    } | {"sampled requests", "hit rate"}


@pytest.mark.parametrize("harm", [of_models.tail_reversed, of_models.head_shuffled, of_models.nan_row])
def test_harmed_weights(harm: of_models.WeightHarm, scene: Scene, honest: TrainedRun) -> None:
    verdict = scene.judge(of_models.with_weights(honest, harm.__name__, harm))
    assert {*verdict.stopped_by} & {*of_models.WEIGHT_HARMS[harm]}
    if harm is of_models.tail_reversed:
        # One slice alone is lost: the head is not.
        failed = {row.check for row in verdict.failed if row.gate == "not_worse"}
        assert "tail/recall@100" in failed
        assert "head/recall@100" not in failed


def test_an_index_whose_rows_are_shuffled(scene: Scene, honest: TrainedRun) -> None:
    verdict = scene.judge(honest, of_models.packed(scene, honest, of_models.shuffled_rows))
    assert {"index", "not_worse", "reproduces"} <= {*verdict.stopped_by}


def test_hidden_new_items(scene: Scene, honest: TrainedRun) -> None:
    verdict = scene.judge(honest, of_models.packed(scene, honest, of_models.hidden_new_items))
    assert "new_items" in verdict.stopped_by, [row for row in verdict.outcomes if row.gate == "new_items"]


@pytest.mark.parametrize("harm", [of_data.truncated_day, of_data.shuffled_items])
def test_harmed_events(harm: of_data.Harm, scene: Scene) -> None:
    tables = harm(scene.until(SERVED + 1), scene.second(SERVED))
    # The gates that must stop it look at the events alone, so one epoch is enough.
    verdict = scene.judge(scene.run(harm.__name__, tables, 0, 1, "trainer.max_epochs=1"))
    assert {*verdict.stopped_by} & {*of_data.HARMS[harm]}


def test_a_training_that_was_given_the_test_part(scene: Scene, honest: TrainedRun) -> None:
    with of_models.leaking():
        scene.run("leaked", None, SERVED + 1, 1, "refit=true", "trainer.max_epochs=1")
    # Whoever judges knows nothing of the leak, but for what the training noted.
    leaked = scene.run("leaked")
    assert honest.state.train_until == honest.dataset.train_until
    assert leaked.dataset.train_until < leaked.state.train_until == int(leaked.dataset.time.max())
    assert "border" in scene.judge(leaked).stopped_by


def test_command_writes_the_verdict_and_exits_with_3_where_it_stops(
    scene: Scene, honest: TrainedRun, tmp_path: Path
) -> None:
    assert scene.served.version
    command = ["recsys", "gates", f"run={honest.path}", f"store={scene.store.root}", "against=production"]
    jobs = [
        {"args": command},
        {"args": [*command, "++gates.absolute.floors={recall@10: 0.99}"]},
        {"args": [*command, "gates.latency.max_rato=1"]},
    ]
    (passed, text), (stopped, why), (wrong, error) = run_all(jobs, tmp_path)
    assert (passed, stopped, wrong) == (0, 3, 1), (text, why, error)
    assert text.splitlines()[-1] == str(honest.path / "verdict.json")
    verdict = Verdict.load(honest.path / "verdict.json")
    assert verdict.stopped_by == ["absolute"]
    assert json.loads((honest.path / "verdict.json").read_text())["passed"] is False
    assert "max_rato" in error


@pytest.fixture(scope="module")
def samples(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> list[RequestSample]:
    """Requests that a gateway of the old release sampled at the end of its last day, one of each of 1,000 users."""
    folder, version = tmp_path_factory.mktemp("gateway"), scene.served.version
    now = scene.second(SERVED)
    histories: dict[Any, list[Event]] = {}
    for row in scene.until(SERVED).interactions.sort_by("timestamp").to_pylist():
        event = Event(row["item_id"], int(row["timestamp"]), {"action": row["action"]})
        histories.setdefault(row["user_id"], []).append(event)
    late = scene.until(SERVED + 1).interactions.filter(pc.field("timestamp") >= now)
    users = sorted({*late["user_id"].to_pylist()} & {*histories})[:1000]
    store = SQLiteEvents(folder / "events.sqlite", 200)
    store.restore([Restored(user, histories[user][-200:], {}) for user in users], "tables", done=1)
    store.close()

    async def use(app: App) -> None:
        for user in users:
            body = {"user_id": user, "k": 50, "request": {"surface": "home"}}
            answer = await call(app, "POST", "/v1/retrieve", body)
            assert (answer.status, answer.body["version"]) == (200, version), answer.body

    published = Published(folder, (folder, folder), scene.store.root, (version, version))
    given = {"max_events": 200, "samples_share": 1.0, "samples_bytes": 1 << 26, "monitor": 0.0, "release": version}
    living(settings(published, folder / "events.sqlite", **given), use)
    kept = read_samples(folder / "samples", 10_000)
    assert [sample.request.user_id for sample in kept] == users
    return [msgspec.structs.replace(sample, at=float(now)) for sample in kept]


def shadow(scene: Scene, run: TrainedRun, candidate: Retriever, samples: list[RequestSample]) -> Verdict:
    """Return the verdict of only the gates on sampled requests."""
    settings = JudgeSettings.from_config(compose("gates", ["run=RUN", "against=RELEASE"]))
    gates = {name: settings.gates[name] for name in ("shadow", "shadow_hits")}
    # The candidate of a month later shows items of 1.3 times the events on these few pins.
    gates["shadow"] = dataclasses.replace(settings.gates["shadow"], max_popularity_ratio=1.5)  # type: ignore[type-var]
    settings = dataclasses.replace(settings, gates=gates, samples=samples, max_users=None)
    return judge_run(run, scene.served, settings=settings, candidate=candidate)


def packed(run: TrainedRun) -> Retriever:
    config = compose("gates", ["run=RUN", "against=RELEASE"])
    return stage(run, PackingSettings.from_config(config))


def test_sampled_requests_pass_an_honest_candidate(
    scene: Scene, honest: TrainedRun, samples: list[RequestSample]
) -> None:
    verdict = shadow(scene, honest, packed(honest), samples)
    by_check = {row.check: row for row in verdict.outcomes}
    # A busy machine may take its time.
    by_check.pop("times as long")
    assert [row for row in by_check.values() if row.status != "pass"] == []
    assert by_check["as answered"].value == 1.0
    assert by_check["errors"].value == 0.0


def test_sampled_requests_stop_an_index_of_other_rows(
    scene: Scene, honest: TrainedRun, samples: list[RequestSample]
) -> None:
    verdict = shadow(scene, honest, of_models.packed(scene, honest, of_models.shuffled_rows), samples)
    assert {"shadow", "shadow_hits"} == {*verdict.stopped_by}
    assert "overlap" in {row.check for row in verdict.failed}


def test_sampled_requests_stop_a_tower_that_ignores_histories(
    scene: Scene, honest: TrainedRun, samples: list[RequestSample]
) -> None:
    run = of_models.with_weights(honest, "history_ignored", of_models.history_ignored)
    verdict = shadow(scene, run, packed(run), samples)
    assert {"shadow", "shadow_hits"} == {*verdict.stopped_by}
    assert "different items" in {row.check for row in verdict.failed}
