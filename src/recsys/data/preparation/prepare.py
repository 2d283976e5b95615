"""From the source's tables to the prepared data set: relational steps on an engine, then encoded columns.

    files -> checked tables -> events with parts -> users, items -> vocabularies -> events in order -> arrays

The result is named by a fingerprint of the files' contents and the settings, wherever the files lie and whichever
engine does the work.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from recsys.core.errors import UserError, nearest
from recsys.core.schema import OWNERS, TimeResolution
from recsys.data.dataset import FORMAT, PreparedDataset
from recsys.data.preparation.engines import DuckDB, Engine
from recsys.data.preparation.feature_plans import plan_features
from recsys.data.preparation.growth import build_or_grow
from recsys.data.preparation.job import Build
from recsys.data.preparation.splits import Split
from recsys.data.sources import Source
from recsys.data.sources.files import build_folder, digest, fingerprint
from recsys.data.sources.tables import NAMES, Table, inspect

log = logging.getLogger("recsys")


def _same_names() -> dict[str, str]:
    return {name: name for name in NAMES}


@dataclass(frozen=True)
class DataSettings:
    """How to read the source.

    Attributes:
        time_resolution: precision of the timestamps, the configuration key `data.time`; `DAY` rounds them down.
        columns: our names (user_id, item_id, timestamp, split) -> names in the files.
        features: owner -> column -> {kind, role, ignore, buckets}.
        engaged: column of interactions that is true (or not 0) where the user engaged with what was shown; rows where
            it is false are exposures, which are no events. Null where every row is an event.
        min_user_events: users with fewer events are left out; together with `min_item_events`, until none is left.
        min_item_events: items with fewer events lose them.
    """

    time_resolution: TimeResolution = TimeResolution.SECONDS
    columns: Mapping[str, str] = field(default_factory=_same_names)
    features: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    engaged: str | None = None
    min_user_events: int = 0
    min_item_events: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "time_resolution", TimeResolution.parse(self.time_resolution))
        for owner, columns in self.features.items():
            if columns is not None and not isinstance(columns, Mapping):
                raise UserError(
                    f"data.features.{owner}={columns}: expected {{column: {{kind, role, ignore, buckets}}}}"
                )
            for column, options in (columns or {}).items():
                if options is not None and not isinstance(options, Mapping):
                    raise UserError(
                        f"data.features.{owner}.{column}={options}: expected {{kind, role, ignore, buckets}}, such as "
                        f"data.features.{owner}.{column}.kind={options}"
                    )


def prepare(
    source: Source, split: Split, settings: DataSettings, cache: Path, engine: Engine | None = None
) -> PreparedDataset:
    """The prepared data set, built where the cache does not have it yet.

    Args:
        source: where the tables come from.
        split: what is training, validation and test.
        settings: how to read the tables.
        cache: folder of everything that can be made again.
        engine: what runs the relational steps; the result does not depend on it. Default: DuckDB.

    Raises:
        UserError: whatever is wrong with the source or the settings, by file, column and key.
    """
    job, name, described = plan(source, split, settings, cache)
    folder = Path(cache) / "prepared" / name
    started = time.monotonic()
    built = build_folder(folder, partial(build_or_grow, job, name, described, engine or DuckDB(), folder.parent))
    dataset = PreparedDataset.open(folder)
    how = f"prepared in {time.monotonic() - started:.1f} s" if built else "already prepared"
    log.info(
        "%s: %s; %d users, %d items, %d events, features: %s",
        folder,
        how,
        dataset.num_users,
        dataset.num_items,
        dataset.meta.num_events,
        ", ".join(f.key for f in dataset.schema.features) or "none",
    )
    return dataset


def plan(source: Source, split: Split, settings: DataSettings, cache: Path) -> tuple[Build, str, dict[str, Any]]:
    """What there is to do, the name of its result, and what that name is made of. Reads footers and digests only.

    Raises:
        UserError: as `prepare`.
    """
    files = source.tables(Path(cache) / "sources")
    declared = settings.features.get("interactions") or {}
    used = [name for name, options in declared.items() if not (options or {}).get("ignore")]
    used += [settings.engaged] if settings.engaged is not None else []
    tables = inspect(files, settings.columns, split.needs, used)
    if settings.engaged is not None:
        _check_engaged(settings, tables["interactions"])
    plans = plan_features(tables, settings.features)
    described = _describe(split, settings, tables)
    least = settings.min_user_events, settings.min_item_events
    job = Build(tables, plans, split, settings.time_resolution, *least, settings.engaged)
    return job, fingerprint([json.dumps(described, sort_keys=True, default=repr)]), described


def _check_engaged(settings: DataSettings, table: Table) -> None:
    column = settings.engaged
    if column not in table.others():
        raise UserError(
            f"data.engaged={column}: {table.place} has no such column{nearest(str(column), table.others())}"
        )
    kind = table.types[column]
    if not (pa.types.is_boolean(kind) or pa.types.is_integer(kind)):
        raise UserError(f"data.engaged={column}: {table.place} holds {kind} there, expected booleans or integers")
    if not settings.time_resolution.has_order or "timestamp" not in table.names:
        raise UserError(f"data.engaged={column}: exposures need times, to come with the events of their time")


def _describe(split: Split, settings: DataSettings, tables: Mapping[str, Table]) -> dict[str, Any]:
    """Everything that the prepared data set depends on."""
    columns = {name: settings.columns.get(name) or name for name in NAMES}
    features = {owner: named for owner in OWNERS if (named := _plain(settings.features.get(owner)))}
    described = asdict(replace(settings, columns=columns, features=features))
    # Fingerprints of existing data sets hold this name.
    described["time"] = described.pop("time_resolution")
    if settings.engaged is None:
        # Names data sets as before there were exposures.
        del described["engaged"]
    return {
        "format": FORMAT,
        "split": repr(split),
        "settings": described,
        "files": {owner: [digest(f) for f in tables[owner].files] for owner in OWNERS if owner in tables},
    }


def _plain(node: Any) -> Any:
    """Mappings of any kind, nested ones too, as dictionaries."""
    return {key: _plain(value) for key, value in node.items()} if isinstance(node, Mapping) else node
