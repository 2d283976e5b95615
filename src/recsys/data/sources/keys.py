"""Names of the key columns in the files of each table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from recsys.core.errors import UserError, nearest
from recsys.core.schema import OWNERS

# Names of columns that are not features.
NAMES = ("user_id", "item_id", "timestamp", "split")
# Those of each table.
KEYS = {"interactions": NAMES, "items": ("item_id", "born"), "users": ("user_id",)}
# Those that are read only if `data.columns` names them.
NAMED_ONLY = ("born",)


def key_names(columns: Mapping[str, Any], owner: str) -> dict[str, tuple[str, ...]]:
    """Return the names that the key columns of a table may have, the first that exists counts.

    Args:
        columns: `data.columns`: our names -> names in the files, and for single tables owner -> our names -> names.
        owner: interactions, items or users.

    Raises:
        UserError: If `columns` has a key that does not exist.
    """
    settings_keys(columns, (*NAMES, *NAMED_ONLY, *OWNERS), place="data.columns")
    for table in OWNERS:
        settings_keys(columns.get(table) or {}, KEYS[table], place=f"data.columns.{table}")
    own = columns.get(owner) or {}
    found = {}
    for key in KEYS[owner]:
        if key in NAMED_ONLY and not (columns.get(key) or own.get(key)):
            continue
        common = columns.get(key) or key
        # An id that is renamed in the interactions may have its plain name in the other tables.
        usual = (common,) if owner == "interactions" or key in NAMED_ONLY else tuple(dict.fromkeys([common, key]))
        found[key] = (own[key],) if own.get(key) else usual
    return found


def key_column(columns: Mapping[str, Any], owner: str, names: Sequence[str]) -> str:
    """Return the name of the id of items or users among the names of the columns of their table.

    Raises:
        UserError: If there is none.
    """
    candidates = key_names(columns, owner)[KEYS[owner][0]]
    for name in candidates:
        if name in names:
            return name
    raise UserError(f"{owner}: column '{candidates[0]}' is missing{nearest(candidates[0], names)}")


def settings_keys(node: Mapping[str, Any], valid: Iterable[str], *, place: str) -> None:
    """Refuse keys of `node` that are not `valid`. `place` is the key of `node` in the configuration."""
    for key in node:
        if key not in valid:
            raise UserError(f"{place}.{key}: no such key{nearest(str(key), valid)}")
