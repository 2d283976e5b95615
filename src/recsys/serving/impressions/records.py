"""Impressions, their ids, and batches of them, which stores keep as bytes. Imports no torch.

An id is the text of 15 random-looking bytes: the id of the batch (9), the place in it (2), and a check (4) that differs
for each impression. So nobody can make the id of another impression from one that was given out.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from recsys.serving.events import UserId

BATCH_BYTES, _PLACE_BYTES, _CHECK_BYTES = 9, 2, 4
_ID_BYTES = BATCH_BYTES + _PLACE_BYTES + _CHECK_BYTES
# Generator of answers of `/v1/similar`, which belong to no user.
SIMILAR = "similar"

ItemId = int | str

_URL_SAFE = bytes.maketrans(b"+/", b"-_")


class Impression(NamedTuple):
    """One served answer.

    Attributes:
        at: UTC seconds.
        user_id: user of the request; None for an anonymous one.
        version: release that answered.
        generator: name of the model of the release, or `similar`.
        item_ids: items of the answer, best first.
    """

    at: int
    user_id: UserId | None
    version: str
    generator: str
    item_ids: Sequence[ItemId]


class ImpressionKey(NamedTuple):
    """Parts of an impression id."""

    batch: bytes
    place: int
    check: bytes


class Batch(NamedTuple):
    """Impressions of one process, in their order, and the checks of their ids."""

    impressions: list[Impression]
    checks: bytes

    def find(self, key: ImpressionKey) -> Impression | None:
        """Return the impression of a key; None if the batch has no such impression."""
        begin = key.place * _CHECK_BYTES
        if key.place >= len(self.impressions) or self.checks[begin : begin + _CHECK_BYTES] != key.check:
            return None
        return self.impressions[key.place]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Batch)


class OpenBatch:
    """Batch that still takes impressions, up to `most`.

    It holds them encoded: the ids of thousands of items as objects would cost each request more than their encoding,
    because new ones would have to be written to memory that is in no cache.

    Attributes:
        name: id of the batch.
        users: user of each impression.
    """

    def __init__(self, most: int) -> None:
        self.name = os.urandom(BATCH_BYTES)
        # Three bytes are four letters, so that the ids of a batch begin with the same letters.
        self._begin = base64.urlsafe_b64encode(self.name).decode()
        self.users: list[UserId | None] = []
        self._encoded: list[msgspec.Raw] = []
        self._checks = os.urandom(_CHECK_BYTES * most)

    def add(self, impression: Impression) -> str:
        """Add an impression and return its id."""
        place = len(self.users)
        self._encoded.append(msgspec.Raw(_encoder.encode(impression)))
        self.users.append(impression.user_id)
        check = self._checks[place * _CHECK_BYTES : (place + 1) * _CHECK_BYTES]
        end = binascii.b2a_base64(place.to_bytes(_PLACE_BYTES) + check, newline=False).translate(_URL_SAFE)
        return self._begin + end.decode()

    def encode(self) -> bytes:
        """Return the batch as bytes."""
        return _encoder.encode((self._encoded, self._checks[: _CHECK_BYTES * len(self._encoded)]))

    @property
    def batch(self) -> Batch:
        """The impressions so far."""
        return _decoder.decode(self.encode())


def parse_id(text: str) -> ImpressionKey | None:
    """Return the parts of an impression id; None if the text is not one."""
    try:
        content = base64.b64decode(text.encode("ascii"), b"-_", validate=True)
    except ValueError:
        return None
    if len(content) != _ID_BYTES:
        return None
    place, check = content[BATCH_BYTES:-_CHECK_BYTES], content[-_CHECK_BYTES:]
    return ImpressionKey(content[:BATCH_BYTES], int.from_bytes(place), check)


def encode_batch(batch: Batch) -> bytes:
    """Return a batch as bytes."""
    return _encoder.encode((batch.impressions, batch.checks[: _CHECK_BYTES * len(batch.impressions)]))


def decode_batch(content: bytes) -> Batch | None:
    """Return a batch from its bytes; None if they are damaged."""
    try:
        return _decoder.decode(content)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
