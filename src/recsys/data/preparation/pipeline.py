"""The steps of one preparation, in order. Expressions are Ibis; results stream into the files of the data set."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir

from recsys.core.errors import UserError
from recsys.core.schema import Feature, Schema
from recsys.data.dataset import KEPT, Meta
from recsys.data.preparation.array_writers import (
    write_counts,
    write_entities,
    write_events,
    write_exposures,
    write_has_features,
)
from recsys.data.preparation.engines import Engine, Read, Session, rows
from recsys.data.preparation.feature_drafts import draft, drop_names
from recsys.data.preparation.job import Build
from recsys.data.preparation.splits import TRAIN
from recsys.data.preparation.vocabulary import Entities, collect_items, collect_users, keep_core, write_values
from recsys.data.sources.tables import id_type, reads

log = logging.getLogger("recsys")

PARTS = "parts.json"
KEYS = {"users": "user_id", "items": "item_id"}


Steps = Callable[[Build, Session, Path], tuple[list[Feature], dict[str, Any]]]


def build(
    job: Build, name: str, settings: dict[str, Any], engine: Engine, folder: Path, steps: Steps | None = None
) -> None:
    """Fill `folder` with the data set `name`, by preparing everything anew or by other `steps`."""
    for inner in ("vocabularies", "events", "users", "items", "scratch", *([KEPT] if job.can_grow else [])):
        (folder / inner).mkdir()
    scratch = folder / "scratch"
    with engine.open(scratch) as session:
        features, meta = (steps or _run)(job, session, folder)
    shutil.rmtree(scratch)
    events = job.tables["interactions"]
    Schema(tuple(features), id_type(events, "user_id"), id_type(events, "item_id")).save(folder / "schema.json")
    Meta(fingerprint=name, settings=settings, **meta).save(folder / "meta.json")


def _run(job: Build, session: Session, folder: Path) -> tuple[list[Feature], dict[str, Any]]:
    log.info("preparing %s", job.tables["interactions"].place)
    events, exposed = open_events(job, session)
    listed = {owner: read_listed(job, session, owner) for owner in ("items", "users") if owner in job.tables}

    log.info("users and items")
    users = collect_users(session, events, listed.get("users"))
    items = collect_items(session, events, listed.get("items"))
    check_parts(job, users)
    if max(job.min_user_events, job.min_item_events) > 1:
        kept = int((users.train + users.val + users.test).sum())
        log.info(
            "%d of %d events are left by min_user_events and min_item_events", kept, job.tables["interactions"].num_rows
        )
    write_ids(users, items, folder)
    joins, features = _write_sides(job, session, listed, users, items, folder)
    log.info("events")
    plans = job.plans_of("interactions")
    drafts = draft(job.tables, session, events.filter(events.part == TRAIN), events, plans, folder)
    features = write_events(job, session, _ordered(events, joins, plans), drafts, users, folder) + features
    if exposed is not None:
        write_exposures(job, session, _ordered_exposures(exposed, joins), len(users), folder)
    if job.can_grow:
        write_parts_read(job, session, events, folder)
    return features, sizes(job, users, items)


def write_ids(users: Entities, items: Entities, folder: Path) -> None:
    """The outside ids and the counts of users and items."""
    write_values(users.ids, "user_id", folder / "vocabularies/users.parquet")
    write_values(items.ids, "item_id", folder / "vocabularies/items.parquet")
    write_counts(users, items, folder)


def _write_sides(
    job: Build, session: Session, listed: Mapping[str, ir.Table], users: Entities, items: Entities, folder: Path
) -> tuple[dict[str, ir.Table], list[Feature]]:
    """Features of items and users; and what joins outside ids with dense ones."""
    scratch = folder / "scratch"
    joins = {
        "users": users.join_table(session, "user_id", scratch),
        "items": items.join_table(session, "item_id", scratch),
    }
    features: list[Feature] = []
    for owner, key, entities in (("items", "item_id", items), ("users", "user_id", users)):
        plans = job.plans_of(owner)
        if plans:
            log.info("features of %s", owner)
            plans = drop_names(job.tables[owner], session, listed[owner], plans)
            known = joins[owner].inner_join(listed[owner], key)
            drafts = draft(job.tables, session, known.filter(known[f"{key}_trained"]), listed[owner], plans, folder)
            if plans:
                everyone = joins[owner].left_join(listed[owner], key).order_by(f"{key}_idx").select(*plans)
                features += write_entities(session, everyone, drafts, entities, folder / owner)
    write_has_features(features, len(items), folder)
    return joins, features


def sizes(job: Build, users: Entities, items: Entities) -> dict[str, Any]:
    """The sizes of `Meta`, and the time resolution."""
    return {
        "time_resolution": job.time_resolution,
        "num_users": len(users),
        "num_events": int((users.train + users.val + users.test).sum()),
        "num_trained": int((items.train > 0).sum()),
        "num_seen": int((items.train + items.val > 0).sum()),
        "num_known": int(((items.train + items.val > 0) | items.listed).sum()),
        "num_items": len(items),
    }


def open_events(job: Build, session: Session) -> tuple[ir.Table, ir.Table | None]:
    """The events, each with its `part`, and the exposures where the data has them; both as read, in no order.

    Raises:
        UserError: nulls where an event needs a value.
    """
    source = read_events(job, session, job.tables["interactions"].files)
    _check_events(job, session, source)
    exposed = None
    if job.engaged is not None:
        source, exposed = source.filter(source.engaged), source.filter(~source.engaged)
    events = source
    if max(job.min_user_events, job.min_item_events) > 1:
        events = keep_core(session, source, job.min_user_events, job.min_item_events)
    return session.keep(job.split.assign(session, events, source)), exposed


def _ordered(events: ir.Table, joins: Mapping[str, ir.Table], names: Iterable[str]) -> ir.Table:
    """Events with dense items, in the order of the prepared data set."""
    coded = events.inner_join(joins["users"], "user_id").inner_join(joins["items"], "item_id")
    ordered = coded.order_by("user_id_idx", "part", "time", "shard", "row")
    return ordered.select("item_id_idx", "time", *names)


def _ordered_exposures(exposed: ir.Table, joins: Mapping[str, ir.Table]) -> ir.Table:
    """Exposures of known users to known items, with both dense, by user and time."""
    coded = exposed.inner_join(joins["users"], "user_id").inner_join(joins["items"], "item_id")
    return coded.order_by("user_id_idx", "time", "shard", "row").select("user_id_idx", "item_id_idx", "time")


def read_events(job: Build, session: Session, files: Sequence[str]) -> ir.Table:
    """The events of some shards, as they are, in no order."""
    table = job.tables["interactions"]
    wanted = reads(table, ("user_id", "item_id", "timestamp", "split"))
    wanted |= {name: plan.read for name, plan in job.plans_of("interactions").items()}
    if job.engaged is not None:
        wanted["engaged"] = Read(job.engaged)
    events = session.read(files, wanted)
    if job.engaged is not None:
        events = events.mutate(engaged=events.engaged.cast("boolean"))
    return events if "time" in wanted else events.mutate(time=ibis.literal(0, "int64"))


def _check_events(job: Build, session: Session, events: ir.Table) -> None:
    """No nulls where an event needs a value. Names the shard."""
    table = job.tables["interactions"]
    names = dict(table.names) | ({"engaged": job.engaged} if job.engaged is not None else {})
    keys = {"user_id": "user_id", "item_id": "item_id", "timestamp": "time", "engaged": "engaged"}
    keys = {key: name for key, name in keys.items() if key in names}
    nulls = {key: events[name].isnull().sum() for key, name in keys.items()}
    for found in rows(session, events.group_by("shard").aggregate(**nulls).order_by("shard")):
        for key in keys:
            if found[key]:
                raise UserError(
                    f"{table.files[found['shard']]}: column '{names[key]}' has {found[key]} nulls, expected none"
                )


def open_listed(job: Build, session: Session, owner: str) -> ir.Table:
    """The items or users table, unchecked."""
    table = job.tables[owner]
    wanted = reads(table, (KEYS[owner],)) | {name: plan.read for name, plan in job.plans_of(owner).items()}
    return session.read(table.files, wanted)


def read_listed(job: Build, session: Session, owner: str) -> ir.Table:
    """The items or users table; every id once.

    Raises:
        UserError: a null or repeated id.
    """
    table, key, listed = job.tables[owner], KEYS[owner], open_listed(job, session, owner)
    missing = listed.filter(listed[key].isnull()).group_by("shard").aggregate(n=ibis._.count())
    nulls = rows(session, missing.order_by("shard").limit(1))
    if nulls:
        raise UserError(
            f"{table.files[nulls[0]['shard']]}: column '{table.names[key]}' has {nulls[0]['n']} nulls, expected none"
        )
    counted = listed.group_by(key).aggregate(n=ibis._.count())
    if twice := rows(session, counted.filter(counted.n > 1).order_by(key).limit(1)):
        raise UserError(
            f"{table.place}: column '{table.names[key]}' has {twice[0][key]!r} in {twice[0]['n']} rows, expected one"
        )
    return listed


def write_parts_read(job: Build, session: Session, events: ir.Table, folder: Path) -> None:
    """Whether the files themselves say which events are validation; where they do not, the split holds some out."""
    told = True
    if job.split.needs == "split":
        told = bool(rows(session, events.filter(events.split == "val").select("split").limit(1)))
    (folder / KEPT / PARTS).write_text(json.dumps({"val_is_given": told}) + "\n")


def check_parts(job: Build, users: Entities) -> None:
    """Some events in every part.

    Raises:
        UserError: a part without any.
    """
    place = job.tables["interactions"].place
    sizes = {"training": users.train.sum(), "validation": users.val.sum(), "test": users.test.sum()}
    if not any(sizes.values()):
        raise UserError(
            f"{place}: no events are left with data.min_user_events={job.min_user_events}, "
            f"data.min_item_events={job.min_item_events}"
        )
    for part, size in sizes.items():
        if not size:
            counts = ", ".join(f"{size} {part}" for part, size in sizes.items())
            raise UserError(f"{place}: {job.split} leaves no {part} events ({counts}); expected some in every part")
