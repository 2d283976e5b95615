"""A run and a release that were made before the package had its present layout still open, recommend and serve."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from commands import run_all
from hydra.utils import get_object
from server_processes import free_port, post, serving

from recsys.core.instantiate import REMOVED
from recsys.core.stored_config import current_target
from recsys.release.runtime.retriever import Query, Retriever

FIXTURE = Path(__file__).parents[1] / "fixtures/earlier_layout"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the fixture, since preparation writes its cache beside the data."""
    return Path(shutil.copytree(FIXTURE, tmp_path_factory.mktemp("earlier") / "copy"))


@pytest.mark.parametrize("target", (FIXTURE / "targets.txt").read_text().split())
def test_every_earlier_target_is_found(target: str) -> None:
    today = current_target(target)
    assert today in REMOVED or callable(get_object(today))


def test_an_unmoved_path_is_unchanged() -> None:
    assert current_target("recsys.models.encoders.Transformer") == "recsys.models.encoders.Transformer"
    assert current_target("my_package.averaging.EMA") == "my_package.averaging.EMA"


@pytest.mark.slow
@pytest.mark.parametrize("source", ["run", "release"])
def test_recommendations_are_the_same(source: str, folder: Path) -> None:
    place = ["run=run"] if source == "run" else ["release=candidate", "store=releases"]
    out = folder / f"{source}.parquet"
    job = {"args": ["recommend.py", *place, "users=test", "k=5", f"out={out}"], "folder": str(folder)}
    ((code, output),) = run_all([job], folder)
    assert code == 0, output
    found, expected = pq.read_table(out), pq.read_table(folder / f"recommended_by_{source}.parquet")
    assert found["user_id"].to_pylist() == expected["user_id"].to_pylist()
    assert found["item_ids"].to_pylist() == expected["item_ids"].to_pylist()
    for ours, theirs in zip(found["scores"].to_pylist(), expected["scores"].to_pylist(), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)


def test_the_release_answers_in_process(folder: Path) -> None:
    retriever = Retriever.load(folder / "releases", "candidate")
    history = [{"item_id": 101, "timestamp": 1_700_000_000, "action": "save"}]
    (answer,) = retriever.retrieve([Query(history=history)], k=3)
    assert len(answer.item_ids) == 3
    assert 101 not in answer.item_ids
    assert {*answer.item_ids} <= {*range(100, 142)}


@pytest.mark.slow
def test_the_release_is_served_with_its_own_data(folder: Path) -> None:
    expected = pq.read_table(folder / "recommended_by_release.parquet").to_pylist()[0]
    port = free_port()
    with serving(folder / "releases", folder, port, "release=candidate", "data.root=own"):
        status, answer = post(port, "/v1/retrieve", {"user_id": expected["user_id"], "k": 5})
    assert status == 200, answer
    assert answer["version"] == (folder / "releases/aliases/candidate").read_text().strip()
    # The server knows the test events of the user too, so the history is longer than that of recommend.py.
    assert answer["history_length"] > 0
    assert len(answer["items"]) == 5
