"""A cycle that rolls out over real servers: two hosts and a gateway, started like in the documentation."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import run_all
from cycles import Scene, begin
from server_processes import free_port, post, serving

from recsys.release.runtime.retriever import Query, Retriever

pytestmark = pytest.mark.slow

WATCH = ["watch.every=0.2", "watch.unready=3"]
# Calls to a server that is gone are given up soon.
IMPATIENT = {
    "recsys.operations.rollout.runner:RolloutRunner.__init__.__kwdefaults__": {"wait": 1.0, "patience": 1.0},
}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """The first cycle has ended, and its release is served."""
    scene = begin(tmp_path_factory.mktemp("retraining"))
    ((code, output),) = run_all([scene.job()], scene.base)
    assert code == 0, output
    return scene


@dataclass
class Asking:
    """Users who ask a gateway all the time, each with a history of their own."""

    port: int
    histories: list[list[dict[str, Any]]]
    # Begin of the request, number of the history, status and body.
    answers: list[tuple[float, int, int, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        stop = threading.Event()

        def ask() -> None:
            number, last = 0, False
            while not last:
                # One more request begins after the end, so that the last one does not belong to the time before it.
                last = stop.is_set()
                try:
                    begin = time.monotonic()
                    self.answers.append((begin, number, *post(self.port, "/v1/retrieve", self.body(number))))
                except (OSError, http.client.HTTPException) as error:
                    self.problems.append(repr(error))
                number = (number + 1) % len(self.histories)
                time.sleep(0.01)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def body(self, number: int) -> dict[str, Any]:
        return {"history": self.histories[number], "k": 5}

    def check(self, store: Path) -> list[str]:
        """Every answer is that of one release, tower and index; the versions in the order in which requests began."""
        self.answers.sort(key=lambda answer: answer[0])
        assert self.problems == []
        assert {status for _, _, status, _ in self.answers} == {200}, self.answers[-1]
        expected: dict[str, list[Any]] = {}
        for _, number, _, answer in self.answers:
            version = answer["version"]
            assert version == answer["user_tower_version"] == answer["index_version"]
            if version not in expected:
                expected[version] = Retriever.load(store, version).retrieve([Query(h) for h in self.histories], 5)
            right = expected[version][number]
            np.testing.assert_allclose([item["score"] for item in answer["items"]], right.scores, atol=1e-4)
            assert {item["item_id"] for item in answer["items"]} == {*right.item_ids}
        return [answer["version"] for *_, answer in self.answers]


@dataclass(frozen=True)
class Servers:
    scene: Scene
    ports: tuple[int, int]
    gateway: int
    processes: list[subprocess.Popen[str]]

    def host(self, number: int) -> Any:
        """A host, started as `docs/serving.md` does; it follows the alias besides."""
        place = self.scene.base / self.scene.name
        changes = f"changes={place / f'host{number}.journal'}"
        return serving(self.scene.store.root, place, self.ports[number], "role=host", "release=production", changes)

    def serves(self, port: int) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/v1/version")
        (held,) = json.loads(connection.getresponse().read()).values()
        connection.close()
        return str(held["serving"])

    def job(self, *overrides: str, **more: Any) -> dict[str, Any]:
        hosts = ",".join(f"'127.0.0.1:{port}'" for port in self.ports)
        places = [f"hosts=[{hosts}]", f"gateways=['127.0.0.1:{self.gateway}']"]
        return self.scene.job(*places, *WATCH, *overrides, **more)

    def asking(self) -> Asking:
        events = pq.read_table(self.scene.data / "interactions.parquet/day-000.parquet").to_pylist()
        histories = [
            [{"item_id": row["item_id"]} for row in events if row["user_id"] == user][:8]
            for user in sorted({row["user_id"] for row in events})[:10]
        ]
        return Asking(self.gateway, [*histories, []])


@contextlib.contextmanager
def servers(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    monkeypatch.setenv("RECSYS_ADMIN_TOKEN", "a-secret-of-the-tests")
    made = Servers(scene, (free_port(), free_port()), free_port(), [])
    hosts = ",".join(f'"http://127.0.0.1:{port}"' for port in made.ports)
    with contextlib.ExitStack() as stack:
        made.processes.extend(stack.enter_context(made.host(number)) for number in (0, 1))
        place = scene.base / scene.name
        gateway = serving(scene.store.root, place, made.gateway, "role=gateway", f"hosts=[{hosts}]")
        made.processes.append(stack.enter_context(gateway))
        yield made


def test_a_cycle_switches_hosts_and_gateway_while_they_answer(
    first: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = first.copy("switched")
    old = scene.store.aliases()["production"]
    with servers(scene, monkeypatch) as made:
        asking = made.asking()
        with asking.going_on():
            ((code, output),) = run_all([made.job("watch.seconds=2.0", **scene.arrives(15))], tmp_path)
        assert code == 0, output
        new = scene.store.aliases()["production"]
        assert new != old
        assert [made.serves(port) for port in made.ports] == [new, new]
        status, answer = post(made.gateway, "/v1/retrieve", asking.body(0))
        assert (status, answer["version"]) == (200, new)
        versions = asking.check(scene.store.root)
        assert {*versions} == {old, new}
        assert (versions[0], versions[-1]) == (old, new)
        assert all(process.poll() is None for process in made.processes)
    assert scene.history()[-1]["outcome"] == "kept"
    assert scene.history()[-1]["why"] == "watched for 2 s"


def test_a_host_that_dies_while_it_is_watched_brings_the_old_release_back(
    first: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = first.copy("died")
    old = scene.store.aliases()["production"]
    with servers(scene, monkeypatch) as made:
        asking = made.asking()

        def kill() -> None:
            give_up = time.monotonic() + 500
            while time.monotonic() < give_up:
                current = scene.state()["current"]
                if current is not None and current["step"] == "watch":
                    made.processes[1].send_signal(signal.SIGKILL)
                    return
                time.sleep(0.05)

        killer = threading.Thread(target=kill)
        killer.start()
        with asking.going_on():
            job = made.job("watch.seconds=600.0", **scene.arrives(15), set=IMPATIENT)
            ((code, output),) = run_all([job], tmp_path)
            killer.join()
        # The dead host cannot be told, so the cycle is not over; everything else serves the old release already.
        assert code == 1, output
        assert "does not answer" in output
        assert "Everything else is rolled back" in output
        assert scene.state()["current"]["step"] == "roll_back"
        assert scene.store.aliases()["production"] == old
        assert made.serves(made.ports[0]) == old
        versions = asking.check(scene.store.root)
        assert len({*versions}) == 2
        assert (versions[0], versions[-1]) == (old, old)
        # Started again, it is told what to serve, and the cycle ends.
        with made.host(1):
            ((code, output),) = run_all([made.job()], tmp_path)
            assert code == 4, output
            assert output.splitlines()[-1].startswith("rolled_back")
            assert [made.serves(port) for port in made.ports] == [old, old]
    cycle = scene.history()[-1]
    assert (cycle["outcome"], cycle["served"]) == ("rolled_back", old)
    assert "at 3 checks in a row" in cycle["why"]
