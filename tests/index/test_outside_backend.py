"""An index class of another package is built, saved, opened and searched; what could not be opened is not saved."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from recsys.core.errors import UserError
from recsys.index import Auto, Effort, Exact, load_index, save_index, tune

PACKAGE = '''
import numpy as np

from recsys.index import Effort, Exact, exact_search


class Halves:
    """Searches one half of the items, or both at full breadth; the halves are drawn and stored in a file."""

    refine_factors = (1,)
    is_exact = False
    max_breadth = 2

    def __init__(self, seed=0):
        self.seed, self.effort = seed, Effort(1)
        self._embeddings, self._half = np.empty((0, 0), np.float32), np.empty(0, bool)

    num_items = property(lambda self: len(self._embeddings))
    dim = property(lambda self: self._embeddings.shape[1])

    def least_breadth(self, k):
        return 1

    def build(self, embeddings):
        self._embeddings = embeddings
        self._half = np.random.default_rng(self.seed).random(len(embeddings)) < 0.5

    def search(self, queries, k, *, allow=None, exclude=None):
        rows = np.flatnonzero(self._half) if self.effort.breadth == 1 else None
        return exact_search(self._embeddings, queries, k=k, rows=rows, exclude=exclude)

    def save(self, folder):
        np.save(folder / "item_index.half.npy", self._half)
        return ["item_index.half.npy"]

    def load(self, folder, embeddings, *, names):
        self._embeddings, self._half = embeddings, np.load(folder / "item_index.half.npy", allow_pickle=False)

    def parameters(self):
        return {"seed": self.seed}


class Unwritable(Halves):
    def parameters(self):
        return {"seed": {1, 2}}


class Stray(Halves):
    def save(self, folder):
        return ["tree.bin"]


class Unfinished(Exact):
    load = None


def make():
    class Inner(Halves):
        pass

    return Inner()
'''


@pytest.fixture
def backends(tmp_path, monkeypatch):
    package = tmp_path / "outside/my_backends"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "halves.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(package.parent))
    import my_backends.halves as module

    yield module
    for name in ("my_backends", "my_backends.halves"):
        sys.modules.pop(name, None)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "release"
    path.mkdir()
    return path


def test_it_is_tuned_saved_opened_and_searched(backends, items, queries, folder):
    index = Auto(backends.Halves(seed=3), exact_below=100)
    index.build(items)
    assert tune(index, items, queries=queries, recall_target=1.0, k=10).chosen.breadth == 2
    assert save_index(index, folder) == ["item_index.json", "item_index.half.npy"]
    assert json.loads((folder / "item_index.json").read_text())["class"] == "my_backends.halves.Halves"
    loaded = load_index(folder, items)
    assert type(loaded) is backends.Halves
    assert (loaded.seed, loaded.effort) == (3, Effort(2, 1, 10))
    for effort in (Effort(2), Effort(1)):
        index.effort = loaded.effort = effort
        for found, expected in zip(loaded.search(queries, 10), index.search(queries, 10), strict=True):
            np.testing.assert_array_equal(found, expected)
    # The last effort searched one half, so the file with the halves was read.
    assert (loaded.search(queries, 10)[1] != Exact.search(exact_index(items), queries, 10)[1]).any()


def exact_index(items: np.ndarray) -> Exact:
    index = Exact()
    index.build(items)
    return index


def test_its_files_are_checked_like_ours(backends, items, folder):
    index = backends.Halves()
    index.build(items)
    save_index(index, folder)
    path = folder / "item_index.half.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"item_index\.half\.npy: damaged, its sha256"):
        load_index(folder, items)
    path.unlink()
    with pytest.raises(UserError, match=r"item_index\.half\.npy: missing"):
        load_index(folder, items, verify=False)


def forget(monkeypatch):
    """Make the package as unknown to this process as to one that opens a release first."""
    for name in ("my_backends", "my_backends.halves"):
        monkeypatch.delitem(sys.modules, name)


def test_an_untrusted_package_is_not_imported(backends, items, folder, monkeypatch):
    index = backends.Halves()
    index.build(items)
    save_index(index, folder)
    forget(monkeypatch)
    with pytest.raises(UserError, match="set the environment variable RECSYS_TRUST=my_backends"):
        load_index(folder, items)
    assert "my_backends" not in sys.modules
    monkeypatch.setenv("RECSYS_TRUST", "other,my_backends")
    assert type(load_index(folder, items)).__name__ == "Halves"


def test_a_release_names_the_package_that_is_not_installed(backends, items, folder, monkeypatch):
    index = backends.Halves()
    index.build(items)
    save_index(index, folder)
    forget(monkeypatch)
    monkeypatch.setenv("RECSYS_TRUST", "my_backends")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not Path(path, "my_backends").exists()])
    with pytest.raises(UserError) as caught:
        load_index(folder, items)
    assert f"{folder / 'item_index.json'}: " in str(caught.value)
    assert "package 'my_backends' is not installed" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ("Unwritable", r"Unwritable\.parameters\(\) does not fit into JSON"),
        ("Stray", r"Stray\.save wrote 'tree\.bin', expected names that begin with 'item_index\.'"),
        ("Unfinished", r"Unfinished does not implement recsys\.index\.Index; it lacks load"),
        ("make", r"make\.<locals>\.Inner cannot be imported by this name; define it at the top level"),
    ],
)
def test_an_index_that_could_not_be_opened_is_not_saved(backends, make, message, items, folder):
    index = getattr(backends, make)()
    index.build(items)
    with pytest.raises(UserError, match=message):
        save_index(index, folder)
    assert not (folder / "item_index.json").exists()
