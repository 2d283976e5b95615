"""The encoder: hand-computed codes, and agreement with plain Python on anything."""

from __future__ import annotations

import datetime
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.core.columns import Dense, Ragged
from recsys.core.errors import UserError
from recsys.core.schema import Feature, Kind
from recsys.data.encoding import FeatureEncoder, word_code


def feature(kind: Kind, size: int = 1, **moments: float) -> Feature:
    return Feature("f", "items", kind, "item", size, **moments)


def categorical(vocabulary: list[Any], kind: Kind = "categorical") -> FeatureEncoder:
    return FeatureEncoder(feature(kind, len(vocabulary) + 2), pa.array(vocabulary))


def lists(column: Any) -> list[list[int]]:
    assert isinstance(column, Ragged)
    return [column.values[a:b].tolist() for a, b in zip(column.offsets[:-1], column.offsets[1:], strict=True)]


def codes(column: Any) -> list[int]:
    assert isinstance(column, Dense)
    assert column.values.dtype == np.int32
    return column.values.tolist()


def test_codes_of_a_category() -> None:
    values = ["b", None, "new", "a", ""]
    assert codes(categorical(["b", "a"]).encode(pa.array(values))) == [2, 0, 1, 3, 1]
    chunks = pa.chunked_array([pa.array(["a"]).dictionary_encode(), pa.array(["b"]).dictionary_encode()])
    assert codes(categorical(["b", "a"]).encode(chunks)) == [3, 2]
    assert codes(categorical(["b"]).encode(pa.array(["b"], pa.large_string()))) == [2]
    assert codes(categorical(["b"]).encode(pa.chunked_array([], pa.string()))) == []


def test_values_of_another_type_are_read_as_the_trained_one_or_unknown() -> None:
    encoder = categorical([7, -3])
    assert codes(encoder.encode(pa.array(["7", "-3", "seven", None, "7.5"]))) == [2, 3, 1, 0, 1]
    assert codes(encoder.encode(pa.array([7.0, 7.5, math.nan, None, 1e300]))) == [2, 1, 1, 0, 1]
    assert codes(encoder.encode(pa.array([7, 2**64 - 1], pa.uint64()))) == [2, 1]
    assert codes(encoder.encode(pa.array([[7]]))) == [1]
    assert codes(encoder.encode(pa.nulls(2))) == [0, 0]
    assert codes(categorical(["7"]).encode(pa.array([7, 8]))) == [2, 1]
    assert codes(categorical([True, False]).encode(pa.array([False, True, None]))) == [3, 2, 0]


@given(st.lists(st.one_of(st.none(), st.integers(-5, 5)), max_size=150), st.sets(st.integers(-5, 5)))
def test_codes_agree_with_a_dictionary(values: list[int | None], known: set[int]) -> None:
    # Up to 64 values and more than that take different ways.
    vocabulary = sorted(known, key=lambda value: (value % 3, value))
    table = {value: row + 2 for row, value in enumerate(vocabulary)} | {None: 0}
    encoder = FeatureEncoder(feature("categorical", len(known) + 2), pa.array(vocabulary, pa.int64()))
    assert codes(encoder.encode(pa.array(values, pa.int64()))) == [table.get(value, 1) for value in values]


@given(st.lists(st.one_of(st.none(), st.text(max_size=2)), max_size=150), st.sets(st.text(max_size=2)))
def test_codes_of_strings_agree_with_a_dictionary(values: list[str | None], known: set[str]) -> None:
    vocabulary = sorted(known, key=lambda value: (len(value), value))
    table = {value: row + 2 for row, value in enumerate(vocabulary)} | {None: 0}
    encoder = FeatureEncoder(feature("categorical", len(known) + 2), pa.array(vocabulary, pa.string()))
    assert codes(encoder.encode(pa.array(values, pa.string()))) == [table.get(value, 1) for value in values]


def test_a_bag_holds_each_code_once_and_no_nulls() -> None:
    encoder = categorical(["x", "y"], "multi_categorical")
    bags = [["y", "x", "y"], None, [], [None], ["new", "newer", "x"]]
    assert lists(encoder.encode(pa.array(bags))) == [[2, 3], [], [], [], [1, 2]]
    assert lists(encoder.encode(pa.array(bags, pa.large_list(pa.large_string())))) == [[2, 3], [], [], [], [1, 2]]
    assert lists(encoder.encode(pa.array(["x", None]))) == [[2], []]
    assert lists(encoder.encode(pa.nulls(1))) == [[]]


