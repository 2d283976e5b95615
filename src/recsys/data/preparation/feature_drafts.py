"""Sizes and vocabularies of features, which are known before values are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from recsys.core.errors import UserError
from recsys.core.schema import FIRST_CODE, Feature
from recsys.data.codes import Codes
from recsys.data.preparation.engines import Session, first_row, rows
from recsys.data.preparation.feature_plans import FeaturePlan, leave_out_distinct
from recsys.data.preparation.vocabulary import collect_values, write_values
from recsys.data.sources.tables import Table


class Draft(NamedTuple):
    """A feature before its values are written. Mean and deviation of a numeric one are still unknown.

    Attributes:
        feature: the feature.
        vocabulary: values of a categorical feature in the order of their codes, else None.
        divisor: divides the numbers of the engine.
        is_fixed: whether mean and deviation are known already, from trained towers.
        folder: folder that the paths of images are relative to.
    """

    feature: Feature
    vocabulary: pa.Array | None
    divisor: float
    is_fixed: bool = False
    folder: str = ""


def drop_names(
    table: Table, session: Session, *, entities: ir.Table, plans: dict[str, FeaturePlan]
) -> dict[str, FeaturePlan]:
    """Return the plans without columns of strings that hold names (such as titles) rather than categories."""
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
        for what, value in (("distinct", entities[name].nunique()), ("n", entities[name].count()))
    }
    found = first_row(session, entities.aggregate(**measures))
    left_out = {
        name
        for name, plan in doubtful.items()
        if leave_out_distinct(table, plan.name, num_distinct=found[f"{name}_distinct"], num_values=found[f"{name}_n"])
    }
    return {name: plan for name, plan in plans.items() if name not in left_out}


def draft(
    tables: Mapping[str, Table],
    session: Session,
    *,
    plans: dict[str, FeaturePlan],
    trained: ir.Table,
    everything: ir.Table,
    folder: Path,
    codes: Codes | None = None,
) -> dict[str, Draft]:
    """Return the drafts of features by their names within the engine, and write their vocabularies.

    Args:
        tables: tables of the source, for error messages.
        session: open engine.
        plans: columns that become features, all of one table.
        trained: rows that occur in training events. Only their values enter vocabularies.
        everything: all rows of the table.
        folder: folder of the prepared data set.
        codes: features of trained towers to keep.

    Raises:
        UserError: If the vectors of a column have several lengths.
    """
    drafts: dict[str, Draft] = {}
    known = {} if codes is None else {feature.key: feature for feature in codes.schema.features}
    for name, plan in plans.items():
        vocabulary, size = None, 1
        if (fixed := known.get(f"{plan.owner}.{plan.name}")) is not None:
            assert codes is not None
            if (vocabulary := codes.vocabularies.get(fixed.key)) is not None:
                write_values(vocabulary, folder / f"vocabularies/{fixed.key}.parquet", name="value")
            drafts[name] = Draft(fixed, vocabulary, plan.divisor, is_fixed=True, folder=plan.folder)
            continue
        if plan.kind in ("categorical", "multi_categorical"):
            vocabulary = collect_values(session, trained, column=name, is_bag=plan.kind == "multi_categorical")
            size = len(vocabulary) + FIRST_CODE
            write_values(vocabulary, folder / f"vocabularies/{plan.owner}.{plan.name}.parquet", name="value")
        elif plan.encoder is not None:
            size = plan.encoder.width("image" if plan.kind == "image" else "text")
        elif plan.kind == "text":
            size = plan.text_size
        elif plan.kind == "vector":
            size = _width(tables[plan.owner], session, everything=everything, name=name, plan=plan)
        feature = Feature(plan.name, plan.owner, plan.kind, plan.role, size)
        if plan.encoder is not None:
            model = plan.encoder
            feature = replace(feature, kind="vector", encoder=model.name, encoder_digest=model.digest)
            feature = replace(feature, encoder_kind="image") if plan.kind == "image" else feature
        drafts[name] = Draft(feature, vocabulary, plan.divisor, folder=plan.folder)
    return drafts


def _width(table: Table, session: Session, *, everything: ir.Table, name: str, plan: FeaturePlan) -> int:
    """Return the length that all vectors of a column share, or 1 if the column holds only nulls."""
    lengths = everything.mutate(length=everything[name].length()).filter(ibis._.length.notnull())
    by_shard = lengths.group_by("length").aggregate(shard=lengths.shard.min(), n=ibis._.count())
    found = rows(session, by_shard.order_by([by_shard.n.desc(), by_shard.length]).limit(3))
    if len(found) > 1:
        other = found[1]
        raise UserError(
            f"{table.shown[other['shard']]}: column '{plan.name}' holds vectors of lengths "
            f"{', '.join(str(row['length']) for row in found)}; expected one length "
            f"({found[0]['length']} is the most frequent)"
        )
    if found and not found[0]["length"]:
        raise UserError(f"{table.place}: column '{plan.name}' holds vectors of length 0, expected at least 1")
    return int(found[0]["length"]) if found else 1
