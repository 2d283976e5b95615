"""Requests and responses of the HTTP API. The OpenAPI document is made from these types. Imports no torch.

Shapes: B users, M embeddings of one user, D dim.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType

from recsys.serving.http.problems import Problem, VersionNotHeld

# Ids keep their type: 5 and "5" are different.
Id = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | Annotated[str, Meta(min_length=1)]
Value = bool | int | float | str
K = Annotated[int, Meta(ge=1)]
# Values of a column, or conditions: `not` with values, and the bounds `gt`, `gte`, `lt`, `lte`. All must hold.
Values = Value | list[Value]
Filter = dict[str, Values | dict[str, Values]]
Quotas = Annotated[dict[str, Annotated[int, Meta(ge=1)]], Meta(max_length=8)]

# Parts that Python's types leave open, because their names are the columns of a release.
_ID = {"anyOf": [{"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, {"type": "string"}]}
_PLAIN = {"type": ["number", "string", "boolean", "null"]}
_SECONDS = {"description": "UTC seconds, or a date or time as ISO 8601", "type": ["number", "string", "null"]}
_VECTOR = {"type": "array", "items": {"type": "number"}}
MATRIX = {"type": "array", "items": _VECTOR}
_EVENT = {
    "title": "Event",
    "type": "object",
    "description": "User, item, optional time (default: now), and values of the release's event features by name.",
    "properties": {"user_id": _ID, "item_id": _ID, "timestamp": _SECONDS},
    "required": ["user_id", "item_id"],
    "additionalProperties": {"anyOf": [_PLAIN, {"type": "array", "items": _PLAIN}]},
}
_HISTORY_EVENT = {
    "title": "HistoryEvent",
    "description": "Item, optional time, and values of the release's event and request features by name.",
    "properties": {"item_id": _ID, "timestamp": _SECONDS},
    "required": ["item_id"],
}

Scores = Annotated[np.ndarray, Meta(extra_json_schema=_VECTOR)]
UserEmbeddings = Annotated[np.ndarray, Meta(extra_json_schema={"anyOf": [MATRIX, {"type": "array", "items": MATRIX}]})]
# Keys: item_id, optionally timestamp, and any number of features.
HistoryEvent = Annotated[dict[str, Any], Meta(extra_json_schema=_HISTORY_EVENT)]
# One event or a list of events; `recsys.serving.events.parse_events` checks them.
PostedEvents = Annotated[Any, Meta(extra_json_schema={"anyOf": [_EVENT, {"type": "array", "items": _EVENT}]})]


class RetrieveRequest(Struct, forbid_unknown_fields=True):
    """Request for the best items of one user; the contract is in `docs/serving.md`.

    Attributes:
        user_id: user whose stored history and profile are read; None for an anonymous request.
        k: number of items.
        history: events, oldest first, used instead of the stored history.
        user: profile features; they replace stored ones of the same name.
        request: request features.
        exclude: items that must not be in the answer.
        exclude_seen: leave out the items of the whole history.
        filter: column of the release's items -> value or values.
        version: release that must answer (409 if no host holds it); None for the release that is served.
        quotas: column of the release's items -> largest number of items with the same value.
    """

    user_id: Id | None = None
    k: K = 100
    history: list[HistoryEvent] | None = None
    user: dict[str, Any] | None = None
    request: dict[str, Any] | None = None
    exclude: list[Id] | None = None
    exclude_seen: bool = True
    filter: Filter | None = None
    version: str | None = None
    quotas: Quotas | None = None


class SimilarRequest(Struct, forbid_unknown_fields=True):
    """Request for items like the given ones.

    Attributes:
        item_ids: items; their directions are averaged.
        k: number of items.
        filter: column of the release's items -> value, values or conditions.
        exclude: items that must not be in the answer, besides the given ones.
        version: release that must answer (409 if no host holds it); None for the release that is served.
        quotas: column of the release's items -> largest number of items with the same value.
    """

    item_ids: Annotated[list[Id], Meta(min_length=1, max_length=1000)]
    k: K = 100
    filter: Filter | None = None
    exclude: list[Id] | None = None
    version: str | None = None
    quotas: Quotas | None = None


class ScoredItem(Struct, gc=False):
    """One recommended item."""

    item_id: int | str
    score: float


class RetrieveResponse(Struct, gc=False, omit_defaults=True):
    """Ranked items, and the versions of user tower and index that produced them.

    Attributes:
        items: best first. If a user has several embeddings, their best items take turns.
        version: release; equal to user_tower_version and index_version.
        user_tower_version: version that the user tower reports.
        index_version: version of the searched index, as the host reports it.
        host: host that searched.
        history_length: number of events that the user tower read.
        unknown_items: distinct items of the history that the release does not contain; of a stored history the first
            ones, at most 16 kB.
        history_missing: present and true if the event store did not answer in time, so that the answer lacks what is
            stored of the user; such an answer may contain items that the user has seen.
        impression_id: present if the server records impressions; outcomes name it.
    """

    items: list[ScoredItem]
    version: str
    user_tower_version: str
    index_version: str
    host: str
    history_length: int
    unknown_items: list[int | str]
    history_missing: bool = False
    impression_id: str | None = None


class SimilarResponse(Struct, gc=False, omit_defaults=True):
    """Similar items, best first.

    Attributes:
        items: scores are inner products with the mean direction of the given items.
        version: release of the embeddings.
        index_version: version of the searched index, as the host reports it; equal to `version`.
        host: host that searched.
        unknown_items: given items that the release does not have.
        impression_id: present if the server records impressions; outcomes name it.
    """

    items: list[ScoredItem]
    version: str
    index_version: str
    host: str
    unknown_items: list[int | str]
    impression_id: str | None = None


class SearchRequest(Struct, forbid_unknown_fields=True):
    """Search in one version of an index.

    Attributes:
        version: version of the user tower that computed the embeddings. A host without it answers 409.
        embeddings: float32 [B, D], or [B, M, D] if users have several (absent ones are zeros).
        k: number of items for each user.
        filter: column of the release's items -> value or values.
        exclude: B lists of items that must not be in the answer.
        model: name of the model; None if the host has one model.
        quotas: column of the release's items -> largest number of items with the same value, for each user.
    """

    version: str
    embeddings: UserEmbeddings
    k: K = 100
    filter: Filter | None = None
    exclude: list[list[Id]] | None = None
    model: str | None = None
    quotas: Quotas | None = None


class SearchResult(Struct, omit_defaults=True):
    """Ranked items of one user: ids, and float32 scores of the same length.

    `groups` is present if the request has quotas: for each item its values in each of these columns, by name.
    """

    item_ids: list[int | str]
    scores: Scores
    groups: list[list[list[Value]]] | None = None


class SearchResponse(Struct):
    """Results of B users, and the version of the searched index."""

    version: str
    results: list[SearchResult]


class ModelVersions(Struct, omit_defaults=True):
    """Versions of one model on one host: the served one, and all that the host can search.

    `shard` is present only if the host searches a part of the corpus, as I/N.
    """

    serving: str | None
    loaded: list[str]
    shard: str | None = None


# GET /v1/version: model -> versions. GET /v1/hosts: host -> model -> versions, None for a host that does not answer.
Versions = dict[str, ModelVersions]
Hosts = dict[str, Versions | None]


class EventsResponse(Struct):
    """Outcomes of the posted events; the three numbers add up to their number.

    Attributes:
        stored: durable, and used by the next retrieve.
        repeated: events that were stored already, or repeated in the list.
        dropped: events older than all of a history that is full, too old to be kept, or of a forgotten user.
    """

    stored: int
    repeated: int
    dropped: int


class PostedOutcome(Struct, forbid_unknown_fields=True):
    """Action of a user on an item of an answer, as it is posted.

    Attributes:
        impression_id: id of the answer.
        item_id: item of the answer.
        action: name of the action, such as `save` or `click`.
        timestamp: UTC seconds, or a date or time as ISO 8601; None for now.
    """

    impression_id: Annotated[str, Meta(min_length=1, max_length=64)]
    item_id: Id
    action: Annotated[str, Meta(min_length=1, max_length=64)]
    timestamp: Annotated[Any, Meta(extra_json_schema=_SECONDS)] = None


class OutcomesResponse(Struct):
    """Results of the posted outcomes; the four numbers add up to their number.

    Attributes:
        stored: durable.
        repeated: outcomes with an impression, item and action that were stored already.
        unknown: no known impression of that id shows the item.
        late: outside of the window after the impression.
    """

    stored: int
    repeated: int
    unknown: int
    late: int


class Status(Struct):
    """State of the process: `ok` or `ready`."""

    status: str


class ErrorDetail(Struct, omit_defaults=True):
    """Code for programs, message for people, and the field of the request that is wrong, if it is one field."""

    code: str
    message: str
    field: str | None = None


class ErrorResponse(Struct, omit_defaults=True):
    """Body of every response that is not 2xx; `serving` and `loaded` are part of 409."""

    error: ErrorDetail
    serving: str | None | UnsetType = UNSET
    loaded: list[str] | UnsetType = UNSET


# Letters of a message: names and values of a request are repeated in it, and they can be as long as a request.
_MESSAGE = 4000


def error_response(problem: Problem) -> ErrorResponse:
    """Return the body that reports a problem."""
    message = problem.message if len(problem.message) <= _MESSAGE else f"{problem.message[:_MESSAGE]}..."
    detail = ErrorDetail(problem.code, message, problem.field and problem.field[:_MESSAGE])
    if isinstance(problem, VersionNotHeld):
        return ErrorResponse(detail, problem.serving, problem.loaded)
    return ErrorResponse(detail)
