"""Every example runs as its README says, command by command."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from commands import REPOSITORY, run_all
from server_processes import free_port, post, serving
from tiny_run import read

EXAMPLES = REPOSITORY / "examples"
pytestmark = pytest.mark.slow


def run_example(name: str, folder: Path) -> None:
    """Run the commands of an example's README in an empty folder."""
    text = (EXAMPLES / name / "README.md").read_text().replace("\\\n", " ")
    shutil.copytree(EXAMPLES / name, folder, dirs_exist_ok=True)
    jobs = []
    for line in re.findall(r"^    ((?:recsys|python) .*)$", text, re.MULTILINE):
        program, first, *rest = shlex.split(line, comments=True)
        if program == "python":
            jobs.append([f"examples/{name}/{first}", *rest])
        elif (REPOSITORY / f"{first}.py").exists():
            cache = [f"data.cache={folder}/cache", "+trainer.enable_progress_bar=false"] if first == "train" else []
            jobs.append([f"{first}.py", *rest, *cache])
        else:
            jobs.append(["src/recsys/cli/__main__.py", first, *rest])
    assert len(jobs) >= 2
    for code, output in run_all([{"args": job, "folder": str(folder)} for job in jobs], folder):
        assert code == 0, output


def lists(file: Path) -> dict[object, list[object]]:
    """Ranked items of each user."""
    table = pq.read_table(file)
    return dict(zip(table["user_id"].to_pylist(), table["item_ids"].to_pylist(), strict=True))


def test_own_parquet(tmp_path: Path) -> None:
    run_example("own_parquet", tmp_path)
    found = lists(tmp_path / "recommendations.parquet")
    assert len(found) == 200
    assert all(str(user).startswith("C") and len(items) == 10 for user, items in found.items())
    departments = pq.read_table(tmp_path / "shop/items.parquet")
    of = dict(zip(departments["article"].to_pylist(), departments["department"].to_pylist(), strict=True))
    # Most people buy in one department, so most of a list is of one; by chance it would be about 4 of 10.
    same = [max(map([of[item] for item in items].count, set(of.values()))) for items in found.values()]
    assert sum(same) / len(same) > 6


def test_weighted_actions(tmp_path: Path) -> None:
    run_example("weighted_actions", tmp_path)
    config = (tmp_path / "weighted/config.yaml").read_text()
    assert "purchase: 3" in config
    assert read(tmp_path / "weighted", "metrics.json") != read(tmp_path / "equal", "metrics.json")


def test_search(tmp_path: Path) -> None:
    run_example("search", tmp_path)
    titles = pq.read_table(tmp_path / "log/items.parquet")["title"].to_pylist()
    found = lists(tmp_path / "found.parquet")
    for user, query in {1: "red lamp", 2: "blue tent", 3: "kite"}.items():
        first = [titles[item] for item in found[user][:4]]  # type: ignore[index]
        assert all(query.split()[-1] in title for title in first), (query, first)
    assert read(tmp_path / "run", "metrics.json")["test_rolling/recall@10"] > 0.3


def test_vectors(tmp_path: Path) -> None:
    run_example("vectors", tmp_path)
    items = pq.read_table(tmp_path / "recommendations.parquet")["item_ids"]
    shown = pc.list_flatten(items.combine_chunks() if isinstance(items, pa.ChunkedArray) else items)
    new = pc.sum(pc.greater_equal(shown, 120)).as_py()
    # Items without events are recommended, because their vectors place them.
    assert new > 0


def test_compose(tmp_path: Path) -> None:
    run_example("compose", tmp_path)
    (service,) = yaml.safe_load((tmp_path / "compose.yaml").read_text())["services"].values()
    # The same command line as a process, with the folders that the container would mount.
    places = {"/store": tmp_path / "releases", "/data": tmp_path}
    assert {volume.split(":")[1] for volume in service["volumes"]} == {*places}
    arguments = [word.replace("=/data/", f"={places['/data']}/") for word in service["command"]]
    port = free_port()
    with serving(places["/store"], tmp_path, port, *arguments):
        code, answer = post(port, "/v1/retrieve", {"history": [{"item_id": 5}, {"item_id": 9}], "k": 3})
        assert code == 200
        assert len(answer["items"]) == 3
        assert post(port, "/v1/events", {"user_id": 7, "item_id": 5})[0] == 200
        code, answer = post(port, "/v1/retrieve", {"user_id": 7, "k": 3})
        assert (code, answer["history_length"]) == (200, 1)
