"""Choice of the columns that become features, and of their kinds: as declared, else by the type of the column."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from recsys.core.errors import UserError, nearest
from recsys.core.schema import FEATURE_SETTINGS, FIRST_CODE, KINDS, OWNERS, Kind, Owner, Role
from recsys.data.content_encoders import TFIDF, ContentEncoder, open_encoder
from recsys.data.preparation.engines import Read
from recsys.data.sources.keys import settings_keys
from recsys.data.sources.tables import Table, read_time

log = logging.getLogger("recsys")
# Notices that this process has logged.
_noticed: set[str] = set()

DEFAULT_BUCKETS = 2**15
_OWN_ROLE: dict[Owner, Role] = {"items": "item", "users": "profile"}


@dataclass(frozen=True, kw_only=True)
class FeaturePlan:
    """A column that becomes a feature.

    Attributes:
        name: name of the column.
        owner: table that holds it.
        kind: how it is encoded.
        role: when its values are known.
        type: type of the column in the files.
        declared: whether the configuration names its kind. Such a column stays whatever its number of values.
        buckets: number of codes for hashed words.
        encoder: model whose vectors stand for texts or images; None for hashed words.
        folder: folder of the table, to which the paths of images are relative.
    """

    name: str
    owner: Owner
    kind: Kind
    role: Role
    type: pa.DataType
    declared: bool
    buckets: int = DEFAULT_BUCKETS
    encoder: ContentEncoder | None = None
    folder: str = ""

    @property
    def read(self) -> Read:
        """Conversion of the column when the engine reads it."""
        if _is_time(self.type):
            return read_time(self.name, self.type)
        return Read(self.name)

    @property
    def divisor(self) -> float:
        """Divisor of the engine's numbers. It turns microseconds into seconds."""
        return 1e6 if _is_time(self.type) else 1.0

    @property
    def text_size(self) -> int:
        """Number of codes of hashed words, with those of missing and unknown."""
        return FIRST_CODE + self.buckets


def plan_features(tables: Mapping[str, Table], declared: Mapping[str, Any]) -> list[FeaturePlan]:
    """Return the features of all tables, in the order of tables and columns.

    Args:
        tables: tables of the source by owner.
        declared: owner -> column -> {kind, role, ignore, buckets, encoder}.

    Raises:
        UserError: If a declaration names a missing table or column, or does not fit the column.
    """
    settings_keys(declared, OWNERS, place="data.features")
    plans: list[FeaturePlan] = []
    owners: tuple[Owner, ...] = ("interactions", "items", "users")
    for owner in owners:
        columns: Mapping[str, Any] = declared.get(owner) or {}
        table = tables.get(owner)
        if table is None:
            if columns:
                raise UserError(f"data.features.{owner}.{next(iter(columns))}: the source has no {owner}.parquet")
            continue
        for name in columns:
            if name not in table.feature_columns():
                own = " (an id, the time or the split)" if name in table.types else ""
                raise UserError(
                    f"data.features.{owner}.{name}: {table.place} has no such column of features{own}"
                    f"{nearest(name, table.feature_columns())}"
                )
        names = list(columns) if owner == "interactions" else table.feature_columns()
        for name in names:
            plan = _plan(table, name, settings=columns.get(name) or {})
            if plan is not None:
                plans.append(plan)
    return plans


def _plan(table: Table, name: str, *, settings: Mapping[str, Any]) -> FeaturePlan | None:
    place = f"data.features.{table.owner}.{name}"
    settings_keys(settings, FEATURE_SETTINGS, place=place)
    if settings.get("ignore"):
        return None
    kind, role = settings.get("kind"), _role(table.owner, settings.get("role"), place=place)
    column = table.types[name]
    if not (kind in ("categorical", "text", "image") and pa.types.is_string(column)):
        table.check(name)
    if kind is None:
        kind = _kind_by_type(column)
        if kind is None or not _is_file_name(name):
            why = f"holds {column}" if kind is None else "has a name that no file can have"
            _leave_out(table, name, why=f"{why}, which is not a feature unless its kind is declared")
            return None
    elif kind not in KINDS:
        raise UserError(f"{place}.kind={kind}: no such kind{nearest(str(kind), KINDS)}")
    elif not _fits(kind, column):
        raise UserError(f"{place}.kind={kind}: {table.place} holds {column} there, expected {_EXPECTED[kind]}")
    if not _is_file_name(name):
        raise UserError(f"{place}: a feature's name cannot hold '/', nor more than 150 bytes; rename the column")
    buckets = settings.get("buckets", DEFAULT_BUCKETS)
    if not isinstance(buckets, int) or buckets < 1:
        raise UserError(f"{place}.buckets={buckets}: expected a positive integer")
    return FeaturePlan(
        name=name,
        owner=table.owner,
        kind=kind,
        role=role,
        type=column,
        declared=settings.get("kind") is not None,
        buckets=buckets,
        encoder=_encoder(settings.get("encoder"), kind, table.owner, place=place),
        folder=table.shown[0].rpartition("/")[0],
    )


