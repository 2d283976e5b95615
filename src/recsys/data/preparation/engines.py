"""Engines that run the relational steps of a preparation. The Ibis expressions are the same for all of them.

An engine provides what Ibis has no common expression for: reading files with the place of each row, times as exact
integers, and results too large for memory as an ordered stream.
"""

from __future__ import annotations

import re
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import fsspec
import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.core.errors import UserError
from recsys.core.progress import track
from recsys.core.schema import Feature

# Rows of a record batch.
BATCH_ROWS = 262_144
Reading = Literal["as_is", "int64", "string", "date", "time", "nanoseconds"]


class Read(NamedTuple):
    """Column to read: its name in the files and its conversion (`date`, `time`, `nanoseconds` give microseconds)."""

    column: str
    reading: Reading = "as_is"


# A feature with an encoder, and the folder that the paths of images are relative to.
Content = tuple[Feature, str]
# Function of all batches, as `mapInArrow` of Spark takes it.
OnBatches = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]


# Applies a function to each value and returns the results in order.
ForEach = Callable[[Callable[[Any], Any], Iterable[Any]], list[Any]]


def here(function: Callable[[Any], Any], values: Iterable[Any]) -> list[Any]:
    """Apply a function to each value in this process."""
    return [function(value) for value in values]


class Session(Protocol):
    """Open engine.

    Attributes:
        scratch: folder for files that live as long as the session.
    """

    scratch: Path

    @property
    def output(self) -> str | None:
        """Folder or address where shards stay; None if they become one data set in the cache."""

    def read(self, files: Sequence[str], columns: Mapping[str, Read]) -> ir.Table:
        """Return columns of Parquet files by new names, and the place of each row: `shard` int64, `row` int64.

        Engines interpret names; `plain_files` makes files whose names they cannot mistake.
        """

    def keep(self, table: ir.Table) -> ir.Table:
        """Compute a table once and return the result, which lives as long as the session."""

    def stream(self, table: ir.Table) -> Iterator[pa.RecordBatch]:
        """Yield the rows in the order of the table. Read the stream to its end before the next query."""

    def collect(self, table: ir.Table) -> pa.Table:
        """Return all rows in the order of the table; for results that fit into memory."""

    def add(self, rows: pa.Table) -> ir.Table:
        """Return rows of this process as a table, which lives as long as the session."""

    def map(self, table: ir.Table, function: OnBatches, schema: pa.Schema) -> ir.Table:
        """Apply a function to all rows, or to the rows of each worker; it returns batches of `schema`."""

    def encode(self, table: ir.Table, contents: Mapping[str, Content], *, index: str) -> ir.Table:
        """Return the table with vectors in place of texts and images, or as it is if this process computes them.

        Args:
            table: rows with a number that is their own.
            contents: features with an encoder, and the folder of their images, by the names of their columns.
            index: column of the number.

        Raises:
            BadImageError: If a worker finds no image in a file.
            UserError: If a worker cannot open or use the model.
        """

    def number(self, ordered: ir.Table, name: str, *, first: int) -> ir.Table:
        """Keep the rows with the column `name`, their place in the order from `first` on. `stream` has this order."""

    def write_ranges(
        self, table: ir.Table, order: Sequence[str], *, write: OnBatches, schema: pa.Schema, what: str, num_rows: int
    ) -> pa.Table:
        """Let each worker write the rows of a range of the first column of `order`, in that order.

        Args:
            table: rows to write.
            order: columns that order them.
            write: writes the batches of a range and returns batches of `schema`, which are returned.
            schema: columns of the result.
            what: name of the work, for its progress.
            num_rows: number of rows, for the progress.
        """

    @property
    def for_each(self) -> ForEach:
        """Applies a function on the workers."""


class Engine(Protocol):
    """Runs the relational steps of a preparation.

    Attributes:
        output: folder or address where the workers keep the data set in shards; None if it becomes one in the cache.
    """

    @property
    def output(self) -> str | None: ...  # noqa: D102

    def open(self, scratch: Path) -> AbstractContextManager[Session]:
        """Start the engine. It spills data into the folder `scratch`."""


# Paths that no engine takes for a pattern, a partition or an address with escapes.
_LITERAL = re.compile(r"/([A-Za-z0-9][\w.+-]*/)*[A-Za-z0-9][\w.+-]*", re.ASCII)


