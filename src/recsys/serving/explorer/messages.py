"""Messages of the endpoints that serve people who look: items by name, what explains an answer, known users."""

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
    """An item as people know it.

    Attributes:
        item_id: outside id.
        title: from a column of the items that holds titles.
        picture: address of one, from a column that holds such.
        details: some of the other columns, as text.
    """

    item_id: ItemId
    title: str | None = None
    picture: str | None = None
    details: dict[str, str] = field(default_factory=dict)


class PastItem(ItemCard):
    """An item of a history, and when it happened (UTC seconds)."""

    timestamp: int | None = None


class Reason(Struct):
    """An item of the history that is near to a recommended one, and the cosine between the two."""

    item_id: ItemId
    similarity: float


class ExplainedItem(ItemCard):
    """A recommended item, and the items of the history that are nearest to it, the nearest first."""

    reasons: list[Reason] = field(default_factory=list)


class Found(Struct):
    """What a name stands for; None where nothing has it. `matches` counts the items that it could mean."""

    name: str
    item: ItemCard | None
    matches: int


class ItemsQuery(Struct, forbid_unknown_fields=True):
    """Parameters of GET /v1/items: a text, how many items at most; `version` None: of the release that is served."""

    q: Text
    limit: Limit = 10
    version: str | None = None


class ItemsResponse(Struct):
    """Items of one release that a text matches, best first."""

    version: str
    items: list[ItemCard]


class FindRequest(Struct, forbid_unknown_fields=True):
    """Ids or titles, as a person pastes them; `version` None: of the release that is served."""

    names: Annotated[list[Text], Meta(max_length=MAX_NAMES)]
    version: str | None = None


class FindResponse(Struct):
    """One entry for each name, in order."""

    version: str
    found: list[Found]


class LookedAtEvent(Struct):
    """An event as far as it is looked at; UTC seconds. Its features play no part."""

    item_id: Id
    timestamp: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None


class ExplainRequest(Struct, forbid_unknown_fields=True):
    """Why these items?

    Attributes:
        version: of the release whose embeddings say what is near.
        item_ids: recommended ones.
        user_id: whose stored history explains them.
        history: events, oldest first, instead of the stored ones.
        num_reasons: items of the history for each.
    """

    version: str
    item_ids: Annotated[list[Id], Meta(max_length=MAX_ITEMS)]
    user_id: Id | None = None
    history: list[LookedAtEvent] | None = None
    num_reasons: Annotated[int, Meta(ge=1, le=MAX_REASONS)] = 3


class ExplainResponse(Struct):
    """The history, oldest first, and each item with what is near to it there."""

    version: str
    history: list[PastItem]
    items: list[ExplainedItem]


class UsersQuery(Struct, forbid_unknown_fields=True):
    """Parameters of GET /v1/users: the beginning of an id, and how many users at most."""

    prefix: Text = ""
    limit: Limit = 10


class UsersResponse(Struct):
    """Users with stored events whose id begins as asked, in order of id."""

    user_ids: list[UserId]
