"""Choose the users of a Python call, from a data set that knows their histories. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.core.errors import UserError, nearest
from recsys.data.dataset import PreparedDataset, Requests
from recsys.data.encoding import plain
from recsys.publishing.batch_recommend import Audience, choose_users
from recsys.publishing.frames import Frame, as_ids, column, is_frame, to_ids, to_table

# Ids, a frame with a column user_id, or the name of a group of users.
Users = Iterable[Any] | Frame | Literal["test", "all"]
Unknown = Literal["error", "empty"]


def audience_of(users: Users, dataset: PreparedDataset, *, unknown: Unknown = "error") -> Audience:
    """Return users with the end of their histories.

    Args:
        users: ids; a frame with `user_id` and any request features; `"test"`: everyone in the test part, with the
            history before it; `"all"`: everyone.
        dataset: data set with the histories.
        unknown: `"error"` refuses an id that the data does not have, `"empty"` gives it an empty history.

    Raises:
        UserError: If an id is unknown, null, repeated or of another type, or a column is no request feature.
    """
    check_unknown(unknown)
    if isinstance(users, str):
        if users not in ("test", "all"):
            raise UserError(f"users: found '{users}', expected ids, a data frame, 'test' or 'all'")
        return choose_users(users, dataset)
    ids, given = user_table(users)
    ids = as_ids(ids, dataset.user_ids.type, "users")
    places = pc.index_in(ids, value_set=dataset.user_ids)
    if unknown == "error" and places.null_count:
        missing = ids.filter(places.is_null())
        refuse_unknown(missing)
    user_idx = np.array(places.cast(pa.int64()).fill_null(-1))
    end = np.where(user_idx >= 0, dataset.offsets[1:][np.maximum(user_idx, 0)], 0)
    valid = {feature.name for feature in dataset.schema.with_role("request")}
    check_columns(given, valid, "request feature")
    return Audience(ids, Requests(user_idx, end), {name: plain(given[name]) for name in given.column_names})


def check_unknown(unknown: str) -> None:
    """Refuse another value than `"error"` and `"empty"`."""
    if unknown not in get_args(Unknown):
        raise UserError(f"unknown: found '{unknown}', expected 'error' or 'empty'")


def user_table(users: Iterable[Any] | Frame) -> tuple[pa.Array, pa.Table]:
    """Return the ids of the users, and the other columns of their frame.

    Raises:
        UserError: If an id is null or occurs twice.
    """
    if is_frame(users):
        table = to_table(users, "users")
        ids, others = column(table, "user_id", "users"), table.drop_columns(["user_id"])
    else:
        ids = to_ids(users, "users")
        others = pa.table({})
    counts = pc.value_counts(ids)
    if len(counts) < len(ids):
        twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"]
        raise UserError(f"users: {twice.as_py()!r} occurs more than once; expected each user once")
    return ids, others


def check_columns(table: pa.Table, valid: set[str], kind: str) -> None:
    """Refuse columns that nothing reads.

    Raises:
        UserError: If a column is not in `valid`.
    """
    for name in table.column_names:
        if name not in valid:
            raise UserError(f"users: column '{name}' is not a {kind}{nearest(name, valid)}")


def refuse_unknown(ids: pa.Array) -> None:
    """Refuse users without a history.

    Raises:
        UserError: Always.
    """
    more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
    raise UserError(
        f"users: {ids[0].as_py()!r}{more} unknown: the histories hold no such user; "
        f"unknown='empty' ranks for them as for new users"
    )