def literal(files: Sequence[str], links: Path) -> list[str]:
    """Return the files, with links in the folder `links` in place of local paths that engines might interpret."""
    return [file if "://" in file or _LITERAL.fullmatch(file) else _link(Path(file), links) for file in files]


def _link(path: Path, links: Path) -> str:
    link = links / f"{uuid.uuid4().hex}.parquet"
    link.symlink_to(path.absolute())
    return str(link)


def first_row(session: Session, table: ir.Table) -> dict[str, Any]:
    """Return the only row of an aggregate."""
    return rows(session, table)[0]


def rows(session: Session, table: ir.Table) -> list[dict[str, Any]]:
    """Return all rows of a small result."""
    found: list[dict[str, Any]] = session.collect(table).to_pylist()
    return found


@dataclass(frozen=True)
class DuckDB:
    """Engine that runs DuckDB in this process and spills to disk.

    Attributes:
        memory: limit of its memory, such as `3GB`. Beyond it, DuckDB spills to disk.
        threads: number of threads; null for all cores.
    """

    memory: str = "3GB"
    threads: int | None = None
    output: ClassVar[None] = None

    @contextmanager
    def open(self, scratch: Path) -> Iterator[Session]:
        """Start an in-memory database that spills into `scratch`.

        Raises:
            UserError: If the data does not fit into memory and disk, or a file cannot be read.
        """
        import duckdb

        settings: dict[str, Any] = {"memory_limit": self.memory, "temp_directory": str(scratch / "spill")}
        if self.threads is not None:
            settings["threads"] = self.threads
        try:
            connection = ibis.duckdb.connect(**settings)
        except duckdb.Error as error:
            raise UserError(f"data.engine: {error}") from error
        try:
            with tempfile.TemporaryDirectory(prefix="recsys-") as links:
                yield _DuckDBSession(connection, scratch, links=Path(links))
        except duckdb.OutOfMemoryException as error:
            raise UserError(f"data.engine.memory={self.memory} is not enough: {error}") from error
        except duckdb.Error as error:
            ours = isinstance(error, duckdb.ProgrammingError | duckdb.InternalError)
            if ours and not isinstance(error, duckdb.InvalidInputException):
                raise
            raise UserError(f"the data cannot be read: {error}") from error
        finally:
            connection.disconnect()


