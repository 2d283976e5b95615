"""The wheel holds everything: outside the repository it trains, publishes, recommends and serves.

With RECSYS_TEST_FRESH_INSTALL=1 the wheel is installed with all its packages. Otherwise it is installed alone, and the
packages of this interpreter are put on its path.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from pathlib import Path
from zipfile import ZipFile

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
SMALL = [
    "data.num_users=60",
    "data.num_items=40",
    "data.num_events=900",
    "data.num_categories=3",
    "data.topics_per_category=2",
    "data.vector_width=4",
    "model.dim=8",
    "trainer.max_epochs=1",
    "+trainer.enable_progress_bar=false",
    "logger=csv",
]
# Refuses every file of the checkout, so that nothing of it can help.
GUARD = """
import os, sys

def refuse(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        path = os.path.abspath(arguments[0])
        if path.startswith(tuple(SOURCES)):
            raise RuntimeError(f"the checkout is used: {{path}}")

SOURCES = {sources!r}
sys.addaudithook(refuse)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_configurations_and_assets(wheel: Path) -> None:
    names = {*ZipFile(wheel).namelist()}
    assert {f"recsys/{file.relative_to(ROOT)}" for file in (ROOT / "conf").rglob("*.yaml")} <= names
    package = ROOT / "src/recsys"
    for file in package.rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            assert f"recsys/{file.relative_to(package)}" in names
    assert "recsys/py.typed" in names
    (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "recsys = recsys.cli.main:main" in ZipFile(wheel).read(entry_points).decode()


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The console command of a fresh environment with the wheel."""
    home = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    (packages,) = home.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin/python"), "install", "--quiet"]
    pip.append("--disable-pip-version-check")
    if os.environ.get("RECSYS_TEST_FRESH_INSTALL") == "1":
        pip += ["-c", str(ROOT / "constraints.txt"), f"{wheel}[all]"]
    else:
        # Paths in a .pth file are searched behind the environment's own, and their own .pth files are not read.
        (packages / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        pip += ["--no-deps", str(wheel)]
    subprocess.run(pip, check=True)
    sources = [f"{ROOT / name}{os.sep}" for name in ("src", "conf", "tests")]
    (packages / "sitecustomize.py").write_text(GUARD.format(sources=sources))
    return home / "bin/recsys"


def environment() -> dict[str, str]:
    hidden = ("PYTHONPATH", "RECSYS_CACHE", "RECSYS_DATA")
    return {name: value for name, value in os.environ.items() if name not in hidden} | {"WANDB_MODE": "offline"}


def run(command: Path, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [str(command), *arguments], cwd=folder, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.slow
def test_from_an_empty_folder_to_an_answer(command: Path, tmp_path: Path) -> None:
    python = command.with_name("python")
    where = "import recsys; from recsys.core.conf_folder import conf_folder; print(recsys.__file__, conf_folder())"
    found = subprocess.run(
        [str(python), "-c", where], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert all(Path(place).is_relative_to(command.parents[1]) for place in found.stdout.split())
    guarded = subprocess.run([str(python), "-c", f"open({str(ROOT / 'conf/train.yaml')!r})"], capture_output=True)
    assert b"the checkout is used" in guarded.stderr
    assert run(command, tmp_path, "--help")
    assert run(command, tmp_path, "train", "+experiment=quickstart", *SMALL, "hydra.run.dir=run") == str(
        tmp_path / "run"
    )
    version = run(command, tmp_path, "index", "run=run", "recall_target=0.5")
    assert (tmp_path / "releases" / version / "manifest.json").exists()
    assert run(command, tmp_path, "recommend", "release=candidate", "users=all", "k=5", "out=o.parquet") == "o.parquet"
    lists = pq.read_table(tmp_path / "o.parquet").to_pylist()
    assert {len(row["item_ids"]) for row in lists} == {5}
    served(command, tmp_path, lists[0]["user_id"])


def served(command: Path, folder: Path, user_id: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["serve", "release=candidate", "data.root=own", f"port={port}"]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen([str(command), *arguments], cwd=folder, env=environment(), stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while not answers(f"{address}/readyz"):
            assert server.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline, (folder / "server.log").read_text()
            time.sleep(0.1)
        request = urllib.request.Request(f"{address}/v1/retrieve", json.dumps({"user_id": user_id, "k": 5}).encode())
        answer = json.loads(urllib.request.urlopen(request).read())
        assert len(answer["items"]) == 5
        assert answer["history_length"] > 0
        assert b"<html" in urllib.request.urlopen(f"{address}/").read()
        server.send_signal(signal.SIGTERM)
        # The server drains, and then ends by the signal.
        assert server.wait(60) in (0, -signal.SIGTERM), (folder / "server.log").read_text()
    finally:
        server.kill()
        server.wait()


def answers(address: str) -> bool:
    try:
        return bool(urllib.request.urlopen(address).status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False
