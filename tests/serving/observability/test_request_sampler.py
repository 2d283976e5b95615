"""A share of the requests is kept with the answers: whole lines, bounded files, and no request waits."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from asking import call, living, settings
from publishing import Published

from recsys.core.errors import UserError
from recsys.release.runtime.retriever import Query, Retriever
from recsys.serving.http.app import App
from recsys.serving.http.messages import RetrieveRequest, RetrieveResponse, ScoredItem
from recsys.serving.observability.background import BackgroundThread
from recsys.serving.observability.metrics import Metrics
from recsys.serving.observability.request_sampler import RequestSampler
from recsys.serving.observability.samples import RequestSample, read_samples

ANSWER = RetrieveResponse([ScoredItem(7, 0.5), ScoredItem("7", 0.25)], "v", "v", "v", "host", 1, [])


class Sampling:
    """A sampler with a thread of its own."""

    def __init__(self, share: float, folder: Path, **options: Any) -> None:
        self.metrics = Metrics()
        self.background = BackgroundThread(self.metrics)
        self.sampler = RequestSampler(share, folder, background=self.background, metrics=self.metrics, **options)
        self.wants, self.close = self.sampler.wants, self.background.close

    def put(self, request: RetrieveRequest, history: Any, profile: Any, response: RetrieveResponse) -> None:
        ids = [item.item_id for item in response.items]
        self.sampler.put(RequestSample(time.time(), request, history, profile, response.version, ids))


def keep(sampling: Sampling, *users: int) -> None:
    for user in users:
        sampling.put(RetrieveRequest(user_id=user, k=2), [{"item_id": user}], {}, ANSWER)


def count(sampling: Sampling, what: str) -> float:
    return sampling.metrics.value("recsys_request_samples", what=what)


def users_of(folder: Path, newest: int = 10_000) -> list[Any]:
    return [sample.request.user_id for sample in read_samples(folder, newest)]


def test_a_sample_contains_request_and_answer(tmp_path: Path) -> None:
    sampling = Sampling(1.0, tmp_path / "samples", max_bytes=1 << 20)
    before = time.time()
    asked = RetrieveRequest(5, 2, None, {"age": 7}, {"query": "çay"}, ["a"], False, {"category": ["x", "y"]}, "v")
    sampling.put(asked, [{"item_id": 3, "timestamp": 9, "action": None}], {"country": "de"}, ANSWER)
    sampling.put(RetrieveRequest(history=[{"item_id": "3"}]), None, None, ANSWER)
    sampling.close()
    one, other = read_samples(tmp_path / "samples", 10)
    assert before <= one.at <= other.at <= time.time()
    past = [{"item_id": 3, "timestamp": 9, "action": None}]
    assert one == RequestSample(one.at, asked, past, {"country": "de"}, "v", [7, "7"])
    assert (other.request.history, other.history, other.profile) == ([{"item_id": "3"}], None, None)
    assert [count(sampling, what) for what in ("written", "dropped", "failed")] == [2, 0, 0]
    # Histories of users must not be readable by others.
    (file,) = (tmp_path / "samples").glob("*.jsonl")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_share_is_wanted_and_nothing_by_default(tmp_path: Path) -> None:
    sampling = Sampling(0.25, tmp_path, max_bytes=1 << 20, seed=0)
    assert sum(sampling.wants() for _ in range(4000)) == pytest.approx(1000, abs=100)
    assert not any(Sampling(0.0, tmp_path, max_bytes=1).wants() for _ in range(100))
    assert all(Sampling(1.0, tmp_path, max_bytes=1).wants() for _ in range(100))
    with pytest.raises(UserError, match=r"samples\.share: found 1\.5, expected a share"):
        Sampling(1.5, tmp_path, max_bytes=1)
    with pytest.raises(UserError, match=r"samples\.bytes: found 0"):
        Sampling(0.5, tmp_path, max_bytes=0)


def test_the_oldest_files_give_way(tmp_path: Path) -> None:
    sampling = Sampling(1.0, tmp_path, max_bytes=8_000, depth=10_000)
    sizes = []
    for begin in range(0, 1000, 10):
        keep(sampling, *range(begin, begin + 10))
        while count(sampling, "written") < begin + 10:
            time.sleep(0.001)
        sizes.append(sum(path.stat().st_size for path in tmp_path.glob("*.jsonl")))
    sampling.close()
    assert max(sizes) <= 8_000
    assert sizes[-1] > 6_000
    found = users_of(tmp_path)
    # The latest samples, without gaps.
    assert found == list(range(found[0], 1000))
    assert len(found) > 20
    assert users_of(tmp_path, newest=3) == [997, 998, 999]


def test_many_starts_leave_no_more_files_than_there_may_be(tmp_path: Path) -> None:
    for start in range(70):
        sampling = Sampling(1.0, tmp_path, max_bytes=1 << 20)
        keep(sampling, start)
        sampling.close()
    assert users_of(tmp_path) == list(range(6, 70))


def test_a_sample_that_is_larger_than_a_file_is_dropped(tmp_path: Path) -> None:
    sampling = Sampling(1.0, tmp_path, max_bytes=8_000)
    sampling.put(RetrieveRequest(user_id="x" * 2000), None, None, ANSWER)
    keep(sampling, 1)
    sampling.close()
    assert users_of(tmp_path) == [1]
    assert (count(sampling, "written"), count(sampling, "dropped")) == (1, 1)


def test_torn_lines_and_other_formats_are_skipped(tmp_path: Path) -> None:
    for user in (1, 2):
        sampling = Sampling(1.0, tmp_path / f"server{user}", max_bytes=1 << 20)
        keep(sampling, user)
        sampling.close()
    (file,) = (tmp_path / "server1").glob("*.jsonl")
    whole = file.read_bytes()
    later = json.dumps({**json.loads(whole), "at": 1.0}).encode()
    for end in range(len(whole)):
        file.write_bytes(whole + b'{"at": 1}\n[]\nnonsense\n' + later + b"\n" + whole[:end])
        # The oldest first, in whichever file; a line that was cut off is skipped, even if only its end is missing.
        assert [(sample.at == 1.0, sample.request.user_id) for sample in read_samples(tmp_path, 10)] == [
            (True, 1), (False, 1), (False, 2),
        ]  # fmt: skip
    assert read_samples(None, 10) == read_samples(tmp_path / "nowhere", 10) == []


WRITER = """
import sys, itertools
from recsys.serving.http.messages import RetrieveRequest
from recsys.serving.observability.background import BackgroundThread
from recsys.serving.observability.metrics import Metrics
from recsys.serving.observability.request_sampler import RequestSampler
from recsys.serving.observability.samples import RequestSample
metrics = Metrics()
background = BackgroundThread(metrics)
sampler = RequestSampler(1.0, sys.argv[1], max_bytes=1 << 30, background=background, metrics=metrics)
for number in itertools.count():
    request, history = RetrieveRequest(user_id=number), [{"item_id": n} for n in range(2000)]
    sampler.put(RequestSample(0.0, request, history, {}, "v", []))
    if number == 50:
        print("goes", flush=True)
