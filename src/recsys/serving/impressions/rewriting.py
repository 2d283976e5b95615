"""Removal of users from a batch. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection

from recsys.serving.events import UserId
from recsys.serving.impressions.records import Batch, Impression


def without_users(batch: Batch, user_ids: Collection[UserId]) -> tuple[Batch, list[int]]:
    """Return the batch without the users, and the places of their impressions.

    The places stay, because ids name them; what is left there has no user, no version and no items.
    """
    # 5 and "5" are two users.
    gone = {(type(user_id), user_id) for user_id in user_ids}
    places = [place for place, one in enumerate(batch.impressions) if (type(one.user_id), one.user_id) in gone]
    kept = list(batch.impressions)
    for place in places:
        kept[place] = Impression(kept[place].at, None, "", "", [])
    return Batch(kept, batch.checks), places
