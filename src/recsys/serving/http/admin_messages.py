"""Requests and responses of admin calls. The OpenAPI document is made from these types. Imports no torch.

Shapes: A new items, D dim.
"""

from __future__ import annotations

import hashlib
import random
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from recsys.serving.http.messages import MATRIX, Id

ItemEmbeddings = Annotated[np.ndarray, Meta(extra_json_schema=MATRIX)]


class VersionRequest(Struct, forbid_unknown_fields=True):
    """Version that an admin call (load, serve, unload, tower) is about; `model` is None if there is one model."""

    version: str
    model: str | None = None


class Canary(Struct, forbid_unknown_fields=True):
    """Share of the users, from 0 to 1, that a gateway gives this version to; 0 ends the canary."""

    version: str
    share: Annotated[float, Meta(ge=0, le=1)]

    def __contains__(self, user_id: object) -> bool:
        """Return True if a user gets the version: always the same for a user, random for requests without a user.

        The hash covers the version, so that different users are the first to get each new version.
        """
        if user_id is None:
            return random.random() < self.share
        digest = hashlib.blake2b(f"{self.version}:{user_id!r}".encode(), digest_size=8).digest()
        return int.from_bytes(digest) < self.share * 2**64


class RolloutLock(Struct, forbid_unknown_fields=True):
    """Lock of the rollout that changes the versions of a fleet.

    Attributes:
        token: random name of the rollout.
        owner: who runs it, for people.
        seconds: time after which the lock ends unless it is renewed; 0 gives it back.
        force: take it from another rollout, which then stops.
    """

    token: Annotated[str, Meta(min_length=8, max_length=64)]
    owner: Annotated[str, Meta(max_length=200)]
    seconds: Annotated[float, Meta(ge=0, le=600)]
    force: bool = False


class GatewayState(Struct):
    """State of a gateway after an admin call: versions of the loaded user towers, and the canary."""

    towers: list[str]
    canary: Canary | None


class ItemsRequest(Struct, forbid_unknown_fields=True):
    """New items for the index of a running host.

    Attributes:
        version: version of the item tower that computed the embeddings; other indexes refuse them.
        items: `item_id`, and values of the columns that the release's items have.
        embeddings: float32 [A, D], in the order of `items`.
        model: name of the model; None if the host has one model.
    """

    version: str
    items: list[dict[str, Any]]
    embeddings: ItemEmbeddings
    model: str | None = None


class TakedownRequest(Struct, forbid_unknown_fields=True):
    """Items that must never be shown again, in any version."""

    item_ids: list[Id]


class ChangesResponse(Struct):
    """Number of items that were added or taken down. The change is durable, and the next search shows it."""

    changed: int


class ForgetRequest(Struct, forbid_unknown_fields=True):
    """Users to erase; a number and the text of its digits are one user."""

    user_ids: Annotated[list[Id], Meta(min_length=1, max_length=1000)]


class SearchedFile(Struct):
    """A file that was searched for the bytes of forgotten users, and the number of places where they were found."""

    place: str
    bytes: int
    found: int


class ForgetResponse(Struct):
    """Data removed of some users, and the places that a search of the files found afterwards.

    Attributes:
        users: number of users.
        listed: users that were not on the list of forgotten users before; null if the list cannot be written.
        histories: histories that were removed.
        profiles: profiles that were removed.
        samples: request samples that were removed.
        searched: files that were searched.
    """

    users: int
    listed: int | None
    histories: int
    profiles: int
    samples: int
    searched: list[SearchedFile]