@given(st.lists(st.one_of(st.none(), st.lists(st.one_of(st.none(), st.integers(0, 4)))), max_size=40))
def test_bags_agree_with_sets(bags: list[list[int | None] | None]) -> None:
    encoder = categorical([3, 1], "multi_categorical")
    table = {3: 2, 1: 3}
    expected = [sorted({table.get(v, 1) for v in bag or [] if v is not None}) for bag in bags]
    whole = pa.array([[0], *bags, [0]], pa.list_(pa.int64()))
    assert lists(encoder.encode(whole.slice(1, len(bags)))) == expected


def test_numbers_are_standardised_and_nan_is_missing() -> None:
    encoder = FeatureEncoder(feature("numeric", mean=10.0, std=2.0), None)
    column = encoder.encode(pa.array([10.0, 14.0, None, math.nan, math.inf]))
    assert isinstance(column, Dense)
    np.testing.assert_array_equal(column.values, np.array([0, 2, np.nan, np.nan, np.nan], np.float32))
    assert isinstance(column := encoder.encode(pa.array(["12", " 12", "many", None])), Dense)
    np.testing.assert_array_equal(column.values, np.array([1, np.nan, np.nan, np.nan], np.float32))
    assert isinstance(column := encoder.encode(pa.array([True, None])), Dense)
    np.testing.assert_array_equal(column.values, np.array([-4.5, np.nan], np.float32))
    moment = pa.array([datetime.datetime(1970, 1, 1, 0, 0, 12)])
    assert isinstance(column := encoder.encode(moment), Dense)
    assert column.values.tolist() == [1.0]
    assert isinstance(column := encoder.encode(pa.array([[1.0]])), Dense)
    assert np.isnan(column.values).all()


def test_a_vector_with_a_missing_entry_is_missing_completely() -> None:
    encoder = FeatureEncoder(feature("vector", 2), None)
    vectors = [[1.0, 2.0], None, [math.nan, 1.0], [None, 1.0]]
    for kind in (pa.list_(pa.float32()), pa.list_(pa.float64(), 2), pa.large_list(pa.float32())):
        column = encoder.encode(pa.array(vectors, kind))
        assert isinstance(column, Dense)
        assert column.values.shape == (4, 2)
        assert column.values[0].tolist() == [1.0, 2.0]
        assert np.isnan(column.values[1:]).all()
    assert isinstance(column := encoder.encode(pa.nulls(1)), Dense)
    assert np.isnan(column.values).all()
    assert isinstance(column := encoder.encode(pa.array([[1, 2]])), Dense)
    assert column.values.tolist() == [[1.0, 2.0]]


def test_a_vector_of_another_width_is_refused() -> None:
    encoder = FeatureEncoder(feature("vector", 2), None)
    with pytest.raises(UserError, match=r"items\.f: found a vector of length 3, expected 2"):
        encoder.encode(pa.array([[1.0, 2.0], [1.0, 2.0, 3.0]]))
    with pytest.raises(UserError, match=r"items\.f: found string, expected a list of 2 numbers"):
        encoder.encode(pa.array(["1"]))


def test_words_of_any_script_in_order() -> None:
    encoder = FeatureEncoder(feature("text", 2 + 1000), None)

    def expected(*words: str) -> list[int]:
        return [word_code(word, 1002) for word in words]

    texts = ["Blue  SHOES, blue!", None, "", "?!", "ÉCOLE d'été", "हिन्दी 東京", "snake_case x2"]
    assert lists(encoder.encode(pa.array(texts))) == [
        expected("blue", "shoes", "blue"),
        [],
        [],
        [],
        expected("école", "d", "été"),
        expected("हिन्दी", "東京"),
        expected("snake_case", "x2"),
    ]
    assert lists(encoder.encode(pa.nulls(2))) == [[], []]


@given(st.text(min_size=1), st.integers(3, 50))
def test_a_word_has_a_code_within_its_size(word: str, size: int) -> None:
    assert 2 <= word_code(word, size) < size


def test_a_word_has_the_same_code_in_every_process() -> None:
    program = "from recsys.data.encoding import word_code; print(word_code('blue', 32770))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(found.stdout) == word_code("blue", 32770) == BLUE


# Releases hold embeddings at these codes: a change of the hash would break them all.
BLUE = 9493


def test_the_encoder_imports_no_torch_and_no_pandas() -> None:
    program = "import sys, recsys.data.encoding; print([m for m in ('torch', 'pandas') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_vocabulary_belongs_to_categories() -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        FeatureEncoder(feature("categorical", 2), None)
