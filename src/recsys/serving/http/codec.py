"""JSON of the API: messages to bytes and back, with errors that name the field. Imports no torch.

Embeddings and scores are numpy arrays in messages and lists of numbers in JSON.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, get_args
from urllib.parse import parse_qsl

import msgspec
import numpy as np

from recsys.core.errors import nearest
from recsys.serving.http.problems import Problem, bad_request

_MAX_PARAMETERS = 32
_UNKNOWN = re.compile("unknown field `(.+)`")


def _to_plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise NotImplementedError(f"{type(value).__name__} is not part of a message")


def _from_plain(kind: type, value: Any) -> Any:
    if kind is np.ndarray:
        try:
            array = np.array(value)
        except ValueError:
            array = np.array(None)
        if array.size and array.dtype.kind not in "iuf":
            raise ValueError("Expected lists of numbers, all of one length")
        with np.errstate(over="ignore"):
            return array.astype(np.float32)
    raise NotImplementedError(f"{kind.__name__} is not part of a message")


_encoder = msgspec.json.Encoder(enc_hook=_to_plain)


def encode(message: Any) -> bytes:
    """Return a message as JSON."""
    return _encoder.encode(message)


class Decoder:
    """Reader of one type of message: a Struct of `messages`, or a type made of them."""

    def __init__(self, kind: Any) -> None:
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind, dec_hook=_from_plain)
        self._fields = _fields(kind)

    def __call__(self, body: bytes) -> Any:
        """Decode a body, or raise `Problem` (400) whose `field` names the wrong field."""
        try:
            return self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _invalid(error, self._fields) from error


class QueryDecoder:
    """Reader of the parameters of a query string, which are the fields of a Struct."""

    def __init__(self, kind: Any) -> None:
        self._kind, self._fields = kind, _fields(kind)

    def __call__(self, query: bytes) -> Any:
        """Decode the parameters, or raise `Problem` (400) whose `field` names the wrong one."""
        try:
            pairs = parse_qsl(
                query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MAX_PARAMETERS
            )
        except ValueError as error:
            raise bad_request(f"query: found {query[:80]!r}, expected parameters as UTF-8 ({error})") from error
        given = dict(pairs)
        if len(given) < len(pairs):
            raise bad_request("query: found a parameter twice, expected each once")
        try:
            return msgspec.convert(given, self._kind, strict=False)
        except msgspec.ValidationError as error:
            raise _invalid(error, self._fields) from error


def _fields(kind: Any) -> list[str]:
    """Return the fields of a message, or of the messages of a list."""
    found = [one for one in (kind, *get_args(kind)) if isinstance(one, type) and issubclass(one, msgspec.Struct)]
    return [field.encode_name for one in found for field in msgspec.structs.fields(one)]


def _invalid(error: Exception, fields: Sequence[str]) -> Problem:
    """Split msgspec's message, ``REASON - at `$.FIELD` ``, into reason and field; hint at a misspelled field."""
    message, _, place = str(error).partition(" - at `$")
    field = place.rstrip("`").lstrip(".") or None
    if unknown := _UNKNOWN.search(message):
        message += nearest(unknown[1], fields)
        field = f"{field}.{unknown[1]}" if field else unknown[1]
    return bad_request(f"{field}: {message}" if field else message, field)
