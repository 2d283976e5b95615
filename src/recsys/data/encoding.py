"""Encoder of feature values, used by preparation, batch retrieval and serving. Imports no torch.

A value of another type than in training (text instead of an integer, for example) counts as unknown, because requests
come from outside. Only a vector of another width is an error.
"""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from bisect import bisect_left
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from recsys.core.columns import Column, Dense, Ragged, distinct
from recsys.core.errors import UserError
from recsys.core.schema import FIRST_CODE, MISSING, UNKNOWN, Feature
from recsys.core.types import Float32Array, Float64Array, Int64Array

# For at most this many values a binary search is faster than the hash table that `index_in` builds at each call.
_FEW = 64
_LARGEST = float(np.finfo(np.float32).max)
_ASCII_WORD = re.compile(r"\w+")
_INTEGER = r"^[+-]?[0-9]{1,18}$"
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$"


class FeatureEncoder:
    """Encoder of the values of one column.

    Args:
        feature: description of the column.
        vocabulary: values of a categorical feature in the order of their codes (row r is code r + 2), else None.
        folder: folder that the paths of images are relative to.
    """

    def __init__(self, feature: Feature, vocabulary: pa.Array | None, *, folder: str = "") -> None:
        if feature.has_vocabulary != (vocabulary is not None):
            raise ValueError(f"{feature.key}: a vocabulary belongs to categorical features, and only to them")
        self.feature, self._folder = feature, folder
        self.vocabulary = None if vocabulary is None else plain(vocabulary)

    def encode(self, values: pa.Array | pa.ChunkedArray) -> Column:
        """Return encoded rows, one for each of `values`.

        Raises:
            UserError: If a vector has another width than the feature, or values of a vector feature are no vectors.
        """
        values = plain(values)
        kind = self.feature.kind
        if kind == "categorical":
            return Dense(self._codes(values))
        if kind == "multi_categorical":
            return self._bags(values)
        if kind == "numeric":
            with np.errstate(over="ignore"):
                standardised = (to_floats(values) - self.feature.mean) / self.feature.std
            return Dense(standardised.clip(-_LARGEST, _LARGEST).astype(np.float32))
        if self.feature.encoder:
            return Dense(self._encoded(values))
        if kind == "vector":
            return Dense(to_vectors(values, self.feature.size, name=self.feature.key))
        return self._words(values)

    def _encoded(self, values: pa.Array) -> Float32Array:
        """Return the vectors of texts or of images. An empty text is missing."""
        from recsys.data.content_encoders import image_path, open_encoder  # noqa: PLC0415  (serving reads no content)

        coded = as_type(values, pa.string()).dictionary_encode()
        texts = coded.dictionary.to_pylist()
        vectors = np.full((len(texts) + 1, self.feature.size), np.nan, np.float32)
        if filled := [row for row, text in enumerate(texts) if text.strip()]:
            encoder = open_encoder(self.feature.encoder, self.feature.encoder_digest)
            if self.feature.encoder_kind == "image":
                vectors[filled] = encoder.images([image_path(self._folder, texts[row]) for row in filled])
            else:
                vectors[filled] = encoder.texts([texts[row] for row in filled])
        # A null selects the last row.
        rows: Float32Array = vectors[np.asarray(coded.indices.cast(pa.int64()).fill_null(-1))]
        return rows

    def _codes(self, values: pa.Array) -> npt.NDArray[np.int32]:
        assert self.vocabulary is not None
        typed = as_type(values, self.vocabulary.type)
        found = self._positions(typed)
        codes = np.where(found >= 0, found + FIRST_CODE, UNKNOWN)
        codes[_is_null(values)] = MISSING
        return codes.astype(np.int32)

    def _positions(self, values: pa.Array) -> Int64Array:
        assert self.vocabulary is not None
        if not len(self.vocabulary):
            return np.full(len(values), -1, np.int64)
        if len(values) > _FEW:
            found = pc.index_in(values, value_set=self.vocabulary, skip_nulls=True)
            return np.asarray(found.cast(pa.int64()).fill_null(-1))
        positions = np.full(len(values), -1, np.int64)
        for row, value in enumerate(values.to_pylist()):
            if value is not None:
                place = bisect_left(self._order, value, key=self._value)
                if place < len(self._order) and self._value(self._order[place]) == value:
                    positions[row] = self._order[place]
        return positions

    @cached_property
    def _order(self) -> Int64Array:
        return np.asarray(pc.sort_indices(self.vocabulary)).astype(np.int64)

    def _value(self, position: np.int64) -> int | str | bool:
        assert self.vocabulary is not None
        value: int | str | bool = self.vocabulary[int(position)].as_py()
        return value

    def _bags(self, values: pa.Array) -> Ragged:
        num_rows = len(values)
        if _is_list(values.type):
            rows = np.asarray(pc.list_parent_indices(values)).astype(np.int64)
            values = plain(pc.list_flatten(values))
        else:
            rows = np.arange(num_rows)
        present = ~_is_null(values)
        codes = self._codes(values)[present]
        size = self.feature.size
        pairs = distinct(rows[present] * size + codes)
        return _ragged(pairs // size, (pairs % size).astype(np.int32), num_rows=num_rows)

    def _words(self, values: pa.Array) -> Ragged:
        # Each distinct text is split once. Python compiles an expression once, Arrow at every call.
        coded = as_type(values, pa.string()).dictionary_encode()
        size = self.feature.size
        words_of = [_split(text.lower()) for text in coded.dictionary.to_pylist()]
        codes = {word: word_code(word, size) for word in {word for words in words_of for word in words}}
        bounds = np.cumsum([0, *map(len, words_of)])
        bags = Ragged(np.array([codes[word] for words in words_of for word in words], np.int32), bounds)
        rows = np.flatnonzero(~_is_null(values))
        found = bags.take(np.asarray(coded.indices.drop_null()).astype(np.int64))
        return _ragged(np.repeat(rows, np.diff(found.offsets)), found.values, num_rows=len(values))


def _split(text: str) -> list[str]:
    """Return the runs of letters, marks, digits and underscores of any script."""
    return (_ASCII_WORD if text.isascii() else _any_word()).findall(text)


@functools.cache
def _any_word() -> re.Pattern[str]:
    # `\w` lacks marks, such as the vowel signs of Indic scripts. This class has them and is five times slower.
    marks = "".join(c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c).startswith("M"))
    return re.compile(f"[\\w{marks}]+")


