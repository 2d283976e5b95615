"""Every request and answer of the HTTP API. The OpenAPI schema is made from these, so they are exact.

Embeddings and scores are numpy arrays on both sides and lists of numbers in between: `decoder` and `encode` translate.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType

from recsys.serving.http.problems import Problem, VersionNotHeld, bad_request

# Ids keep their type: 5 and "5" are different.
Id = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | Annotated[str, Meta(min_length=1)]
Value = bool | int | float | str
# Any number of features beside the keys that every event has: item_id, perhaps timestamp.
HistoryEvent = dict[str, Any]
K = Annotated[int, Meta(ge=1)]


class RetrieveRequest(Struct, forbid_unknown_fields=True):
    """What is asked for, and for whom; see the contract in `docs/serving.md`.

    Attributes:
        user_id: whose stored history and profile are used; None: nobody's.
        k: items wanted.
        history: events, oldest first, used instead of the stored ones.
        user: profile features, over the stored ones.
        request: request features.
        exclude: items that must not be shown.
        exclude_seen: leave out the items of the whole history.
        filter: column of the release's items -> value or values.
        version: of the release that must answer, if a host holds it (else 409); None: the one that is served.
    """

    user_id: Id | None = None
    k: K = 100
    history: list[HistoryEvent] | None = None
    user: dict[str, Any] | None = None
    request: dict[str, Any] | None = None
    exclude: list[Id] | None = None
    exclude_seen: bool = True
    filter: dict[str, Value | list[Value]] | None = None
    version: str | None = None


class ScoredItem(Struct, gc=False):
    """One item of an answer."""

    item_id: int | str
    score: float


class RetrieveResponse(Struct, gc=False):
    """Ranked items, and which versions of user tower and index met in them.

    Attributes:
        items: best first; where a user has several embeddings, these take turns.
        version: of the release: user_tower_version and index_version, which are equal.
        user_tower_version: what the user tower says of itself.
        index_version: what the host said of the index that it searched.
        host: that searched.
        history_length: events that the tower read.
        unknown_items: distinct items of the history that the release does not know.
    """

    items: list[ScoredItem]
    version: str
    user_tower_version: str
    index_version: str
    host: str
    history_length: int
    unknown_items: list[int | str]


class SearchRequest(Struct, forbid_unknown_fields=True):
    """A search of one version of an index.

    Attributes:
        version: of the user tower that made the embeddings. A host that does not hold it refuses.
        embeddings: float32 [B, D], or [B, M, D] where a user has several (absent ones are zeros).
        k: items for each.
        filter: as in `RetrieveRequest`.
        exclude: B lists of items.
        model: None where the host has one model.
    """

    version: str
    embeddings: np.ndarray
    k: K = 100
    filter: dict[str, Value | list[Value]] | None = None
    exclude: list[list[Id]] | None = None
    model: str | None = None


class SearchResult(Struct):
    """Ranked items of one user: ids, and float32 scores of the same length."""

    item_ids: list[int | str]
    scores: np.ndarray


class SearchResponse(Struct):
    """Results of B users, and the version of the index that gave them."""

    version: str
    results: list[SearchResult]


class ModelVersions(Struct, omit_defaults=True):
    """Versions of one model on one host: the one that it serves, and all that it would answer for.

    `shard` is there only where the host searches a part of the corpus, as I/N.
    """

    serving: str | None
    loaded: list[str]
    shard: str | None = None


# GET /v1/version: model -> versions; GET /v1/hosts: host -> model -> versions, None for a host that does not answer.
Versions = dict[str, ModelVersions]
Hosts = dict[str, Versions | None]


class VersionRequest(Struct, forbid_unknown_fields=True):
    """Admin calls load, serve, unload and tower: of which model (None where there is one), which version."""

    version: str
    model: str | None = None


class CanaryRequest(Struct, forbid_unknown_fields=True):
    """Admin call canary, of a gateway: a share of the users, 0 to 1, gets this version; 0: none does."""

    version: str
    share: Annotated[float, Meta(ge=0, le=1)]


class GatewayState(Struct):
    """What a gateway says to admin calls: versions whose user towers it has loaded, and its canary."""

    towers: list[str]
    canary: CanaryRequest | None


class ItemsRequest(Struct, forbid_unknown_fields=True):
    """New items for a running index.

    Attributes:
        version: whose item tower made the embeddings; no other index takes them.
        items: `item_id`, and values of the columns that the release's items have.
        embeddings: float32 [A, D], in the order of `items`.
        model: None where the host has one model.
    """

    version: str
    items: list[dict[str, Any]]
    embeddings: np.ndarray
    model: str | None = None


class TakedownRequest(Struct, forbid_unknown_fields=True):
    """Items that must not be shown any more, whatever version is served."""

    item_ids: list[Id]


class ChangesResponse(Struct):
    """Acknowledgement: so many items were added, or taken down; it is durable, and the next search shows it."""

    changed: int


class EventsResponse(Struct):
    """Acknowledgement: so many events are durable, and the next retrieve uses them."""

    stored: int


class Status(Struct):
    """GET /healthz and /readyz."""

    status: str


class ErrorDetail(Struct, omit_defaults=True):
    """What is wrong, for programs (code) and people (message), and the field that it is about."""

    code: str
    message: str
    field: str | None = None


class ErrorResponse(Struct, omit_defaults=True):
    """Body of every answer that is not 2xx; `serving` and `loaded` come with 409."""

    error: ErrorDetail
    serving: str | None | UnsetType = UNSET
    loaded: list[str] | UnsetType = UNSET


def error_response(problem: Problem) -> ErrorResponse:
    """The body for a problem."""
    detail = ErrorDetail(problem.code, problem.message, problem.field)
    if isinstance(problem, VersionNotHeld):
        return ErrorResponse(detail, problem.serving, problem.loaded)
    return ErrorResponse(detail)


T = TypeVar("T")


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
    """As JSON."""
    return _encoder.encode(message)


class Decoder:
    """Reads one type of message.

    Args:
        kind: a Struct above, or a type made of them.
    """

    def __init__(self, kind: Any) -> None:
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind, dec_hook=_from_plain)

    def __call__(self, body: bytes) -> Any:
        """The message.

        Raises:
            Problem: 400, with the field that is wrong.
        """
        try:
            return self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _refusal(error) from error


def _refusal(error: Exception) -> Problem:
    """From what msgspec says: `what - at `$.path``."""
    message, _, place = str(error).partition(" - at `$")
    field = place.rstrip("`").lstrip(".") or None
    return bad_request(f"{field}: {message}" if field else message, field)
