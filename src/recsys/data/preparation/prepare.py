"""Prepare a data set, or open it if it has been prepared before.

    files -> checked tables -> events with parts -> users, items -> vocabularies -> ordered events -> arrays

The name of the result is a fingerprint of the content of the files and of the settings. It does not depend on the path
of the files or on the engine.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from recsys.core.errors import UserError, nearest
from recsys.core.io import atomic_file
from recsys.core.schema import OWNERS, TimeResolution
from recsys.data.codes import Codes
from recsys.data.content_encoders import CACHE
from recsys.data.dataset import FORMAT, META, PreparedDataset
from recsys.data.preparation.engines import DuckDB, Engine
from recsys.data.preparation.feature_plans import plan_features
from recsys.data.preparation.job import PreparationJob
from recsys.data.preparation.pipeline import build
from recsys.data.preparation.settings import DataSettings
from recsys.data.preparation.splits import Split, fingerprint_text
from recsys.data.sources import Source
from recsys.data.sources.files import build_once, digest, fingerprint, is_local, open_filesystem
from recsys.data.sources.keys import NAMED_ONLY, NAMES
from recsys.data.sources.refusals import check_columns
from recsys.data.sources.tables import Table, id_type, inspect

log = logging.getLogger("recsys")
# Folders that a line of the log has described.
_described: set[Path] = set()


def prepare(
    source: Source,
    split: Split,
    *,
    settings: DataSettings,
    cache: Path,
    engine: Engine | None = None,
    codes: Codes | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> PreparedDataset:
    """Return the prepared data set, or a portion of it. Build it first if the cache does not hold it.

    Args:
        source: origin of the tables.
        split: assigns events to training, validation and test.
        settings: how the tables are read.
        cache: folder of prepared data sets and other files that can be recomputed.
        engine: runs the relational steps; DuckDB by default. The result does not depend on it.
        codes: ids and features of trained towers to keep; None to number them by the data.
        rank: number of this process among those that share the users.
        world_size: number of these processes.

    Raises:
        UserError: If the source or the settings are wrong. The message names file, column or key.
    """
    job = plan_preparation(source, split, settings=settings, cache=cache, codes=codes)
    folder = Path(cache) / "prepared" / job.fingerprint
    started = time.monotonic()
    built = build_once(folder, lambda aside: _fetch_or_build(job, engine or DuckDB(), aside))
    dataset = PreparedDataset.open(folder, rank=rank, world_size=world_size)
    how = f"prepared in {time.monotonic() - started:.1f} s" if built else "already prepared"
    # The parts of a command open the same data, and one line about it is enough.
    log.log(
        logging.DEBUG if folder in _described else logging.INFO,
        "%s: %s; %d users, %d items, %d events, features: %s",
        folder,
        how,
        dataset.num_users,
        dataset.num_items,
        dataset.meta.num_events,
        ", ".join(f.key for f in dataset.schema.features) or "none",
    )
    _described.add(folder)
    return dataset


def _fetch_or_build(job: PreparationJob, engine: Engine, folder: Path) -> None:
    """Fill an empty folder, from the output of the engine if the data set is complete there."""
    if engine.output is None:
        build(job, engine, folder=folder)
        return
    filesystem, path = open_filesystem(f"{engine.output}/{job.fingerprint}")
    if not filesystem.exists(f"{path}/{META}"):
        build(job, engine, folder=folder)
        # The file that marks a complete data set comes last.
        files = sorted((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.name == META)
        for file in files:
            target = f"{path}/{file.relative_to(folder).as_posix()}"
            if is_local(filesystem):
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                with atomic_file(Path(target)) as aside:
                    shutil.copyfile(file, aside)
            else:
                filesystem.put_file(str(file), target)
        return
    for source in filesystem.find(path):
        inner = source.removeprefix(path).lstrip("/")
        if not inner.startswith("shards/"):
            (folder / inner).parent.mkdir(parents=True, exist_ok=True)
            filesystem.get_file(source, str(folder / inner))


def plan_preparation(
    source: Source, split: Split, *, settings: DataSettings, cache: Path, codes: Codes | None = None
) -> PreparationJob:
    """Return the preparation of a source. Only footers and digests of the files are read.

    Raises:
        UserError: If the source or the settings are wrong. The message names file, column or key.
    """
    files = source.tables(Path(cache) / "sources")
    if codes is not None:
        settings = replace(settings, features=codes.settings)
    declared = settings.features.get("interactions") or {}
    used = [name for name, options in declared.items() if not (options or {}).get("ignore")]
    others = [*([settings.engaged.column] if settings.engaged else []), *([settings.weight] if settings.weight else [])]
    rows_order = split.needs == "order" and settings.time_resolution is TimeResolution.ORDER
    needs = None if rows_order else split.needs
    tables = inspect(files, settings.columns, split_needs=needs, event_columns=used + others)
    for name in NAMED_ONLY:
        if settings.columns.get(name) and "items" not in tables:
            raise UserError(f"data.columns.{name}={settings.columns[name]}: the source has no items.parquet")
    if settings.engaged is not None:
        has_order = settings.time_resolution.has_order and "timestamp" in tables["interactions"].names
        settings.engaged.check(tables["interactions"], has_order=has_order)
    if settings.weight is not None:
        _check_weight(settings.weight, tables["interactions"])
    features = plan_features(tables, settings.features)
    if codes is not None:
        features = [plan for plan in features if plan.name in codes.settings[plan.owner]]
    for owner, table in tables.items():
        read = [*table.names.values(), *(plan.name for plan in features if plan.owner == owner)]
        check_columns(table, read + (others if owner == "interactions" else []))
    described = _describe(split, settings, tables)
    encoders = {f"{f.owner}.{f.name}": f.encoder for f in features if f.encoder is not None}
    for encoder in encoders.values():
        encoder.cache = Path(cache) / CACHE
    if encoders:
        described["encoders"] = {name: encoder.digest for name, encoder in encoders.items()}
    if codes is not None:
        _check_codes(codes, tables["interactions"])
        described["codes"] = codes.digest
    return PreparationJob(tables, features, split, settings, described, codes)


def _check_codes(codes: Codes, interactions: Table) -> None:
    for key in ("user_id", "item_id"):
        found, expected = id_type(interactions, key), getattr(codes.schema, f"{key}_type")
        if found != expected:
            raise UserError(f"{interactions.place}: {key} is {found}, but {expected} in the towers")


def _check_weight(column: str, table: Table) -> None:
    place = f"data.weight={column}"
    if column not in table.feature_columns():
        raise UserError(f"{place}: {table.place} has no such column{nearest(column, table.feature_columns())}")
    kind = table.types[column]
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise UserError(
            f"{place}: {table.place} holds {kind} there, expected numbers; "
            f"history.action_weights.{column}.VALUE=WEIGHT weighs the values of a category"
        )


def _describe(split: Split, settings: DataSettings, tables: Mapping[str, Table]) -> dict[str, Any]:
    columns: dict[str, Any] = {name: settings.columns.get(name) or name for name in NAMES}
    columns |= {name: settings.columns[name] for name in NAMED_ONLY if settings.columns.get(name)}
    for owner in OWNERS:
        if own := {key: name for key, name in (settings.columns.get(owner) or {}).items() if name}:
            columns[owner] = own
    features = {owner: named for owner in OWNERS if (named := _plain(settings.features.get(owner)))}
    for column in features.get("items", {}).values():
        # The digest of a model is described, its place is not.
        (column or {}).pop("encoder", None)
    described = asdict(replace(settings, columns=columns, features=features))
    described["suppressed"] = fingerprint(sorted(settings.suppressed)) if settings.suppressed else None
    # Fingerprints of existing data sets depend on these names: a change would make every run prepare its data again.
    described["time"] = described.pop("time_resolution")
    described["engaged"] = settings.engaged.described() if settings.engaged is not None else None
    for name in ("engaged", "weight", "time_unit", "time_format", "suppressed"):
        if described[name] is None:
            del described[name]
    if settings.time_resolution is TimeResolution.ORDER and "timestamp" not in tables["interactions"].names:
        described["order"] = "rows"
    return {
        "format": FORMAT,
        "split": fingerprint_text(split),
        "settings": described,
        "files": {owner: [digest(f) for f in tables[owner].files] for owner in OWNERS if owner in tables},
    }


def _plain(node: Any) -> Any:
    """Return mappings of any kind, nested ones too, as dictionaries."""
    return {key: _plain(value) for key, value in node.items()} if isinstance(node, Mapping) else node
