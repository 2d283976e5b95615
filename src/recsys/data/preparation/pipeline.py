"""Steps of a preparation, in order. Expressions are Ibis; results stream into the files of the data set."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir

from recsys.core.errors import UserError
from recsys.core.progress import Progress
from recsys.core.schema import Feature, Schema
from recsys.data.content_encoders import BadImageError, image_path
from recsys.data.dataset import META, Meta
from recsys.data.preparation.array_writers import (
    write_entities,
    write_exposures,
    write_items,
    write_users,
)
from recsys.data.preparation.births import read_births, without_contradictions, write_births
from recsys.data.preparation.engines import Engine, Session, rows
from recsys.data.preparation.feature_drafts import draft, drop_names
from recsys.data.preparation.job import PreparationJob
from recsys.data.preparation.opened_events import open_events
from recsys.data.preparation.reading import read_table, without_suppressed
from recsys.data.preparation.shard_writers import write_shards
from recsys.data.preparation.splits import TRAIN
from recsys.data.preparation.vocabulary import Entities, number_items, number_users
from recsys.data.sources.keys import KEYS
from recsys.data.sources.tables import id_type, reads

log = logging.getLogger("recsys")

IDS = {"users": "user_id", "items": "item_id"}


def build(job: PreparationJob, engine: Engine, *, folder: Path) -> None:
    """Fill the empty folder `folder` with the prepared data set.

    Raises:
        UserError: If the data is wrong. The message names file and column.
    """
    for inner in ("vocabularies", "events", "users", "items", "scratch"):
        (folder / inner).mkdir()
    scratch = folder / "scratch"
    with engine.open(scratch) as session:
        features, sizes = _run(job, session, folder)
    shutil.rmtree(scratch)
    ids = {f"{key}_type": id_type(job.interactions, key) for key in ("user_id", "item_id")}
    schema = Schema(tuple(features), **ids)
    if job.codes is not None:
        # Towers read features in the order of their schema.
        assert {feature.key for feature in features} == {feature.key for feature in job.codes.schema.features}
        schema = job.codes.schema
    schema.save(folder / "schema.json")
    meta = Meta(fingerprint=job.fingerprint, time_resolution=job.time_resolution, settings=job.description, **sizes)
    meta.save(folder / META)


def _run(job: PreparationJob, session: Session, folder: Path) -> tuple[list[Feature], dict[str, Any]]:
    log.info("preparing %s: %s rows", job.interactions.place, f"{job.interactions.num_rows:,}")
    events, exposed, per_second = open_events(job, session)
    tables = {owner: read_entities(job, session, owner=owner) for owner in ("items", "users") if owner in job.tables}

    log.info("users and items")
    codes = job.codes
    known = {"users": None if codes is None else codes.user_ids, "items": None if codes is None else codes.item_ids}
    with Progress("users and items"):
        users = number_users(session, events, table=tables.get("users"), known=known["users"])
        items = number_items(session, events, table=tables.get("items"), known=known["items"])
    if codes is None:
        _check_parts(job, users)
    entities = {"items": items, "users": users}
    for owner in tables:
        _check_overlap(job, session, owner=owner, entities=entities[owner])
    if job.drops_rare:
        rest = (users.num_events, job.interactions.num_rows)
        log.info("%d of %d events remain after min_user_events and min_item_events", *rest)
    write_users(session, users, folder=folder)
    write_items(session, items, folder=folder)
    features: list[Feature] = []
    for owner, table in tables.items():
        features += _write_features(job, session, owner=owner, table=table, entities=entities[owner], folder=folder)
    if "items" in tables and "born" in tables["items"].columns:
        births = read_births(job, session, items=items, table=tables["items"], per_second=per_second)
        if job.time_resolution.has_clock:
            births = without_contradictions(job, session, births, events=events)
        write_births(session, births, folder=folder / "items")

    log.info("events")
    plans = job.features_of("interactions")
    trained = events.filter(events.part == TRAIN)
    with Progress("features of interactions"):
        drafts = draft(
            job.tables, session, plans=plans, trained=trained, everything=events, folder=folder, codes=job.codes
        )
    columns = ["part", *plans, *(["weight"] if job.settings.weight is not None else [])]
    coded, num_events = _coded(events, entities, columns), users.num_events
    inner = folder / "events"
    own = write_shards(
        job, session, coded=coded, drafts=drafts, num_rows=num_events, per_second=per_second, folder=inner
    )
    if exposed is not None:
        coded = _coded(exposed, entities, [])
        write_exposures(job, session, coded=coded, users=users, per_second=per_second, folder=folder)
    sizes = {"num_users": len(users), "num_events": num_events, "num_items": len(items)}
    if codes is None:
        sizes |= {f"num_{name}": items.sums[name] for name in ("trained", "seen", "known")}
    else:
        sizes |= {"num_trained": codes.num_trained, "num_seen": len(items), "num_known": len(items)}
    return own + features, sizes


def _write_features(
    job: PreparationJob,
    session: Session,
    *,
    owner: str,
    table: ir.Table,
    entities: Entities,
    folder: Path,
) -> list[Feature]:
    """Write the features of items or users."""
    plans = job.features_of(owner)
    if not plans:
        return []
    log.info("features of %s %s", f"{len(entities):,}", owner)
    key, join = entities.key, entities.join_table
    with Progress(f"features of {owner}"):
        plans = drop_names(job.tables[owner], session, entities=table, plans=plans)
        trained = join.inner_join(table, key).filter(ibis._.trained)
        drafts = draft(
            job.tables, session, plans=plans, trained=trained, everything=table, folder=folder, codes=job.codes
        )
    if not plans:
        return []
    joined = join.left_join(table, key).select(f"{key}_idx", *plans, "trained")
    contents = {name: (one.feature, one.folder) for name, one in drafts.items() if one.feature.encoder}
    try:
        joined = session.encode(joined, contents, index=f"{key}_idx")
        return write_entities(job, session, joined, drafts=drafts, entities=entities, folder=folder / owner)
    except BadImageError as error:
        for name, plan in plans.items():
            if plan.kind != "image":
                continue
            # The engine looks for the path as the column may hold it: the column itself may be large.
            given = [error.path, error.path.removeprefix(f"{plan.folder}/")]
            given = [path for path in given if image_path(plan.folder, path) == error.path]
            found = table.filter(table[name].isin(given)).select("shard", "row", name).order_by("shard", "row")
            for row in rows(session, found.limit(1)):
                file = job.tables[owner].shown[row["shard"]]
                place = f"column '{plan.name}', row {row['row'] + 1}: found '{row[name]}', {error.problem}"
                raise UserError(f"{file}: {place}; expected an image at {error.path}") from error
        raise


def _coded(events: ir.Table, entities: Mapping[str, Entities], names: Iterable[str]) -> ir.Table:
    """Return the rows of known users and known items, both dense."""
    coded = events
    for one in entities.values():
        coded = coded.inner_join(one.table.select(one.key, f"{one.key}_idx"), one.key)
    return coded.select("user_id_idx", "item_id_idx", "time", "shard", "row", *names)


def read_entities(job: PreparationJob, session: Session, *, owner: str) -> ir.Table:
    """Return the items or users table.

    Raises:
        UserError: If an id is null or has several rows.
    """
    table, key = job.tables[owner], IDS[owner]
    wanted = reads(table, KEYS[owner]) | {name: plan.read for name, plan in job.features_of(owner).items()}
    entities = read_table(session, table, wanted)
    if owner == "users":
        entities = without_suppressed(session, entities, job.settings.suppressed)
    missing = entities.filter(entities[key].isnull()).group_by("shard").aggregate(n=ibis._.count())
    nulls = rows(session, missing.order_by("shard").limit(1))
    if nulls:
        raise UserError(
            f"{table.shown[nulls[0]['shard']]}: column '{table.names[key]}' has {nulls[0]['n']} nulls, expected none"
        )
    counted = entities.group_by(key).aggregate(n=ibis._.count())
    if twice := rows(session, counted.filter(counted.n > 1).order_by(key).limit(1)):
        raise UserError(
            f"{table.place}: column '{table.names[key]}' has {twice[0][key]!r} in {twice[0]['n']} rows, expected one"
        )
    return entities


def _check_overlap(job: PreparationJob, session: Session, *, owner: str, entities: Entities) -> None:
    """Warn if no entity of the events has a row in its own table: their ids are probably written differently."""
    if not entities.sums["joined"]:
        table, key, found = job.tables[owner], entities.key, entities.table
        kinds = (found.train + found.val + found.test > 0, found.in_table > 0)
        ids = [rows(session, found.filter(kind).order_by(f"{key}_idx").limit(1)) for kind in kinds]
        one, other = (kind[0][key] if kind else None for kind in ids)
        log.warning(
            "%s: column '%s' holds none of the ids of %s: %r there, %r here; no event has features of %s",
            table.place, table.names[key], job.interactions.place, one, other, owner,
        )  # fmt: skip


def _check_parts(job: PreparationJob, users: Entities) -> None:
    """Refuse data without events in one of the parts."""
    place, settings = job.interactions.place, job.settings
    sizes = {name: users.sums[part] for name, part in (("training", "train"), ("validation", "val"), ("test", "test"))}
    if not any(sizes.values()):
        raise UserError(
            f"{place}: no events remain with data.min_user_events={settings.min_user_events}, "
            f"data.min_item_events={settings.min_item_events}"
        )
    for part, size in sizes.items():
        if not size:
            counts = ", ".join(f"{size} {part}" for part, size in sizes.items())
            advice = getattr(job.split, "advice", "expected some in every part")
            raise UserError(f"{place}: {job.split} leaves no {part} events ({counts}); {advice}")
