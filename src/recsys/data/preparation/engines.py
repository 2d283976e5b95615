"""Engines that run the relational steps of a preparation. The Ibis expressions are the same for all of them.

An engine provides what Ibis has no common expression for: reading files with the place of each row, times as exact
integers, and results too large for memory as an ordered stream.
"""

from __future__ import annotations

import re
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol
from urllib.parse import unquote

import fsspec
import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.core.errors import UserError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

# Rows of a record batch.
BATCH_ROWS = 262_144
Reading = Literal["as_is", "int64", "string", "date", "time", "nanoseconds"]


class Read(NamedTuple):
    """Column to read: its name in the files and its conversion (`date`, `time`, `nanoseconds` give microseconds)."""

    column: str
    reading: Reading = "as_is"


class Session(Protocol):
    """Open engine.

    Attributes:
        scratch: folder for files that live as long as the session.
    """

    scratch: Path

    def read(self, files: Sequence[str], columns: Mapping[str, Read]) -> ir.Table:
        """Return columns of Parquet files by new names, and the place of each row: `shard` int64, `row` int64.

        Engines interpret names; `plain_files` makes files whose names they cannot mistake.
        """

    def keep(self, table: ir.Table) -> ir.Table:
        """Compute a table once and return the result, which lives as long as the session."""

    def stream(self, table: ir.Table) -> Iterator[pa.RecordBatch]:
        """Yield the rows in the order of the table. Read the stream to its end before the next query."""


class Engine(Protocol):
    """Runs the relational steps of a preparation."""

    def open(self, scratch: Path) -> AbstractContextManager[Session]:
        """Start the engine. It spills data into the folder `scratch`."""


# Paths that no engine takes for a pattern, a partition or an address with escapes.
_LITERAL = re.compile(r"/([A-Za-z0-9][\w.+-]*/)*[A-Za-z0-9][\w.+-]*", re.ASCII)


def _literal(files: Sequence[str], links: Path) -> list[str]:
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
    return [row for batch in session.stream(table) for row in batch.to_pylist()]


@dataclass(frozen=True)
class DuckDB:
    """Engine that runs DuckDB in this process and spills to disk.

    Attributes:
        memory: limit of its memory, such as `3GB`. Beyond it, DuckDB spills to disk.
        threads: number of threads; null for all cores.
    """

    memory: str = "3GB"
    threads: int | None = None

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
        names = ", ".join("'" + file.replace("'", "''") + "'" for file in _literal(files, self._links))
        return self._create("VIEW", f"SELECT {', '.join(wanted)} FROM read_parquet([{names}], hive_partitioning=false)")

    def keep(self, table: ir.Table) -> ir.Table:
        return self._create("TABLE", self._connection.compile(table))

    def stream(self, table: ir.Table) -> Iterator[pa.RecordBatch]:
        # `to_pyarrow_batches` of Ibis 12 calls a method that DuckDB 2 has renamed.
        expected = table.schema().to_pyarrow()
        for batch in self._connection.con.sql(self._connection.compile(table)).to_arrow_reader(BATCH_ROWS):
            yield _typed(batch, expected)


