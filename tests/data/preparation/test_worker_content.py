"""What a worker does with texts and images, without an engine."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recsys.core.types import Float32Array
from recsys.data import content_encoders
from recsys.data.content_encoders import ContentEncoder, open_encoder
from recsys.data.preparation.worker_content import WorkerContent, to_rows


class Lengths:
    """A model whose vectors are the length of a text and 1. It notes what it computes."""

    def __init__(self) -> None:
        self.computed: list[str] = []

    def encode(self, texts: list[str], **_: Any) -> Float32Array:
        self.computed += texts
        return np.array([[len(text), 1.0] for text in texts], np.float32)


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> Lengths:
    model = Lengths()
    monkeypatch.setattr(ContentEncoder, "_model", model)
    content_encoders._open.cache_clear()
    return model


def content_of(model: Path, cache: Path, **changed: Any) -> WorkerContent:
    model.mkdir(exist_ok=True)
    (model / "modules.json").write_text("[]")
    digest = ContentEncoder(str(model)).digest
    given = {"encoder": str(model), "encoder_digest": digest, "kind": "text", "cache": f"{cache}/{digest}"}
    return WorkerContent(**given | {"folder": "", "root": str(model.parent)} | changed)


def encoded(content: WorkerContent, values: list[str | None]) -> pa.Table:
    """Return the rows of both functions, with the rows between them in the order of digests and two in a batch."""
    batch = pa.record_batch([pa.array(range(len(values)), pa.int64()), pa.array(values)], names=["row", "content"])
    named = pa.Table.from_batches(content.name(iter([batch]))).sort_by("digest")
    return pa.Table.from_batches(content.encode(iter(named.to_batches(max_chunksize=2)))).sort_by("row")


def test_each_content_is_computed_once_and_kept(tmp_path: Path, lengths: Lengths) -> None:
    content = content_of(tmp_path / "model", tmp_path / "cache")
    found = encoded(content, ["a", "bb", None, " ", "a", "ccc"])
    assert found["row"].to_pylist() == [0, 1, 4, 5]
    vectors = to_rows(found["vector"].combine_chunks(), 2)
    np.testing.assert_array_equal(vectors, [[1, 1], [2, 1], [1, 1], [3, 1]])
    assert sorted(lengths.computed) == ["a", "bb", "ccc"]
    again = encoded(content, ["ccc", "new", "a"])
    np.testing.assert_array_equal(to_rows(again["vector"].combine_chunks(), 2), [[3, 1], [3, 1], [1, 1]])
    assert sorted(lengths.computed) == ["a", "bb", "ccc", "new"]


def test_both_engines_read_each_others_cache(tmp_path: Path, lengths: Lengths) -> None:
    content = content_of(tmp_path / "model", tmp_path / "cache")
    encoder = open_encoder(content.encoder)
    encoder.cache = tmp_path / "cache"
    encoder.texts(["one"])
    encoded(content, ["one", "seven"])
    content_encoders._open.cache_clear()
    encoder = open_encoder(content.encoder)
    encoder.cache = tmp_path / "cache"
    np.testing.assert_array_equal(encoder.texts(["seven", "one"]), [[5, 1], [3, 1]])
    assert lengths.computed == ["one", "seven"]


def test_a_write_that_was_killed_does_not_count(tmp_path: Path, lengths: Lengths) -> None:
    content = content_of(tmp_path / "model", tmp_path / "cache")
    encoded(content, ["a"])
    [kept] = Path(content.cache).glob("*.npz")
    for name in (f".{kept.name}.7.part.npz", ".whole.7.part.npz"):
        (kept.parent / name).write_bytes(b"half")
    assert to_rows(encoded(content, ["a"])["vector"].combine_chunks(), 2).tolist() == [[1, 1]]
    assert lengths.computed == ["a"]


def test_a_worker_without_the_model_names_path_and_host(tmp_path: Path, lengths: Lengths) -> None:
    content = content_of(tmp_path / "model", tmp_path / "cache", encoder=f"{tmp_path}/elsewhere")
    (found,) = encoded(content, ["a", "b"]).to_pylist()
    assert found["problem"] == (
        f"encoder={tmp_path}/elsewhere: found no folder or installed package with a model (modules.json or "
        "config.json); expected one, or tfidf "
        f"(worker {socket.gethostname()}; each worker opens the model at this place)"
    )
    assert lengths.computed == []


@pytest.mark.parametrize(("content", "problem"), [(None, "missing"), (b"text", "no image that can be read")])
def test_a_worker_names_an_image_it_cannot_read(
    tmp_path: Path, lengths: Lengths, content: bytes | None, problem: str
) -> None:
    column = content_of(tmp_path / "model", tmp_path / "cache", kind="image", folder="pictures")
    if content is not None:
        (tmp_path / "pictures").mkdir()
        (tmp_path / "pictures/a.png").write_bytes(content)
    (found,) = encoded(column, ["a.png"]).to_pylist()
    assert found["place"] == "pictures/a.png"
    assert found["problem"].startswith(problem)
    assert found["problem"].endswith(f"on the worker {socket.gethostname()}")
    assert lengths.computed == []


def test_missing_vectors_are_rows_of_nan() -> None:
    vectors = pa.array([None, np.array([1, 2], np.float32).tobytes()], pa.binary())
    np.testing.assert_array_equal(to_rows(vectors, 2), [[np.nan, np.nan], [1, 2]])
