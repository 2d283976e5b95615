"""Retraining cycles from end to end: each publishes at most one release, and the served one is always valid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from commands import run_all
from cycles import Scene, begin

from recsys.operations.lineage import lineage
from recsys.release.store import ReleaseStore
from recsys.release.verification import verify_release

pytestmark = pytest.mark.slow

UNREACHABLE = "gates.absolute.min_ratio=100.0"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Fifteen days have arrived, nothing is served; the first cycle, and another right after it."""
    scene = begin(tmp_path_factory.mktemp("retraining"))
    (begun, output), (again, log) = run_all([scene.job(), scene.job()], scene.base)
    assert begun == 0, output
    assert "skipped" in (scene.folder / "cycles/1/run/verdict.json").read_text()
    assert again == 0, log
    assert "no new events" in log
    assert log.splitlines()[-1] == "nothing new"
    return scene


def test_the_first_cycle_needs_no_served_release(first: Scene) -> None:
    (version,) = first.store.versions()
    assert first.store.aliases() == {"candidate": version, "production": version}
    verify_release(first.store.root / version)
    (cycle,) = first.history()
    assert (cycle["outcome"], cycle["served"], cycle["version"], cycle["number"]) == ("kept", None, version, 1)
    verdict = json.loads((first.folder / "cycles/1/run/verdict.json").read_text())
    skipped = {row["gate"] for row in verdict["outcomes"] if row["reason"].startswith("skipped")}
    judged = {row["gate"] for row in verdict["outcomes"] if row["status"] == "pass"}
    assert {"not_worse", "overlap", "size", "record"} <= skipped
    assert {"absolute", "border", "index", "reproduces", "clock"} <= judged
    assert verdict["against"] is None
    assert first.state()["current"] is None
    assert [Path(shard["path"]).name for shard in first.state()["read"]] == ["day-000.parquet"]


def test_a_policy_chooses_the_items_of_the_index_that_is_judged(first: Scene, tmp_path: Path) -> None:
    scene, deny = first.copy("chosen"), tmp_path / "deny.txt"
    served, before = scene.store.open("production")
    denied = pq.read_table(served / "items.parquet")["item_id"].to_pylist()[:3]
    deny.write_text("".join(f"{item}\n" for item in denied))
    # A list of a hundred has all fifty items of this world, and a day of it is one user to a fifth.
    corpus = ["corpus=engaged", "corpus.top=40", "corpus.num_fresh=4", f"corpus.deny={deny}"]
    corpus += ["~gates.not_worse", "~gates.duplicates", "gates.record.min_users=1"]
    wrong = scene.job(*corpus[:1], **scene.arrives(15))
    jobs = [wrong, scene.job(*corpus), scene.job(*corpus, **scene.arrives(16))]
    (failed, error), *kept = run_all(jobs, tmp_path)
    # What is wrong with the policy is said before anything is trained, and nothing counts as read.
    assert failed == 1
    assert "expected corpus.at_least=SUM, corpus.top=NUMBER or both" in error
    assert not (scene.folder / "cycles/2/run").exists()
    for code, output in kept:
        assert code == 0, output
    folder, manifest = scene.store.open("production")
    items = pq.read_table(folder / "items.parquet")["item_id"].to_pylist()
    assert manifest.version != before.version
    assert manifest.corpus.items() >= {"policy": "engaged", "top": 40, "num_fresh": 4, "deny": str(deny)}.items()
    assert 41 <= len(items) == manifest.num_items == manifest.corpus["num_items"] <= 44 < manifest.corpus["of"]
    assert not {*denied} & {*items}
    verdict = json.loads((scene.folder / "cycles/4/run/verdict.json").read_text())
    assert verdict["candidate"] == manifest.version
    checks = {(row["gate"], row["check"]): row for row in verdict["outcomes"]}
    assert checks["index", "index recall@4"]["status"] == "pass"
    assert checks["reproduces", "recall@100 of the chosen items"]["value"] == pytest.approx(0, abs=1e-6)
    assert checks["reproduces", "recall@100"]["value"] == pytest.approx(0, abs=1e-6)
    # The record of the release before is that of its own items.
    record = scene.store.open("previous")[1].record("recall@100")
    assert f"against {record:.4f}" in checks["record", "recall@100"]["reason"]


