"""Features before their values are written: sizes and vocabularies, from rows that training events touch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from recsys.core.errors import UserError
from recsys.core.schema import Feature
from recsys.data.preparation.engines import Session, first_row, rows
from recsys.data.preparation.feature_plans import Plan, leave_out_distinct
from recsys.data.preparation.vocabulary import collect_values, write_values
from recsys.data.sources.tables import Table


class Draft(NamedTuple):
    """A feature that waits for its values: numeric ones for their mean and deviation, too.

    Attributes:
        divisor: what the engine's numbers are divided by.
    """

    feature: Feature
    vocabulary: pa.Array | None
    divisor: float


def drop_names(table: Table, session: Session, listed: ir.Table, plans: dict[str, Plan]) -> dict[str, Plan]:
    """Without the columns of strings that hold names rather than categories."""
    doubtful = {
        name: plan
        for name, plan in plans.items()
        if plan.kind == "categorical" and not plan.declared and pa.types.is_string(plan.type)
    }
    if not doubtful:
        return plans
    measures = {
        f"{name}_{what}": value
        for name in doubtful
        for what, value in (("distinct", listed[name].nunique()), ("n", listed[name].count()))
    }
    found = first_row(session, listed.aggregate(**measures))
    left_out = {
        n for n, p in doubtful.items() if leave_out_distinct(table, p.name, found[f"{n}_distinct"], found[f"{n}_n"])
    }
    return {name: plan for name, plan in plans.items() if name not in left_out}


def draft(
    tables: Mapping[str, Table],
    session: Session,
    trained: ir.Table,
    everything: ir.Table,
    plans: dict[str, Plan],
    folder: Path,
) -> dict[str, Draft]:
    """Sizes and vocabularies of features, by their names within the engine; vocabularies are written to `folder`.

    Args:
        tables: what the source holds, for messages.
        session: the engine.
        trained: the rows that training events touch.
        everything: all rows of the table.
        plans: the columns.
        folder: of the prepared data set.

    Raises:
        UserError: vectors of more than one length.
    """
    drafts: dict[str, Draft] = {}
    for name, plan in plans.items():
        vocabulary, size = None, 1
        if plan.kind in ("categorical", "multi_categorical"):
            vocabulary = collect_values(session, trained, name, plan.kind == "multi_categorical")
            size = len(vocabulary) + 2
            write_values(vocabulary, "value", folder / f"vocabularies/{plan.owner}.{plan.name}.parquet")
        elif plan.kind == "text":
            size = plan.text_size
        elif plan.kind == "vector":
            size = _width(tables[plan.owner], session, everything, name, plan)
        feature = Feature(plan.name, plan.owner, plan.kind, plan.role, size)
        drafts[name] = Draft(feature, vocabulary, plan.divisor)
    return drafts


def _width(table: Table, session: Session, listed: ir.Table, name: str, plan: Plan) -> int:
    """The one length of a column's vectors; a column of nulls alone counts as of length 1."""
    lengths = listed.mutate(length=listed[name].length()).filter(ibis._.length.notnull())
    by_shard = lengths.group_by("length").aggregate(shard=lengths.shard.min(), n=ibis._.count())
    found = rows(session, by_shard.order_by([by_shard.n.desc(), by_shard.length]).limit(3))
    if len(found) > 1:
        other = found[1]
        raise UserError(
            f"{table.files[other['shard']]}: column '{plan.name}' holds vectors of lengths "
            f"{', '.join(str(row['length']) for row in found)}; expected one length "
            f"({found[0]['length']} is the most frequent)"
        )
    if found and not found[0]["length"]:
        raise UserError(f"{table.place}: column '{plan.name}' holds vectors of length 0, expected at least 1")
    return int(found[0]["length"]) if found else 1
