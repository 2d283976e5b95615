"""The command `recsys ingest` with a release, until a signal."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from brokers import NOW, Broker
from publishing import Published

from recsys.cli.main import main
from recsys.core.suppression import SuppressionList, hash_of
from recsys.release.manifest import MANIFEST
from recsys.release.runtime.query_encoder import QueryEncoder, read_event_values
from recsys.release.store import ReleaseStore
from recsys.serving.events import Event, SQLiteEvents
from recsys.serving.events.followed_values import FollowedValues


def test_the_features_are_those_of_the_alias(published: Published, tmp_path: Path) -> None:
    store = ReleaseStore(published.store)
    folder, manifest = store.open(published.versions[0])
    expected = QueryEncoder(folder, manifest).event_values
    assert read_event_values(folder, manifest) == expected
    for version in published.versions:
        shutil.copytree(published.store / version, tmp_path / "store" / version)
    aliases = ReleaseStore(tmp_path / "store")
    aliases.set_alias("live", published.versions[0], why="test")
    now = itertools.count()
    values = FollowedValues(str(aliases.root), "live", clock=lambda: float(next(now)))
    assert values() == expected
    aliases.set_alias("live", published.versions[1], why="test")
    assert values() == expected
    assert values._version == published.versions[1]


def test_a_release_that_cannot_be_read_is_tried_again(
    published: Published, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for version in published.versions:
        shutil.copytree(published.store / version, tmp_path / "store" / version)
    aliases, now = ReleaseStore(tmp_path / "store"), [0.0]
    aliases.set_alias("live", published.versions[0], why="test")
    values = FollowedValues(str(aliases.root), "live", clock=lambda: now[0])
    aliases.set_alias("live", published.versions[1], why="test")
    manifest = tmp_path / "store" / published.versions[1] / MANIFEST
    away = manifest.rename(tmp_path / "away")
    for now[0] in (2.0, 4.0, 6.0):
        values()
    assert (values._version, caplog.text.count("events are checked by")) == (published.versions[0], 1)
    away.rename(manifest)
    now[0] = 70.0
    values()
    assert values._version == published.versions[1]


def test_the_command_stores_until_it_is_told_to_end(
    published: Published, broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.serving.observability.logs.log_as_json", lambda _: None)
    SuppressionList(tmp_path / "suppressed").add([hash_of("gone")])
    sent = [{"user_id": user, "item_id": n} for n in range(5) for user in ("stays", "gone")]
    topic, path = broker.topic(*sent), tmp_path / "events.sqlite"
    store = SQLiteEvents(path)

    def end() -> None:
        for _ in range(6000):
            if len(store.history("stays")) == 5:
                break
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    ending = threading.Thread(target=end)
    ending.start()
    main([
        "ingest", f"kafka={broker.address}", f"topic={topic}", f"store={published.store}", f"events={path}",
        f"release={published.versions[0]}", f"suppressed={tmp_path}/suppressed", "metrics_port=0",
        "+kafka_options.group.protocol=consumer",
    ])  # fmt: skip
    ending.join()
    assert store.history("stays") == [Event(n, NOW) for n in range(5)]
    assert store.history("gone") == []
    store.close()