# In the order of a cycle: each start continues from the kill before, up to the next. A kill before a step is recorded
# leaves the work of the step before it done and not recorded.
KILLS: list[list[Any]] = [
    ["step:prepare", "before"],
    ["step:prepare", "after"],
    ["step:train", "before"],
    ["recsys.training.module:RetrievalModule.training_step", 3],
    ["file:per_user.parquet", 1],
    ["step:judge", "before"],
    # The release is packed, and nothing says so yet.
    ["file:made_from.json", 1],
    ["file:verdict.json", 1],
    ["step:publish", "before"],
    ["recsys.release.store:ReleaseStore.adopt", 1],
    # The release is in the store, and no alias points to it.
    ["file:candidate", 1],
    ["step:roll_out", "before"],
    # `previous` has moved, `production` has not.
    ["file:production", 1],
    ["step:watch", "before"],
    ["step:end", "before"],
    # The cycle has ended, and is not in the history.
    ["step:end", "after"],
    # It is in the history, and not cleared.
    ["step:none", "before"],
]


def test_killed_at_every_step_it_ends_like_an_uninterrupted_one(first: Scene, tmp_path: Path) -> None:
    """Both begin where the first cycle ended, when another day has arrived."""
    before = first.store.versions()
    whole, killed = first.copy("whole"), first.copy("killed", events_of="whole")
    jobs = [whole.job(**whole.arrives(15))]
    jobs += [
        killed.job(kill=kill, snapshot=[str(killed.store.root), str(tmp_path / f"store{number}")])
        for number, kill in enumerate(KILLS)
    ]
    (code, output), *kills, (last, log) = run_all([*jobs, killed.job()], tmp_path)
    assert code == 0, output
    assert "training starts from release" in output
    for number, (code, output) in enumerate(kills):
        assert code == -9, (KILLS[number], code, output)
        store = ReleaseStore(tmp_path / f"store{number}")
        # Whoever starts a server now gets a release that is whole, and one of the two.
        served, _ = store.open("production")
        assert served.name in {*before, *whole.store.versions()}, KILLS[number]
        assert len(store.versions()) <= len(before) + 1
    assert last == 0, log
    assert killed.store.versions() == whole.store.versions()
    assert len(killed.store.versions()) == len(before) + 1
    assert killed.store.aliases() == whole.store.aliases()
    assert killed.store.aliases()["previous"] == before[0]
    for version in killed.store.versions():
        verify_release(killed.store.root / version)
    assert [cycle["number"] for cycle in killed.history()] == [1, 2]
    assert killed.history()[1]["outcome"] == "kept"
    assert killed.state() | {"current": None} == whole.state()
    assert not [path for path in killed.store.root.glob(".tmp-*")]
    moves = [(change["alias"], change["to"]) for change in killed.store.history()]
    assert len(set(moves)) == 5


GATE = """
from dataclasses import dataclass
from recsys.operations.gates.verdict import at_most

@dataclass(frozen=True, kw_only=True)
class MaxItems:
    '''Stop a candidate whose index has more items than a device can hold.'''

    limit: int

    def judge(self, evidence):
        found = evidence.candidate.retriever.manifest.num_items
        yield at_most("items", found, threshold=self.limit, reason="of a device")

class Faulty:
    def judge(self, evidence):
        return len(None)
"""


