"""Lineage of a release, read from files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from publishing import Published
from rich.console import Console

from recsys.cli.main import main
from recsys.core.errors import UserError
from recsys.core.schema import Feature, Schema
from recsys.operations.gates.verdict import Verdict, at_least
from recsys.operations.lineage import AliasPeriod, lineage, served_times
from recsys.release.manifest import Manifest, describe_file
from recsys.release.store import ReleaseStore
from recsys.reports.cycles.tables import lineage_table


@pytest.fixture
def store(published: Published, tmp_path: Path) -> ReleaseStore:
    """A copy of the store whose releases name copies of their runs, so that these can be lost."""
    shutil.copytree(published.store, tmp_path / "store")
    store = ReleaseStore(tmp_path / "store")
    for number, version in enumerate(published.versions):
        shutil.copytree(published.runs[number], tmp_path / f"run{number}")
        file = store.root / version / "manifest.json"
        content = json.loads(file.read_text())
        file.chmod(0o644)
        file.write_text(json.dumps(content | {"run": str(tmp_path / f"run{number}")}))
    return store


def test_the_lineage_has_every_origin(store: ReleaseStore, published: Published, tmp_path: Path) -> None:
    version = published.versions[0]
    found = lineage(store, "candidate")
    manifest = Manifest.load(store.root / version)
    assert found.version == version
    assert found.sound == "all files match the manifest"
    assert found.parts["user tower"]["user_tower.onnx"] == manifest.files["user_tower.onnx"].sha256
    assert {*found.parts["item tower"]} == {"item_tower.safetensors"}
    assert "item_index.json" in found.parts["index"]
    checkpoint = describe_file(tmp_path / "run0/checkpoints/best.ckpt").sha256
    assert found.run["there"]
    assert found.run["checkpoint_sha256"] == checkpoint
    assert found.run["same_config"]
    assert found.run["same_data"]
    assert found.data["fingerprint"] == manifest.dataset_fingerprint
    assert found.data["until"].startswith("1970-01-12")
    assert found.git_commit == "0" * 40
    assert [(one.alias, one.until) for one in found.served] == [("candidate", None)]
    json.dumps(found.to_json())


def test_a_changed_or_missing_run_is_reported(store: ReleaseStore, published: Published, tmp_path: Path) -> None:
    config = tmp_path / "run0/config.yaml"
    config.write_text(config.read_text() + "\n# edited\n")
    assert not lineage(store, published.versions[0]).run["same_config"]
    shutil.rmtree(tmp_path / "run0")
    found = lineage(store, published.versions[0])
    assert not found.run["there"]
    assert "missing" in found.run["note"]
    assert len(found.config_sha256) == 64
    console = Console(width=160, record=True)
    lineage_table(found).print(console)
    assert "the folder is missing" in console.export_text()


def test_damage_is_reported_and_the_rest_is_shown(store: ReleaseStore, published: Published) -> None:
    file = store.root / published.versions[0] / "user_tower.onnx"
    file.chmod(0o644)
    file.write_bytes(b"x" + file.read_bytes()[1:])
    found = lineage(store, published.versions[0])
    assert found.sound.startswith("damaged")
    assert "user_tower.onnx" in found.sound
    assert found.data["fingerprint"]


def test_periods_in_which_it_was_served(store: ReleaseStore, published: Published) -> None:
    first, second = published.versions
    for version in (first, second, first):
        store.set_alias("production", version, why=f"to {version}")
    times = [one for one in lineage(store, first).served if one.alias == "production"]
    assert [one.why for one in times] == [f"to {first}"] * 2
    assert times[0].until is not None
    assert times[1].until is None
    assert [one.alias for one in lineage(store, second).served] == ["production", "previous"]


def test_times_end_with_the_next_change_of_the_same_alias() -> None:
    history = [
        {"when": "1", "alias": "production", "from": None, "to": "a", "why": "x"},
        {"when": "2", "alias": "candidate", "from": None, "to": "b", "why": "y"},
        {"when": "3", "alias": "production", "from": "a", "to": "b", "why": "z"},
    ]
    assert served_times(history, "a") == [AliasPeriod("production", "1", "3", "x")]
    assert served_times(history, "b") == [
        AliasPeriod("candidate", "2", None, "y"),
        AliasPeriod("production", "3", None, "z"),
    ]


def test_the_verdict_of_the_gates_on_this_version(store: ReleaseStore, published: Published, tmp_path: Path) -> None:
    outcome = at_least("x", 1.0, threshold=0.5, reason="").of("gate")
    for candidate, expected in (("f" * 16, None), (published.versions[0], True)):
        Verdict(
            run="run",
            candidate=candidate,
            against="against",
            dataset_fingerprint="data",
            created="now",
            outcomes=(outcome,),
        ).save(tmp_path / "run0")
        found = lineage(store, published.versions[0]).verdict
        assert (found and found["passed"]) == expected


def test_command(store: ReleaseStore, published: Published, capsys: pytest.CaptureFixture[str]) -> None:
    main(["lineage", "candidate", f"store={store.root}", "json=true"])
    assert json.loads(capsys.readouterr().out)["version"] == published.versions[0]
    main(["lineage", published.versions[1], f"store={store.root}"])
    assert "never: no alias has pointed at it" in capsys.readouterr().out
    for arguments in (["production", f"store={store.root}"], ["candidate", str(store.root)]):
        with pytest.raises(SystemExit) as end:
            main(["lineage", *arguments])
        assert end.value.code == 1
        assert capsys.readouterr().err.startswith("error: ")


def test_unknown_versions_are_refused(store: ReleaseStore) -> None:
    with pytest.raises(UserError, match="no release '1{16}'"):
        lineage(store, "1" * 16)


def test_models_of_content_are_part_of_the_lineage(store: ReleaseStore, published: Published) -> None:
    file = store.root / published.versions[0] / "schema.json"
    schema = Schema.load(file)
    encoded = Feature("title", "items", "vector", "item", 2, encoder="minilm", encoder_digest="abc")
    file.chmod(0o644)
    Schema((*schema.features, encoded), schema.user_id_type, schema.item_id_type).save(file)
    found = lineage(store, published.versions[0])
    assert found.data["encoder of items.title"] == "minilm (abc)"
    assert sum(name.startswith("encoder") for name in found.data) == 1
    assert found.sound.startswith("damaged")
    file.write_text("{")
    assert "encoder of items.title" not in lineage(store, published.versions[0]).data