"""


def test_killed_while_writing_and_started_again(tmp_path: Path) -> None:
    for start in range(3):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "goes\n"
            # The file may exist before its first line.
            while sum(b"\n" in file.read_bytes() for file in tmp_path.glob("*.jsonl")) <= start:
                time.sleep(0.001)
            time.sleep(0.02 * start)
            process.send_signal(signal.SIGKILL)
        samples = read_samples(tmp_path, 10**6)
        assert samples
        assert all(len(sample.history or ()) == 2000 for sample in samples)
    assert len([*tmp_path.glob("*.jsonl")]) == 3
    assert {sample.request.user_id for sample in samples} >= {0}
    # Samples of each start are read, although the start before left a torn line.
    assert sum(sample.request.user_id == 0 for sample in samples) == 3


def test_requests_never_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling, stuck = Sampling(1.0, tmp_path, max_bytes=1 << 20, depth=4), threading.Event()
    write = os.write

    def slow(descriptor: int, content: Any) -> int:
        assert stuck.wait(60)
        return write(descriptor, content)

    monkeypatch.setattr(os, "write", slow)
    keep(sampling, 0)
    while sampling.sampler._lane.waiting:
        time.sleep(0.001)
    keep(sampling, *range(1, 10))
    assert count(sampling, "dropped") == 5
    stuck.set()
    sampling.close()
    assert users_of(tmp_path) == [0, 1, 2, 3, 4]


def test_a_full_disk_truncates_one_line_and_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sampling, write, calls = Sampling(1.0, tmp_path, max_bytes=1 << 20), os.write, iter(range(100))

    def full(descriptor: int, content: Any) -> int:
        match next(calls):
            case 1 | 3:
                return write(descriptor, content[:10])
            case 2 | 4:
                raise OSError(28, "No space left on device")
            case _:
                return write(descriptor, content)

    monkeypatch.setattr(os, "write", full)
    for user in range(4):
        keep(sampling, user)
        while count(sampling, "written") + count(sampling, "failed") <= user:
            time.sleep(0.001)
    sampling.close()
    assert users_of(tmp_path) == [0, 3]
    assert (count(sampling, "written"), count(sampling, "failed")) == (2, 2)
    assert caplog.text.count("could not be written") == 1


def test_sampled_requests_are_replayed_with_the_same_answers(
    published: Published, stored: Path, queries: dict[str, Query]
) -> None:
    users, folder = list(queries)[:6], stored.with_name("samples")
    posted: list[dict[str, Any]] = [{"user_id": user, "k": 5 + n} for n, user in enumerate(users)]
    posted[1] |= {"user": {"age": 30}, "request": {"surface": "home"}, "exclude": ["i001"], "exclude_seen": False}
    posted[2] |= {"history": [{"item_id": "i002", "action": "save"}, {"item_id": "nobody"}]}
    posted.append({"k": 3})
    posted.append({"user_id": "nobody", "filter": {"category": "x"}, "k": 4})

    async def use(app: App) -> tuple[list[Any], str]:
        answers = [(await call(app, "POST", "/v1/retrieve", body)).body for body in posted]
        # A refused request is not sampled.
        assert (await call(app, "POST", "/v1/retrieve", {"request": {"nothing": 1}})).status == 400
        give_up = time.monotonic() + 30
        wanted = f'recsys_request_samples{{what="written"}} {len(posted)}.0'
        while wanted not in (text := (await call(app, "GET", "/metrics", as_json=False)).body):
            assert time.monotonic() < give_up, text
            await asyncio.sleep(0.01)
        return answers, text

    answers, _ = living(settings(published, stored, samples_share=1.0), use)
    samples = read_samples(folder, 100)
    assert [list(sample.item_ids) for sample in samples] == [[i["item_id"] for i in a["items"]] for a in answers]
    assert {sample.version for sample in samples} == {published.versions[0]}
    assert samples[2].history is None
    assert [event["item_id"] for event in samples[0].history or ()] == [
        event["item_id"] for event in queries[users[0]].history
    ]
    retriever = Retriever.load(published.store, published.versions[0])
    for sample in samples:
        (again,) = retriever.retrieve(
            [sample.query(retriever.query_encoder)], sample.request.k, exclude_seen=sample.request.exclude_seen,
            filter=sample.request.filter,
        )  # fmt: skip
        assert again.item_ids == list(sample.item_ids)


def test_no_requests_are_sampled_by_default(published: Published, stored: Path) -> None:
    async def use(app: App) -> None:
        for _ in range(20):
            assert (await call(app, "POST", "/v1/retrieve", {"k": 3})).status == 200

    living(settings(published, stored), use)
    assert not stored.with_name("samples").exists()


def test_features_that_another_tower_does_not_know(published: Published) -> None:
    tower = Retriever.load(published.store, published.versions[0]).query_encoder
    asked = RetrieveRequest(user_id=1, k=1, user={"age": 3})
    stored = RequestSample(
        0.0, asked, [{"item_id": "i001", "gone": 1, "action": "save"}], {"gone": 2, "age": 9}, "v", []
    )
    query = stored.query(tower)
    # Unknown stored features are left out, as in the gateway; unknown features of the request are refused.
    assert list(query.history) == [{"item_id": "i001", "action": "save"}]
    assert query.user == {"age": 3}
    given = RequestSample(0.0, RetrieveRequest(history=[{"item_id": "i001", "gone": 1}]), None, {}, "v", [])
    with pytest.raises(UserError, match=r"history\.gone: no such feature"):
        tower.encode([given.query(tower)])