def _encoder(name: Any, kind: str, owner: Owner, *, place: str) -> ContentEncoder | None:
    if name is None and kind != "image":
        return None
    if kind not in ("text", "image") or owner != "items":
        raise UserError(
            f"{place}.encoder={name}: expected a column of items with kind=text or image; found {kind} of {owner}"
        )
    if kind == "image" and name in (None, TFIDF):
        raise UserError(f"{place}.kind=image: expected {place}.encoder=MODEL too, a folder of a model of images")
    try:
        return None if name == TFIDF else open_encoder(str(name))
    except UserError as error:
        raise UserError(f"{place}.{error}") from error


def _is_file_name(name: str) -> bool:
    """Return whether a file of the prepared data set can have the name."""
    return "/" not in name and "\0" not in name and len(name.encode()) <= 150


def _role(owner: Owner, role: Any, *, place: str) -> Role:
    if owner != "interactions":
        own = _OWN_ROLE[owner]
        if role not in (None, own):
            raise UserError(f"{place}.role={role}: columns of {owner} have the role {own}")
        return own
    if role == "event":
        return "event"
    if role == "request":
        return "request"
    raise UserError(f"{place}.role={role}: expected event (known after the event) or request (known before the answer)")


def _leave_out(table: Table, name: str, *, why: str) -> None:
    notice = f"{table.place}: column '{name}' {why}; it is left out"
    # The parts of a command read the same tables, and one line about a column is enough.
    log.log(logging.DEBUG if notice in _noticed else logging.INFO, "%s", notice)
    _noticed.add(notice)


def leave_out_distinct(table: Table, name: str, *, num_distinct: int, num_values: int) -> bool:
    """Decide whether a column of strings holds names (titles, codes) rather than categories, and log it if so.

    It does if more than half of its values are distinct, or more than nine tenths if there are at most 100 values.
    Fewer than 10 values are too few to decide. Integers are categories whatever their number.
    """
    if num_values < 10 or num_distinct <= (0.5 if num_values > 100 else 0.9) * num_values:
        return False
    _leave_out(
        table,
        name,
        why=f"has {num_distinct} distinct values in {num_values} rows, so it is not a category "
        f"(data.features.{table.owner}.{name}.kind=categorical or text keeps it)",
    )
    return True


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_code(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _kind_by_type(kind: pa.DataType) -> Kind | None:
    if _is_code(kind):
        return "categorical"
    if _is_number(kind):
        return "numeric"
    if _is_list(kind) and _is_code(kind.value_type):
        return "multi_categorical"
    if _is_list(kind) and _is_number(kind.value_type):
        return "vector"
    return None


def _fits(kind: Kind, column: pa.DataType) -> bool:
    if kind == "categorical":
        return _is_code(column)
    if kind in ("text", "image"):
        # A column without any value has no type.
        return bool(pa.types.is_string(column) or pa.types.is_null(column))
    if kind == "numeric":
        return _is_number(column) or _is_time(column) or (_is_code(column) and not pa.types.is_string(column))
    if not _is_list(column):
        return False
    inner = column.value_type
    return _is_code(inner) if kind == "multi_categorical" else _is_number(inner) or pa.types.is_integer(inner)


_EXPECTED: dict[str, str] = {
    "categorical": "strings, integers or booleans",
    "multi_categorical": "lists of strings or integers",
    "numeric": "numbers, dates or timestamps",
    "vector": "lists of numbers",
    "text": "strings",
    "image": "strings, the paths of images",
}
