"""Engagement: which rows of the interactions are events, and what becomes of the others (`data.engaged`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import ibis.expr.types as ir
import pyarrow as pa

from recsys.core.errors import UserError, nearest
from recsys.data.preparation.engines import Session, first_row, rows
from recsys.data.sources.keys import settings_keys
from recsys.data.sources.tables import Table

Others = Literal["exposures", "drop"]
_MOST_VALUES = 50


@dataclass(frozen=True, kw_only=True)
class Engagement:
    """Rows that are events: those of which a column is true, is large enough, or has one of some values.

    Attributes:
        column: column of interactions. Without `min` and `values` it holds booleans, or integers that mean true
            if they are not 0.
        min: smallest number of an event.
        values: values of an event, as text.
        others: what other rows are: exposures, which are negatives of their user, or nothing.
    """

    column: str
    min: float | None = None
    values: tuple[str, ...] | None = None
    others: Others = "exposures"

    @classmethod
    def parse(cls, given: Any) -> Engagement | None:
        """Return the engagement that `data.engaged` names: a column, or {column, min, values, others}.

        Raises:
            UserError: If a key or value is not valid.
        """
        if given is None or isinstance(given, Engagement):
            return given
        if isinstance(given, str):
            return cls(column=given)
        if not isinstance(given, Mapping):
            raise UserError(f"data.engaged={given}: expected a column, or {{column, min, values, others}}")
        settings_keys(given, cls.__dataclass_fields__, place="data.engaged")
        named = {key: value for key, value in given.items() if value is not None}
        if not named:
            return None
        if "column" not in named:
            raise UserError(f"data.engaged.{next(iter(named))}: expected data.engaged.column as well")
        low, values = named.get("min"), named.get("values")
        if low is not None and values is not None:
            raise UserError("data.engaged.min and data.engaged.values: expected one of them")
        if low is not None and (isinstance(low, bool) or not isinstance(low, int | float)):
            raise UserError(f"data.engaged.min={low}: expected a number")
        if values is not None and (isinstance(values, str) or not isinstance(values, Sequence) or not values):
            raise UserError(f"data.engaged.values={values}: expected a list, such as data.engaged.values=[{values}]")
        others: Any = named.get("others") or ("exposures" if low is None and values is None else "drop")
        if others not in get_args(Others):
            raise UserError(f"data.engaged.others={others}: no such option{nearest(str(others), get_args(Others))}")
        texts = None if values is None else tuple(_text(value) for value in values)
        return cls(column=str(named["column"]), min=low, values=texts, others=others)

    @property
    def place(self) -> str:
        """Name in messages, as one types it."""
        if self.min is not None:
            return f"data.engaged.column={self.column} data.engaged.min={self.min:g}"
        if self.values is not None:
            return f"data.engaged.column={self.column} data.engaged.values=[{','.join(self.values)}]"
        return f"data.engaged={self.column}"

    def described(self) -> Any:
        """Return plain containers for fingerprints. A column alone is its name, as in existing data sets."""
        if self.min is None and self.values is None and self.others == "exposures":
            return self.column
        return {"column": self.column, "min": self.min, "values": self.values, "others": self.others}

    def check(self, table: Table, *, has_order: bool) -> None:
        """Refuse a column that the interactions do not have or that holds another type, and exposures without order."""
        if self.column not in table.feature_columns():
            raise UserError(
                f"{self.place}: {table.place} has no such column{nearest(self.column, table.feature_columns())}"
            )
        table.check(self.column)
        kind = table.types[self.column]
        is_whole, is_text = pa.types.is_boolean(kind) or pa.types.is_integer(kind), pa.types.is_string(kind)
        is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        if self.min is not None and not is_number:
            raise UserError(f"{self.place}: {table.place} holds {kind} there, expected numbers")
        if self.values is not None and not (is_whole or is_text or pa.types.is_floating(kind)):
            raise UserError(f"{self.place}: {table.place} holds {kind} there, expected strings, numbers or booleans")
        if self.min is None and self.values is None and not is_whole:
            raise UserError(
                f"{self.place}: {table.place} holds {kind} there, expected booleans or integers; "
                f"data.engaged.column={self.column} data.engaged."
                + ("min=NUMBER takes numbers from a threshold on" if is_number else "values=[VALUE] takes some values")
            )
        if self.others == "exposures" and not has_order:
            raise UserError(
                f"{self.place}: exposures need times, which place them between the events of a user; "
                "data.engaged.others=drop leaves them out"
            )

    def flag(self, values: ir.Value) -> ir.BooleanValue:
        """Return whether each row is an event; null only if the column alone decides and is null."""
        if self.min is not None:
            # Comparisons of nan differ between engines.
            is_number = ~values.cast("string").lower().isin(["nan"])
            return (is_number & (values.cast("float64") >= self.min)).fill_null(False)
        if self.values is not None:
            return _texts(values).isin(self.values).fill_null(False)
        return values.cast("boolean")

    def check_found(self, session: Session, events: ir.Table, *, place: str, values: str) -> None:
        """Refuse values that no row has, and events none of which is engaged.

        Args:
            session: open engine.
            events: rows with a column `engaged`.
            place: name of the interactions in messages.
            values: column of `events` that holds what decides.
        """
        column = events[values]
        if self.values is not None:
            counted = events.group_by(value=_texts(column)).aggregate(n=events.count())
            most = rows(session, counted.order_by([counted.n.desc(), counted.value]).limit(_MOST_VALUES))
            common = [row["value"] for row in most if row["value"] is not None]
            held = counted.filter(counted.value.isin(self.values))
            there = {row["value"] for row in rows(session, held)}
            for value in self.values:
                if value not in there:
                    raise UserError(f"{self.place}: no row of {place} has '{value}'{nearest(value, common)}")
        elif not first_row(session, events.aggregate(n=events.engaged.sum()))["n"]:
            highest = first_row(session, events.aggregate(high=column.cast("float64").max()))["high"]
            raise UserError(f"{self.place}: nobody engaged; the largest value in {place} is {highest:g}")


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _texts(values: ir.Value) -> ir.StringValue:
    """Return values as `_text` writes them: 4.0 is 4."""
    text = values.cast("string")
    return text.re_replace(r"\.0$", "") if values.type().is_floating() else text
