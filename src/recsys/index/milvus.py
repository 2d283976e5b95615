"""Milvus as the vector database. Its client, pymilvus, is imported when a server is called.

A collection has the fields `row` (the key), `embedding`, `version`, and the fields of `milvus_columns`. Its index is
IVF_FLAT: the breadth of a search is its number of lists, nprobe, and at the highest one it is exact. A filtered search
of Milvus 2.3's HNSW index found nothing at all for two queries in a hundred, whatever its breadth.
"""

from __future__ import annotations

import logging
import math
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa

from recsys.core.errors import UserError
from recsys.core.types import Float32Array, Int64Array
from recsys.index.milvus_columns import Field, column_of, fields_of, rows_of, to_expression
from recsys.index.vector_database import CollectionMissingError, Condition, DatabaseError

P = ParamSpec("P")
T = TypeVar("T")

# Environment variable with the token, or USER:PASSWORD, of a server that wants one.
TOKEN = "RECSYS_MILVUS_TOKEN"  # noqa: S105 (a name)
_ADDRESS = re.compile(r"milvus://(\[[0-9a-fA-F:.]+\]|[^][/:?#]+):[1-9][0-9]{0,4}")
PREFIX, FILLING = "items_", "filling_"
# Fields of a collection, and bytes of a message to the server.
MOST_FIELDS, MESSAGE_BYTES = 64, 8 << 20
# Letters of an error of the server, which may repeat a filter.
_MESSAGE = 500
# Seconds of a search or a listing, of a change of collections, which waits for a server that starts, and of a step of
# filling.
_SECONDS, _CHANGE_SECONDS, _FILL_SECONDS = 5.0, 60.0, 3600.0