def _typed(batch: pa.RecordBatch, expected: pa.Schema) -> pa.RecordBatch:
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

    Attributes:
        master: address of the cluster, such as `local[2]` or `yarn`.
        memory: memory of the driver, which is the worker too if `master` is local.
        shuffle_partitions: number of pieces into which joins and sorts cut the data; more for more data.
    """

    master: str = "local[2]"
    memory: str = "2g"
    shuffle_partitions: int = 8

    @contextmanager
    def open(self, scratch: Path) -> Iterator[Session]:
        """Start a Spark session.

        Raises:
            UserError: If PySpark is not installed.
        """
        try:
            from pyspark.sql import SparkSession
        except ImportError as error:
            raise UserError("data.engine: Spark needs PySpark; install with pip install 'recsys[spark]'") from error
        with tempfile.TemporaryDirectory(prefix="recsys-") as name:
            # Spark cuts a list of folders at commas, so its scratch folder has a plain path as well.
            links = Path(name)
            (links / "scratch").symlink_to(scratch.absolute())
            session = self._start(SparkSession.builder.appName("recsys"), links / "scratch")
            try:
                yield _SparkSession(session, links / "scratch", links=links)
            finally:
                session.stop()

    def _start(self, builder: SparkSession.Builder, scratch: Path) -> SparkSession:
        options = {
            "spark.driver.memory": self.memory,
            "spark.local.dir": str(scratch / "spark"),
            "spark.sql.session.timeZone": "UTC",
            "spark.sql.legacy.parquet.nanosAsLong": "true",
            "spark.sql.caseSensitive": "true",
            "spark.ui.enabled": "false",
            "spark.sql.shuffle.partitions": str(self.shuffle_partitions),
            "spark.ui.showConsoleProgress": "false",
        }
        for key, value in options.items():
            builder = builder.config(key, value)
        session = builder.master(self.master).getOrCreate()
        session.sparkContext.setLogLevel("ERROR")
        return session


class _SparkSession:
    def __init__(self, session: SparkSession, scratch: Path, *, links: Path) -> None:
        self._session = session
        self._connection = ibis.pyspark.connect(session)
        self.scratch, self._links = scratch, links
        self._num_names = 0

    def _name(self, stem: str) -> str:
        self._num_names += 1
        return f"{stem}_{self._num_names}"

    def read(self, files: Sequence[str], columns: Mapping[str, Read]) -> ir.Table:
        wanted = [f"{_spark(read)} AS `{name}`" for name, read in columns.items()]
        files = _literal(files, self._links)
        frame = self._session.read.parquet(*files)
        frame = frame.selectExpr(*wanted, "_metadata.file_path AS file_path", "_metadata.row_index AS row")
        name = self._name("source")
        self._with_shards(frame, files).createOrReplaceTempView(name)
        return self._connection.table(name)

    def keep(self, table: ir.Table) -> ir.Table:
        name = self._name("kept")
        self._session.sql(self._connection.compile(table)).persist().createOrReplaceTempView(name)
        return self._connection.table(name)

    def _with_shards(self, frame: DataFrame, files: Sequence[str]) -> DataFrame:
        """Add the shard of each row: the place of its file, whose address Spark provides, among `files`."""
        from pyspark.sql import functions as f

        places = {_address(file): shard for shard, file in enumerate(files)}
        found = [row.file_path for row in frame.select("file_path").distinct().collect()]
        # Some versions of Spark quote addresses like URLs, others do not.
        pairs = [(one, places.get(_address(one), places.get(_address(unquote(one))))) for one in found]
        shards = self._session.createDataFrame(pairs, "file_path string, shard long")
        return frame.join(f.broadcast(shards), "file_path").drop("file_path")

    def stream(self, table: ir.Table) -> Iterator[pa.RecordBatch]:
        # Spark writes a sorted frame in parts whose names are in its order, so the driver never holds all rows.
        folder = self.scratch / self._name("result")
        self._session.sql(self._connection.compile(table)).write.parquet(str(folder))
        expected = table.schema().to_pyarrow()
        for file in sorted(folder.glob("part-*.parquet")):
            for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS):
                yield _typed(batch, expected)


def _address(file: str) -> str:
    """Return a path and the URL that Spark makes of it as the same text."""
    return "/" + file.removeprefix("file:").lstrip("/") if file.startswith(("file:", "/")) else file


def _spark(read: Read) -> str:
    column = "`" + read.column.replace("`", "``") + "`"
    forms = {
        "as_is": column,
        "int64": f"CAST({column} AS BIGINT)",
        "string": f"CAST({column} AS STRING)",
        "date": f"unix_micros(CAST({column} AS TIMESTAMP))",
        "time": f"unix_micros(CAST({column} AS TIMESTAMP))",
        "nanoseconds": f"({column} - pmod({column}, 1000)) DIV 1000",
    }
    return forms[read.reading]
