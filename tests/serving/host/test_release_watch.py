"""Files that change while they are served: answers stay, and the server says so."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from forging import TINY, copy_release, index, pair_again, seal

from recsys.core.errors import UserError
from recsys.index import IVFFlat
from recsys.release.files import read_embeddings, read_file
from recsys.release.manifest import EMBEDDINGS
from recsys.release.runtime.retriever import Query, Retriever
from recsys.release.store import ReleaseStore
from recsys.serving.host.release_watch import ReleaseWatch
from recsys.serving.host.releases import ReleaseCache
from recsys.serving.http.problems import Problem
from recsys.serving.observability.metrics import Metrics


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Arrays of other tests may still be in memory.
    monkeypatch.setattr("recsys.release.files._arrays", {})
    folder = copy_release(TINY, tmp_path)
    index(IVFFlat)(folder)
    pair_again(folder)
    return seal(folder)


def test_files_that_change_have_no_effect_on_what_was_opened(release: Path) -> None:
    retriever = Retriever.load(release.parent, release.name)
    query = Query(history=[{"item_id": retriever.items["item_id"][0].as_py()}])
    (before,) = retriever.retrieve([query], 5)
    for path in release.rglob("*"):
        if path.is_file():
            os.truncate(path, 0)
    (after,) = retriever.retrieve([query], 5)
    assert after.item_ids == before.item_ids
    assert after.scores.tolist() == before.scores.tolist()
    (narrow,) = retriever.retrieve([query], 5, filter={"item_id": before.item_ids})
    assert narrow.item_ids == before.item_ids


def test_a_file_that_changes_between_verification_and_reading_is_refused(release: Path) -> None:
    folder, manifest = ReleaseStore(release.parent).open(release.name)
    np.save(folder / EMBEDDINGS, np.load(folder / EMBEDDINGS)[::-1])
    with pytest.raises(UserError, match=f"{EMBEDDINGS}: changed since it was verified"):
        read_embeddings(folder, manifest)
    (folder / "config.yaml").write_text("")
    with pytest.raises(UserError, match="config.yaml: changed since it was verified"):
        read_file(folder, "config.yaml", manifest)
    with pytest.raises(UserError, match="changed since"):
        Retriever(folder, manifest)


@pytest.mark.parametrize("name", ["items.parquet", "item_index.faiss", "manifest.json", "unlisted"])
def test_a_change_on_disk_is_reported(release: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    releases, metrics = ReleaseCache(release.parent), Metrics()
    releases.open(release.name)
    watch = ReleaseWatch(releases, lambda: [release.name], metrics=metrics, seconds=60.0)
    asyncio.run(watch.check())
    watch.require_sound()
    content = (release / name).read_bytes() if name != "unlisted" else None
    with (release / name).open("ab") as file:
        file.write(b"x")
    with caplog.at_level(logging.ERROR, "recsys"):
        for _ in range(2):
            asyncio.run(watch.check())
    assert [name in record.getMessage() for record in caplog.records] == [True]
    assert metrics.value("recsys_release_changes_total") == 1
    with pytest.raises(Problem, match=name):
        watch.require_sound()
    (release / name).unlink() if content is None else (release / name).write_bytes(content)
    asyncio.run(watch.check())
    watch.require_sound()
