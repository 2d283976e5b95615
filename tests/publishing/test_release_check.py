"""A written release is opened and queried before an alias moves, whatever its index backend."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from commands import REPOSITORY, run_all
from forging import copy_release, pair_again, seal
from publishing import Published

from recsys.core.errors import UserError
from recsys.experiments.trained_run import load_run
from recsys.index import Exact, IVFFlat, save_index
from recsys.publishing import release_check
from recsys.publishing.promote import promote
from recsys.publishing.release_check import IndexQueries, check_release, index_recall
from recsys.release import manifest as manifests
from recsys.release.manifest import FileEntry, Manifest
from recsys.release.runtime.retriever import Answer, Retriever
from recsys.release.store import ReleaseStore

ITEMS = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.0, -1.0]], np.float32)


class Fixed(Exact):
    """Returns the same rows for every query."""

    def __init__(self, *rows: int) -> None:
        super().__init__()
        self.rows = rows

    def search(self, queries, k, **_):
        return np.full((len(queries), k), 99.0, np.float32), np.array([self.rows[:k]] * len(queries))


class Forgetful(Exact):
    """An approximate index that finds the best item, and then the worst ones."""

    is_exact = False

    def search(self, queries, k, **_):
        scores, rows = super().search(queries, self.num_items)
        kept = [0, *range(self.num_items - k + 1, self.num_items)]
        return scores[:, kept], rows[:, kept]


class Unreadable(Exact):
    """Is saved, but cannot be read again."""

    def load(self, folder, embeddings, *, names):  # noqa: ARG002
        raise UserError(f"{folder}: unreadable")


def test_recall_counts_true_inner_products_and_not_the_scores_of_the_index() -> None:
    queries = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
    # The best two are rows 0 and 1 for the first query, and rows 2 and 1 for the second.
    exactly = IndexQueries.of(ITEMS, queries, k=2)
    for rows, recall in (((0, 1), 0.75), ((2, 0), 0.5), ((3, -1), 0.0)):
        assert index_recall(Fixed(*rows), ITEMS, exactly) == recall
    exact = Exact()
    exact.build(ITEMS)
    assert index_recall(exact, ITEMS, exactly) == 1.0


def test_a_release_whose_index_cannot_be_opened_gets_one_clear_error(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if tables were large: they lie in files while the release is made.
    monkeypatch.setattr("recsys.publishing.promote.LARGE_BYTES", 0)
    monkeypatch.setattr("recsys.publishing.onnx_export.INLINE_BYTES", 0)
    hashed, describe = Counter[str](), manifests.describe_file

    def counted(path: Path) -> FileEntry:
        hashed[path.relative_to(next(one for one in path.parents if one.parent == tmp_path)).as_posix()] += 1
        return describe(path)

    monkeypatch.setattr(manifests, "describe_file", counted)
    store = ReleaseStore(tmp_path)
    with pytest.raises(UserError, match="it cannot be opened and queried") as caught:
        promote(load_run(published.runs[0]), Unreadable(), store=store, model="test", shards=2)
    (version,) = store.versions()
    assert f"no alias was moved, and the release lies in {tmp_path / version}" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [version]
    one, other = tmp_path / version, published.store / published.versions[0]
    assert (one / "item_embeddings.npy").read_bytes() == (other / "item_embeddings.npy").read_bytes()
    assert (one / "user_tower.onnx.data").exists()
    # Hashing large files takes as long as writing them.
    assert hashed == dict.fromkeys(Manifest.load(one).files, 1)
    # What the exported towers answer to the same requests.
    first, second = (np.load(folder / "self_check.npz")["embeddings"] for folder in (one, other))
    np.testing.assert_allclose(first, second, atol=1e-6)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("recall", r"its index finds 0\.\d+ of the exact top 9, expected the recorded 1.0000"),
        (
            "seen",
            "to a history of 0 events it answers 8 items, 8 distinct and 0 of the history; expected 9 other items",
        ),
        ("scores", "a history of 0 events gets scores that are not finite"),
        ("crash", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_release_that_answers_otherwise_is_refused(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str, message: str
) -> None:
    retrieve = Retriever.retrieve

    def opened(folder: Path, manifest: Manifest, *, threads: int) -> Retriever:
        retriever = Retriever(folder, manifest, threads=threads)
        if spoil == "recall":
            retriever.index = Fixed(*range(9))
        return retriever

    def answers(self: Retriever, queries, k):
        found = retrieve(self, queries, k=k)
        if spoil == "crash":
            raise ZeroDivisionError("division by zero")
        if spoil == "seen":
            return [Answer(a.item_ids[1:], a.scores[1:], a.history_length, a.unknown_items) for a in found]
        return [Answer(a.item_ids, a.scores * np.float32("nan"), a.history_length, a.unknown_items) for a in found]

    monkeypatch.setattr(release_check, "Retriever", opened)
    if spoil != "recall":
        monkeypatch.setattr(Retriever, "retrieve", answers)
    with pytest.raises(UserError, match=message):
        promote(load_run(published.runs[0]), IVFFlat(), store=ReleaseStore(tmp_path), model="test", recall_target=1.0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (None, None),
        ("self_check", "its part 1/3 cannot be opened and queried .*does not return the items of self_check.npz"),
        (
            "recall",
            r"index of its part 1/3 finds 0\.5000 of the exact top 2 of the part, expected the recorded 1.0000",
        ),
    ],
)
def test_every_part_is_opened_and_queried(
    published: Published, tmp_path: Path, spoil: str | None, message: str | None
) -> None:
    folder = copy_release(published.store / published.versions[1], tmp_path)
    part, users = folder / "item_index.parts/1-of-3", np.load(folder / "self_check.npz")["embeddings"]
    if spoil == "self_check":
        check = dict(np.load(part / "self_check.npz"))
        np.savez(part / "self_check.npz", **check | {"best_scores": check["best_scores"] + 1})
    elif spoil == "recall":
        index = Forgetful()
        index.build(np.load(part / "item_embeddings.npy"))
        save_index(index, part)
    pair_again(folder)
    folder, run, store = seal(folder), load_run(published.runs[1]), ReleaseStore(tmp_path)
    queries = IndexQueries.of(np.load(folder / "item_embeddings.npy"), users, k=6)
    if message is None:
        check_release(run, store, version=folder.name, queries=queries, recall=1.0)
        return
    with pytest.raises(UserError, match=message) as caught:
        check_release(run, store, version=folder.name, queries=queries, recall=1.0)
    assert f"no alias was moved, and the release lies in {folder}" in str(caught.value)


OUTSIDE = '''
import numpy as np

from recsys.index.exact import Exact

class Rotated(Exact):
    """Keeps its embeddings rotated by a matrix that it draws, in a file of its own."""

    def build(self, embeddings):
        width = embeddings.shape[1]
        self.rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))[0].astype("float32")
        super().build(np.ascontiguousarray(embeddings @ self.rotation))

    def search(self, queries, k, *, allow=None, exclude=None):
        return super().search(np.ascontiguousarray(queries @ self.rotation), k, allow=allow, exclude=exclude)

    def save(self, folder):
        np.save(folder / "item_index.rotation.npy", self.rotation)
        return ["item_index.rotation.npy"]

    def load(self, folder, embeddings, *, names):
        self.rotation = np.load(folder / names[0])
        super().load(folder, np.ascontiguousarray(embeddings @ self.rotation), names=names)

class Broken(Exact):
    def load(self, folder, embeddings, *, names):
        raise RuntimeError("the library of this backend is of another version")
'''


def test_index_py_leaves_the_alias_where_it_was(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside_index.py").write_text(OUTSIDE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(REPOSITORY / "src")]))
    words = ["index.py", f"run={published.runs[0]}", f"store={tmp_path / 'store'}"]
    jobs = [{"args": [*words, "index=exact", f"index._target_=outside_index.{name}"]} for name in ("Rotated", "Broken")]
    (good, log), (bad, error) = run_all(jobs, tmp_path)
    # A backend of an outside package is published and opened like ours.
    assert good == 0, log
    assert bad == 1
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    store = ReleaseStore(tmp_path / "store")
    version = log.splitlines()[-1]
    (other,) = {*store.versions()} - {version}
    assert f"no alias was moved, and the release lies in {store.root / other}" in line
    assert store.aliases() == {"candidate": version}
