"""One sequence judges every candidate, and only typed failures count against the candidate."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from commands import REPOSITORY
from composing import composition_error
from publishing import Published
from worlds import compose

from recsys.core.errors import UserError
from recsys.experiments.trained_run import TrainedRun, load_run
from recsys.operations.gates import staging
from recsys.operations.gates.evidence import Evidence
from recsys.operations.gates.judge import Gate, JudgeSettings, judge_run, record_verdict
from recsys.operations.gates.staging import PackingError, open_release
from recsys.operations.gates.verdict import Outcome, Verdict, at_least
from recsys.release.runtime.retriever import Retriever


@dataclass(frozen=True)
class Raises:
    """A gate that raises after its first outcome."""

    error: Exception

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        yield at_least("users", len(evidence.judged.requests.user_idx), threshold=1, reason="so many")
        raise self.error


@pytest.fixture
def run(published: Published, tmp_path: Path) -> TrainedRun:
    shutil.copytree(published.runs[0], tmp_path / "run")
    return load_run(tmp_path / "run")


@pytest.fixture
def served(published: Published) -> Retriever:
    return open_release(published.store, published.versions[1])


def settings(**gates: Gate) -> JudgeSettings:
    config = compose("gates", ["run=RUN", "against=RELEASE", "index=exact"])
    return dataclasses.replace(JudgeSettings.from_config(config), gates=gates)


def test_a_candidate_that_cannot_be_measured_fails_the_gate(run: TrainedRun, served: Retriever) -> None:
    gates = settings(mine=Raises(UserError("row 7:\n  nan")))
    verdict = judge_run(run, served, settings=gates, candidate=served)
    (outcome,) = verdict.outcomes
    assert (outcome.gate, outcome.status, outcome.reason) == ("mine", "fail", "row 7: nan")
    assert (verdict.candidate, verdict.against) == (served.version, served.version)
    assert {*verdict.measured} == {"candidate", "served"}


@pytest.mark.parametrize("error", [TypeError("no len"), ZeroDivisionError(), RuntimeError("size"), ValueError("base")])
def test_a_fault_of_a_gate_is_an_error_and_no_verdict(run: TrainedRun, served: Retriever, error: Exception) -> None:
    with pytest.raises(type(error)):
        judge_run(run, served, settings=settings(mine=Raises(error)), candidate=served)


@pytest.mark.parametrize("error", [UserError("index: finds .5"), torch.onnx.OnnxExporterError("no operator")])
def test_a_run_of_which_no_release_can_be_made_is_stopped(
    run: TrainedRun, served: Retriever, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    num_parts = []

    def refuse(*_: object, shards: int, **__: object) -> None:
        num_parts.append(shards)
        raise error

    monkeypatch.setattr(staging, "promote", refuse)
    with pytest.raises(PackingError, match=str(error)):
        staging.stage(run, settings().packing)
    verdict = judge_run(run, served, settings=settings(never=Raises(TypeError())))
    assert (verdict.stopped_by, verdict.candidate) == (["packed"], None)
    chosen = dataclasses.replace(settings(), packing=dataclasses.replace(settings().packing, shards=2))
    judge_run(run, served, settings=chosen)
    # Without a choice there are as many parts as in the served release.
    assert num_parts == [1, 3, 2]
    for command in ("gates", "refresh", "retrain"):
        assert yaml.safe_load((REPOSITORY / f"conf/{command}.yaml").read_text())["shards"] is None
    path = record_verdict(run, verdict)
    assert path == run.path / "verdict.json"
    assert Verdict.load(path) == verdict


def test_another_error_of_promotion_is_no_verdict(
    run: TrainedRun, served: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(staging, "promote", fail)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        judge_run(run, served, settings=settings())


def test_a_gate_of_another_package_is_named_in_the_configuration(
    run: TrainedRun, served: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_gates.py").write_text(
        "class MaxItems:\n"
        "    def __init__(self, limit): self.limit = limit\n"
        "    def judge(self, evidence):\n"
        "        from recsys.operations.gates.verdict import at_most\n"
        "        found = evidence.candidate.retriever.manifest.num_items\n"
        "        yield at_most('items', found, threshold=self.limit, reason='of a device')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["run=RUN", "against=RELEASE", "+gates.mine._target_=my_gates.MaxItems", "+gates.mine.limit=3"]
    assert composition_error("gates", words) is None
    with pytest.raises(UserError, match="my_gates.MaxItems: .*limt"):
        JudgeSettings.from_config(compose("gates", [*words, "+gates.mine.limt=3"]))
    given = JudgeSettings.from_config(compose("gates", words))
    given = dataclasses.replace(given, gates={"mine": given.gates["mine"]})
    verdict = judge_run(run, served, settings=given, candidate=served)
    assert (verdict.stopped_by, verdict.outcomes[0].threshold) == (["mine"], 3)