def test_a_gate_of_another_package_judges_in_both_commands(
    first: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside_gates.py").write_text(GATE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    scene = first.copy("outside")
    mine = ["+gates.mine._target_=outside_gates.MaxItems", "+gates.mine.limit=3"]
    run = scene.folder / "cycles/1/run"
    command = ["recsys", "gates", f"run={run}", f"store={scene.store.root}", "against=production"]
    jobs = [
        {"args": [*command, *mine]},
        {"args": [*command, "+gates.mine._target_=outside_gates.MaxItems"]},
        scene.job("+gates.mine._target_=outside_gates.Faulty", **scene.arrives(15)),
        scene.job(*mine),
        scene.job(*mine[:1], "+gates.mine.limit=1000"),
    ]
    (stopped, output), (wrong, error), (faulty, trace), (judged_again, log), (kept, last) = run_all(jobs, tmp_path)
    assert stopped == 3, output
    assert "mine" in json.loads((run / "verdict.json").read_text())["stopped_by"]
    assert wrong == 1, error
    assert "MaxItems" in error
    assert "limit" in error
    # A fault of a gate is no verdict: nothing is published, and the cycle is judged again by other gates.
    assert faulty == 1, trace
    assert "TypeError" in trace
    assert "publish: " not in trace
    assert judged_again == 3, log
    assert "abandoned" in log
    assert "stopped by mine" in log
    # With a limit that the candidate keeps, the same candidate goes out.
    assert [cycle["outcome"] for cycle in scene.history()] == ["kept", "abandoned", "stopped", "kept"]
    assert (kept, scene.history()[-1]["number"]) == (0, 3), last
    assert "cycle 3 was stopped by mine" in last
    assert "train: " not in last
    assert len(scene.store.versions()) == 2
    assert scene.store.aliases()["production"] == scene.history()[2]["version"]
    earlier = json.loads((scene.folder / "cycles/3/run/verdict.json").read_text())["former"]
    assert [verdict["stopped_by"] for verdict in earlier] == [["mine"]]


# Kills of an acceptance: before it is recorded, before and after its first step, and before the release is out.
ACCEPT_KILLS: list[list[Any]] = [
    ["step:accept", "before"],
    ["step:accept", "after"],
    ["file:verdict.json", 1],
    ["step:publish", "before"],
    ["file:candidate", 1],
    ["step:end", "after"],
]


def test_a_stopped_candidate_is_named_by_every_call_until_it_is_accepted(first: Scene, tmp_path: Path) -> None:
    scene = first.copy("stopped")
    served, versions = scene.store.aliases()["production"], scene.store.versions()
    # Neither data nor training are needed to accept.
    places = [f"store={scene.store.root}", f"folder={scene.folder.parent}"]
    accept = ["recsys", "retrain", "accept=2", "why=the sale, as planned: 'ok'", *places]
    hook = f"notify=tee {tmp_path}/told.json"
    jobs = [
        scene.job(UNREACHABLE, hook, **scene.arrives(15)),
        scene.job(UNREACHABLE),
        {"args": ["recsys", "retrain", "accept=2", "why= ", *places]},
        {"args": ["recsys", "retrain", "accept=7", "why=ok", *places]},
        *({"args": accept, "kill": kill} for kill in ACCEPT_KILLS),
        {"args": [*accept[:2], "data.root=nowhere", *places]},
        {"args": [*accept[:2], f"data.root={scene.data}", *places]},
    ]
    (stopped, output), (again, log), (empty, error), (unknown, message), *kills, (nowhere, absent), (_, last) = run_all(
        jobs, tmp_path
    )  # fmt: skip
    assert (nowhere, "data.root: nowhere: no such file or folder" in absent) == (1, True), absent
    assert (stopped, again) == (3, 3), output + log
    for text in (output, log):
        assert "absolute, recall@100: " in text
        assert "accept=2 why=REASON" in text
        assert text.splitlines()[-1].startswith("stopped ")
        assert "gates.absolute.min_ratio=" in text
    assert "no new events" in log
    assert json.loads((tmp_path / "told.json").read_text())["event"] == "stop"
    assert (empty, unknown) == (1, 1), error + message
    assert "why: found nothing, expected accept=2 why='REASON'" in error
    assert "accept=7: no such cycle is stopped; stopped: 2" in message
    assert [code for code, _ in kills] == [-9] * len(kills), kills
    history = scene.history()
    assert [(end["number"], end["outcome"]) for end in history] == [(1, "kept"), (2, "stopped"), (2, "kept")], last
    version = history[2]["version"]
    assert scene.store.versions() == sorted([*versions, version])
    assert scene.store.aliases() == {"candidate": version, "production": version, "previous": served}
    verify_release(scene.store.root / version)
    verdict = json.loads((scene.folder / "cycles/2/run/verdict.json").read_text())
    assert verdict["stopped_by"] == ["absolute"]
    assert verdict["accepted"]["why"] == "the sale, as planned: 'ok'"
    assert [row["gate"] for row in verdict["accepted"]["overridden"]] == ["absolute"]
    found = lineage(scene.store, version)
    assert found.verdict is not None
    assert found.verdict["accepted"] == verdict["accepted"]
    assert "the sale, as planned: 'ok'" in found.served[-1].why
    page = (scene.folder / "cycles/2/run/verdict.html").read_text()
    assert "stopped by absolute, then accepted" in page
    cycles = (scene.folder / "cycles.html").read_text()
    assert "the sale, as planned: &#39;ok&#39;" in cycles
    assert 'href="cycles/2/run/verdict.html"' in cycles