def word_code(word: str, size: int) -> int:
    """Return the code of a word among `size` codes, equal in every process and on every machine; 0 if it is empty."""
    if not word:
        return MISSING
    return FIRST_CODE + xxhash.xxh3_64_intdigest(word.encode()) % (size - FIRST_CODE)


def plain(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return one contiguous array, without dictionaries and large or view types."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        values = values.cast(pa.string())
    return values


def as_type(values: pa.Array, target: pa.DataType) -> pa.Array:
    """Return `values` as the type `target`, null if a value cannot be converted."""
    values = plain(values)
    if values.type == target:
        return values
    if pa.types.is_integer(target):
        if pa.types.is_string(values.type):
            values = pc.if_else(pc.match_substring_regex(values, _INTEGER), values, None)
        elif pa.types.is_uint64(values.type):
            values = pc.if_else(pc.less_equal(values, pa.scalar(2**63 - 1, pa.uint64())), values, None)
        elif pa.types.is_floating(values.type):
            floats = np.asarray(values.cast(pa.float64()).fill_null(np.nan))
            with np.errstate(invalid="ignore"):
                whole = (np.floor(floats) == floats) & (np.abs(floats) < 2.0**53)
            values = pa.array(np.where(whole, floats, 0).astype(np.int64), mask=~whole)
    try:
        return values.cast(target)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.nulls(len(values), target)


def to_floats(values: pa.Array) -> Float64Array:
    """Return numbers as float64, nan for missing and infinite ones. Dates and times become seconds."""
    values = plain(values)
    kind = values.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        micros = np.asarray(values.cast(pa.timestamp("us"), safe=False).cast(pa.int64()).fill_null(0))
        floats = np.where(_is_null(values), np.nan, micros / 1e6)
    else:
        if pa.types.is_string(kind):
            values = pc.if_else(pc.match_substring_regex(values, _NUMBER), values, None)
        elif pa.types.is_boolean(kind):
            values = values.cast(pa.int8())
        try:
            floats = np.array(values.cast(pa.float64(), safe=False).fill_null(np.nan))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            floats = np.full(len(values), np.nan)
    return np.where(np.isfinite(floats), floats, np.nan)


def to_vectors(values: pa.Array, width: int, *, name: str) -> Float32Array:
    """Return vectors float32 [R, width]. A missing vector, or one with an entry that is no number, is a row of nan.

    Args:
        values: lists of numbers.
        width: length of every vector.
        name: name of the feature in messages.

    Raises:
        UserError: If a vector has another width, or the values are not lists.
    """
    values = plain(values)
    vectors = np.full((len(values), width), np.nan, np.float32)
    if pa.types.is_null(values.type):
        return vectors
    if not _is_list(values.type):
        raise UserError(f"{name}: found {values.type}, expected a list of {width} numbers")
    present = ~_is_null(values)
    lengths = np.asarray(pc.list_value_length(values).fill_null(width))
    if len(others := np.unique(lengths[lengths != width])):
        raise UserError(f"{name}: found a vector of length {others[0]}, expected {width} as in training")
    with np.errstate(over="ignore"):
        vectors[present] = to_floats(pc.list_flatten(values)).reshape(-1, width)
    vectors[~np.isfinite(vectors).all(axis=1)] = np.nan
    return vectors


def _is_null(values: pa.Array) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.is_null(values))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _ragged(rows: Int64Array, codes: npt.NDArray[np.int32], *, num_rows: int) -> Ragged:
    offsets = np.zeros(num_rows + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=num_rows), out=offsets[1:])
    return Ragged(codes, offsets)
