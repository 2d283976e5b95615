"""Removal of a user from a batch. Imports no torch."""

from __future__ import annotations

from recsys.serving.events import UserId
from recsys.serving.impressions.records import Batch, Impression


def without_user(batch: Batch, user_id: UserId) -> tuple[Batch, list[int]]:
    """Return the batch without the user, and the places of the user's impressions.

    The places stay, because ids name them; what is left there has no user, no version and no items.
    """
    places = [
        place
        for place, one in enumerate(batch.impressions)
        # 5 and "5" are two users.
        if one.user_id == user_id and type(one.user_id) is type(user_id)
    ]
    kept = list(batch.impressions)
    for place in places:
        kept[place] = Impression(kept[place].at, None, "", "", [])
    return Batch(kept, batch.checks), places
