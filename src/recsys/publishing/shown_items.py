"""The table of items of a release: their ids, and the columns of the source that are shown and filtered by."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from omegaconf import DictConfig

from recsys.core.errors import UserError
from recsys.data.encoding import plain
from recsys.data.sources.files import open_file
from recsys.data.sources.keys import key_column
from recsys.data.sources.literal_columns import read_columns
from recsys.experiments.assembly import instantiate
from recsys.experiments.trained_run import TrainedRun

log = logging.getLogger("recsys")


def shown_items(run: TrainedRun) -> pa.Table:
    """Return the ids of the corpus in the order of the index, with the source's columns for display and filters."""
    ids = run.dataset.item_ids.take(pa.array(run.corpus - 1))
    columns: dict[str, pa.Array] = {"item_id": ids, "item_idx": pa.array(run.corpus)}
    try:
        source = _source_items(run.config, ids.type)
    except (UserError, OSError, pa.ArrowException) as error:
        log.warning("the items of the source cannot be read, so the release has their ids only (%s)", error)
        source = None
    if source is not None:
        rows = pc.index_in(ids, value_set=plain(source["item_id"]))
        for name in source.column_names:
            if name not in columns:
                columns[name] = plain(source[name]).take(rows)
    return pa.table(columns)


def _source_items(config: DictConfig, id_type: pa.DataType) -> pa.Table | None:
    tables = instantiate(config.data.source).tables(Path(config.data.cache) / "sources")
    shards = []
    for file in tables.items:
        with open_file(file) as opened:
            schema = pq.read_schema(opened)
        names = [f.name for f in schema if f.name and _is_shown(f.type) and schema.names.count(f.name) == 1]
        shards.append(read_columns(file, names))
    if not shards:
        return None
    table = pa.concat_tables(shards, promote_options="permissive")
    key = key_column(config.data.columns, "items", table.column_names)
    ids = plain(table[key]).cast(id_type)
    table = table.drop_columns([name for name in {key, "item_id"} if name in table.column_names])
    return table.append_column("item_id", ids)


def _is_shown(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_text(kind.value_type) or bool(pa.types.is_integer(kind.value_type))
    return _is_text(kind) or bool(pa.types.is_primitive(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