class _DuckDBSession:
    output: ClassVar[None] = None

    def __init__(self, connection: Any, scratch: Path, *, links: Path) -> None:
        self._connection, self.scratch, self._links = connection, scratch, links
        self._num_names = 0

    def _create(self, kind: str, sql: str) -> ir.Table:
        self._num_names += 1
        name = f"{kind}_{self._num_names}"
        self._connection.raw_sql(f"CREATE {kind} {name} AS {sql}")
        return self._connection.table(name)

    def read(self, files: Sequence[str], columns: Mapping[str, Read]) -> ir.Table:
        for protocol in {file.split("://")[0] for file in files if "://" in file}:
            if not self._connection.con.filesystem_is_registered(protocol):
                self._connection.register_filesystem(fsspec.filesystem(protocol))
        wanted = [f"{_duckdb(read)} AS {_quoted(name)}" for name, read in columns.items()]
        wanted += ["file_index::BIGINT AS shard", "file_row_number AS row"]
        names = ", ".join("'" + file.replace("'", "''") + "'" for file in literal(files, self._links))
        return self._create("VIEW", f"SELECT {', '.join(wanted)} FROM read_parquet([{names}], hive_partitioning=false)")

    def keep(self, table: ir.Table) -> ir.Table:
        return self._create("TABLE", self._connection.compile(table))

    def stream(self, table: ir.Table) -> Iterator[pa.RecordBatch]:
        # `to_pyarrow_batches` of Ibis 12 calls a method that DuckDB 2 has renamed.
        expected = table.schema().to_pyarrow()
        # Each result has its own cursor. A connection with an unfinished result refuses further queries, such as the
        # one that finds the row of an error.
        cursor = self._connection.con.cursor()
        for batch in cursor.sql(self._connection.compile(table)).to_arrow_reader(BATCH_ROWS):
            yield typed(batch, expected)

    def collect(self, table: ir.Table) -> pa.Table:
        return pa.Table.from_batches(self.stream(table), table.schema().to_pyarrow())

    def add(self, rows: pa.Table) -> ir.Table:
        return self._written(rows.to_batches(), rows.schema).drop("shard", "row")

    def map(self, table: ir.Table, function: OnBatches, schema: pa.Schema) -> ir.Table:
        return self._written(function(self.stream(table)), schema).drop("shard", "row")

    def encode(self, table: ir.Table, contents: Mapping[str, Content], *, index: str) -> ir.Table:  # noqa: ARG002
        return table

    def number(self, ordered: ir.Table, name: str, *, first: int) -> ir.Table:
        written = self._written(self.stream(ordered), ordered.schema().to_pyarrow())
        return written.mutate((written.row + first).name(name)).drop("shard", "row")

    def write_ranges(
        self, table: ir.Table, order: Sequence[str], *, write: OnBatches, schema: pa.Schema, what: str, num_rows: int
    ) -> pa.Table:
        rows = track(self.stream(table.order_by(*order)), what, total=num_rows, unit="rows", size=len)
        return pa.Table.from_batches(write(rows), schema)

    for_each = staticmethod(here)

    def _written(self, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> ir.Table:
        file = self.scratch / f"{uuid.uuid4().hex}.parquet"
        with pq.ParquetWriter(file, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        return self.read([str(file)], {name: Read(name) for name in schema.names})


def typed(batch: pa.RecordBatch, expected: pa.Schema) -> pa.RecordBatch:
    """Return the batch with the types of a schema, which name the same columns."""
    columns = [column.cast(field.type) for column, field in zip(batch.columns, expected, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=expected)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _duckdb(read: Read) -> str:
    column = _quoted(read.column)
    forms = {
        "as_is": column,
        "int64": f"{column}::BIGINT",
        "string": f"{column}::VARCHAR",
        "date": f"epoch_us({column}::DATE)",
        "time": f"epoch_us({column})",
        # `epoch_us` rounds to the nearest microsecond; times are rounded down.
        "nanoseconds": f"(epoch_ns({column}) - (epoch_ns({column}) % 1000 + 1000) % 1000) // 1000",
    }
    return forms[read.reading]


@dataclass(frozen=True)
class Spark:
    """Engine that runs PySpark (extra `spark`), for data beyond one machine.

    The workers number users and items and write the events, each a range of users. They need this package. This process
    copies what streams by and collects only the values of categories, so its memory does not grow with the data. A
    session that is active already is used as it is, and stays.

    Attributes:
        master: address of the cluster, such as `local[2]`, `spark://HOST:7077` or `yarn`.
        memory: memory of the driver, which is the worker too if `master` is local.
        shuffle_partitions: number of pieces into which joins and sorts cut the data; more for more data.
        output: folder that the workers and every later process reach, a shared path or an address such as
            `s3://BUCKET/prepared`. The data set is kept there in shards. Null for workers of this machine: the shards
            become one data set in the cache.
        options: further settings of Spark, such as `spark.executor.memory`.
    """

    master: str = "local[2]"
    memory: str = "2g"
    shuffle_partitions: int = 8
    output: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def open(self, scratch: Path) -> Iterator[Session]:
        """Start a Spark session, or take the active one.

        Raises:
            UserError: If PySpark is not installed, or workers of other machines have no output.
        """
        from recsys.data.preparation.spark import open_spark  # noqa: PLC0415  (Spark is an extra)

        is_local = self.master.startswith("local")
        if self.output is None and not is_local:
            raise UserError(
                f"data.engine.master={self.master}: expected data.engine.output=ADDRESS too, a folder that the workers "
                "and this process reach, such as s3://BUCKET/prepared"
            )
        options = {
            "spark.driver.memory": self.memory,
            "spark.sql.session.timeZone": "UTC",
            "spark.sql.legacy.parquet.nanosAsLong": "true",
            "spark.sql.caseSensitive": "true",
            "spark.ui.enabled": "false",
            "spark.sql.shuffle.partitions": str(self.shuffle_partitions),
            "spark.ui.showConsoleProgress": "false",
            # The driver builds tables of broadcast joins, many times as large as their compressed size.
            "spark.sql.autoBroadcastJoinThreshold": "1m",
        }
        with tempfile.TemporaryDirectory(prefix="recsys-") as name:
            # Spark cuts a list of folders at commas, so its scratch folder has a plain path as well.
            links = Path(name)
            (links / "scratch").symlink_to(scratch.absolute())
            if is_local:
                options["spark.local.dir"] = str(links / "scratch" / "spark")
            options |= {key: str(value) for key, value in self.options.items()}
            with open_spark(self.master, options, links=links, output=self.output) as session:
                yield session
