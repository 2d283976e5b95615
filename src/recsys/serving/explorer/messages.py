"""Requests and responses of the explorer: items by name, explanations, and users by prefix."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct, field

from recsys.serving.http.messages import Id

ItemId = int | str
UserId = int | str
MAX_NAMES, MAX_ITEMS, MAX_REASONS, MAX_FOUND = 500, 1000, 10, 100
Text = Annotated[str, Meta(max_length=1000)]
Limit = Annotated[int, Meta(ge=1, le=MAX_FOUND)]


class ItemCard(Struct):
    """Readable description of an item.

    Attributes:
        item_id: outside id.
        title: value of the column that holds titles.
        picture: address of a picture.
        details: column -> value as text, for some of the other columns.
    """

    item_id: ItemId
    title: str | None = None
    picture: str | None = None
    details: dict[str, str] = field(default_factory=dict)


class PastItem(ItemCard):
    """Item of a history with its time (UTC seconds)."""

    timestamp: int | None = None


class Reason(Struct):
    """Item of the history, and its cosine similarity to the recommended item."""

    item_id: ItemId
    similarity: float


class ExplainedItem(ItemCard):
    """Recommended item with the most similar items of the history, most similar first."""

    reasons: list[Reason] = field(default_factory=list)


class NameMatch(Struct):
    """Item that best matches a name, None if there is none; `matches` is the number of matching items."""

    name: str
    item: ItemCard | None
    matches: int


class ItemsQuery(Struct, forbid_unknown_fields=True):
    """Parameters of GET /v1/items: text, maximum number of items, and release (default: the served one)."""

    q: Text
    limit: Limit = 10
    version: str | None = None


class ItemsResponse(Struct):
    """Items of one release that match a text, best first."""

    version: str
    items: list[ItemCard]


class FindRequest(Struct, forbid_unknown_fields=True):
    """Pasted ids or titles, and release (default: the served one)."""

    names: Annotated[list[Text], Meta(max_length=MAX_NAMES)]
    version: str | None = None


class FindResponse(Struct):
    """One match for each name, in the order of the request."""

    version: str
    found: list[NameMatch]


class PastEvent(Struct):
    """Item and time (UTC seconds) of an event; features are ignored."""

    item_id: Id
    timestamp: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None


class ExplainRequest(Struct, forbid_unknown_fields=True):
    """Request to explain recommended items by a history.

    Attributes:
        version: release whose embeddings are compared.
        item_ids: recommended items.
        user_id: user whose stored history is read.
        history: events, oldest first, used instead of the stored history.
        num_reasons: maximum number of items of the history for each recommended item.
    """

    version: str
    item_ids: Annotated[list[Id], Meta(max_length=MAX_ITEMS)]
    user_id: Id | None = None
    history: list[PastEvent] | None = None
    num_reasons: Annotated[int, Meta(ge=1, le=MAX_REASONS)] = 3


class ExplainResponse(Struct):
    """The history, oldest first, each recommended item with its reasons, and the similarity that scores are."""

    version: str
    history: list[PastItem]
    items: list[ExplainedItem]
    similarity: str


class UsersQuery(Struct, forbid_unknown_fields=True):
    """Parameters of GET /v1/users: beginning of the id, and maximum number of users."""

    prefix: Text = ""
    limit: Limit = 10


class UsersResponse(Struct):
    """Users with stored events whose id begins with the prefix, in order of id."""

    user_ids: list[UserId]