class Milvus:
    """A Milvus server.

    Args:
        address: `milvus://HOST:PORT`.
        num_lists: k-means lists of a collection; None for about 2 sqrt(N).
        columns: columns of the items that filters can use; None for all.
    """

    most_results = 16384

    def __init__(self, address: str, num_lists: int | None = None, columns: Sequence[str] | None = None) -> None:
        if "@" in address:
            shown = address.rpartition("@")[2]
            raise UserError(f"milvus: found a user or a password before {shown!r}; expected them in {TOKEN}")
        if not _ADDRESS.fullmatch(address):
            raise UserError(f"milvus: found {address!r}, expected milvus://HOST:PORT")
        if num_lists is not None and not 1 <= num_lists <= 65536:
            raise UserError(f"index.database.num_lists: found {num_lists}, expected 1 to 65536")
        self.address, self.num_lists = address, num_lists
        self._columns = None if columns is None else list(columns)
        self._lock = threading.Lock()
        self._opened: Any = None
        self._fields = lru_cache(maxsize=64)(self._read_fields)

    def parameters(self) -> Mapping[str, Any]:
        """Return the arguments of the constructor without the address."""
        return {"num_lists": self.num_lists, "columns": self._columns}

    def max_breadth(self, num_items: int) -> int:
        """Return the number of lists."""
        return self.num_lists or min(max(1, 2 * math.isqrt(num_items)), 65536)

    def versions(self) -> list[str]:
        """Return the versions of the collections `items_<version>` that are loaded; after a restart that takes long."""
        client = self._client
        names: list[str] = self._call(client.list_collections, timeout=_SECONDS)
        versions = [name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)]
        return [version for version in versions if self._is_loaded(client, version)]

    def _is_loaded(self, client: Any, version: str) -> bool:
        try:
            state = self._call(client.get_load_state, PREFIX + version, timeout=_SECONDS, of_version=version)
        except CollectionMissingError:
            return False
        return bool(state["state"].name == "Loaded")

    def fill(self, version: str, items: pa.Table, embeddings: Float32Array) -> None:
        """Insert, index and load under another name, which is renamed at the end; only load a complete collection."""
        from pymilvus import DataType, MilvusClient

        items = items if self._columns is None else items.select(self._columns)
        fields, name = fields_of(items), FILLING + version
        if len(fields) + 3 > MOST_FIELDS:
            raise UserError(
                f"index.database.columns: found {len(items.column_names)} columns that take {len(fields)} fields, and "
                f"a collection has at most {MOST_FIELDS - 3} for them; list those that filters need"
            )
        client = self._client
        if self._call(client.has_collection, PREFIX + version, timeout=_SECONDS):
            # A restarted server loads its collections one after the other, and gateways need this one now.
            self._call(client.load_collection, PREFIX + version, timeout=_FILL_SECONDS)
            return
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("row", DataType.INT64, is_primary=True)
        schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=embeddings.shape[1])
        schema.add_field("version", DataType.VARCHAR, max_length=64)
        for field in fields:
            schema.add_field(field.name, DataType[field.kind], **_sizes(field, DataType))
        self.drop(version)
        self._call(client.create_collection, name, schema=schema, timeout=_CHANGE_SECONDS)
        step = max(1, MESSAGE_BYTES // (4 * embeddings.shape[1] + 16 * len(fields)))
        for begin in range(0, len(embeddings), step):
            vectors = embeddings[begin : begin + step]
            rows = rows_of(fields, begin, count=len(vectors))
            for number, (row, vector) in enumerate(zip(rows, vectors, strict=True)):
                row.update(row=begin + number, embedding=vector, version=version)
            self._call(client.insert, name, rows, timeout=_FILL_SECONDS)
        self._call(client.flush, name, timeout=_FILL_SECONDS)
        index = MilvusClient.prepare_index_params()
        lists = {"nlist": self.max_breadth(len(embeddings))}
        index.add_index("embedding", index_type="IVF_FLAT", metric_type="IP", params=lists)
        self._call(client.create_index, name, index, timeout=_FILL_SECONDS)
        self._call(client.load_collection, name, timeout=_FILL_SECONDS)
        held = self._count(name, "", is_strong=True)
        if held != len(embeddings):
            raise DatabaseError(f"{self.address}: {name} holds {held} items, expected {len(embeddings)}")
        self._call(client.rename_collection, name, PREFIX + version, timeout=_CHANGE_SECONDS)

    def columns(self, version: str) -> list[str]:
        """Return the columns whose fields the collection has."""
        return [column for column in map(column_of, self._fields(version)) if column is not None]

    def count(self, version: str, conditions: Sequence[Condition]) -> int:
        """Return the number of rows that meet the conditions."""
        return self._count(PREFIX + version, to_expression(conditions, self._fields(version)), version=version)

    def search(
        self, version: str, queries: Float32Array, k: int, *, breadth: int, conditions: Sequence[Condition]
    ) -> tuple[Float32Array, Int64Array]:
        """Search `items_<version>`, and no alias."""
        hits = self._call(
            self._client.search,
            PREFIX + version,
            data=list(queries),
            anns_field="embedding",
            limit=k,
            filter=to_expression(conditions, self._fields(version)),
            search_params={"metric_type": "IP", "params": {"nprobe": breadth}},
            output_fields=["version"],
            # Nothing changes in a collection once it has its name.
            consistency_level="Eventually",
            timeout=_SECONDS,
            of_version=version,
        )
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        for query, found in enumerate(hits):
            other = {found.get_raw_item(place)["entity"]["version"] for place in range(len(found))} - {version}
            if other:
                raise DatabaseError(f"{self.address}: {PREFIX}{version} holds items of {sorted(other)[0]}")
            scores[query, : len(found)], rows[query, : len(found)] = found.distances, found.ids
        return scores, rows

    def drop(self, version: str) -> None:
        """Drop `items_<version>`, and what an interrupted `fill` left."""
        for name in (PREFIX + version, FILLING + version):
            self._call(self._client.drop_collection, name, timeout=_CHANGE_SECONDS)
        self._fields.cache_clear()

    def _read_fields(self, version: str) -> frozenset[str]:
        found = self._call(self._client.describe_collection, PREFIX + version, timeout=_SECONDS, of_version=version)
        return frozenset(field["name"] for field in found["fields"])

    def _count(self, name: str, expression: str, *, version: str | None = None, is_strong: bool = False) -> int:
        level = "Strong" if is_strong else "Eventually"
        fields = ["count(*)"]
        found = self._call(
            self._client.query, name, filter=expression, output_fields=fields, consistency_level=level,
            timeout=_CHANGE_SECONDS if is_strong else _SECONDS, of_version=version,
        )  # fmt: skip
        return int(found[0]["count(*)"])

    @property
    def _client(self) -> Any:
        with self._lock:
            if self._opened is None:
                try:
                    from pymilvus import MilvusClient
                except ModuleNotFoundError as error:
                    raise UserError(
                        f"{self.address}: needs the package 'pymilvus': pip install 'recsys[milvus]'"
                    ) from error
                # It logs each error with its stack, besides raising it.
                logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
                token, address = os.environ.get(TOKEN, ""), self.address.replace("milvus://", "http://")
                self._opened = self._call(MilvusClient, address, token=token, timeout=_SECONDS)
            return self._opened

    def _call(self, call: Callable[..., Any], *args: Any, of_version: str | None = None, **options: Any) -> Any:
        import grpc
        from pymilvus.exceptions import MilvusException

        try:
            return call(*args, **options)
        except grpc.RpcError as error:
            # It retries some of these itself, and lets others through.
            raise DatabaseError(f"{self.address}: does not answer ({error.code().name})") from error
        except MilvusException as error:
            if of_version is not None and not self._call(
                self._client.has_collection, PREFIX + of_version, timeout=_SECONDS
            ):
                raise CollectionMissingError(f"{self.address}: has no collection {PREFIX}{of_version}") from error
            raise DatabaseError(f"{self.address}: {error.message[:_MESSAGE]}") from error


def _sizes(field: Field, types: Any) -> dict[str, Any]:
    if field.kind == "VARCHAR":
        return {"max_length": 65535}
    if field.kind == "ARRAY":
        lengths = {"max_length": 65535} if field.element == "VARCHAR" else {}
        return {"element_type": types[field.element], "max_capacity": 4096, **lengths}
    return {}
