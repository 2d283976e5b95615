"""Session of Spark: its workers read, join, number, encode and write. Whole tables come here as files."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa

from recsys.core.errors import UserError
from recsys.core.progress import Progress
from recsys.data.content_encoders import BadImageError
from recsys.data.preparation.engines import Content, OnBatches, Read, Session, literal, typed
from recsys.data.preparation.worker_content import ENCODED, NAMED, WorkerContent
from recsys.data.shards import open_address, remove, rooted

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_PART = pa.schema({"partition": pa.int64(), "file": pa.string()})


@contextmanager
def open_spark(master: str, options: Mapping[str, str], *, links: Path, output: str | None) -> Iterator[Session]:
    """Open a session on the cluster `master`, or a new one beside the active session of this process.

    Args:
        master: address of the cluster.
        options: settings of Spark.
        links: folder of this process for links, which holds the folder `scratch`.
        output: folder or address where shards stay.

    Raises:
        UserError: If PySpark is not installed.
    """
    try:
        from pyspark.sql import SparkSession  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise UserError("data.engine: Spark needs PySpark; install with pip install 'recsys[spark]'") from error
    if (active := SparkSession.getActiveSession()) is not None:
        session = active.newSession()
        for key, value in options.items():
            if key.startswith("spark.sql."):
                session.conf.set(key, value)
        opened = _SparkSession(session, links, output=output)
        try:
            yield opened
        finally:
            opened.forget()
        return
    builder = SparkSession.builder.appName("recsys")
    if master.startswith("local"):
        # Workers of this machine need the packages of this Python, which need not be the first one of PATH.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    for key, value in options.items():
        builder = builder.config(key, value)
    session = builder.master(master).getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    try:
        yield _SparkSession(session, links, output=output)
    finally:
        session.stop()


class _SparkSession:
    def __init__(self, session: SparkSession, links: Path, *, output: str | None) -> None:
        self._session = session
        self._connection = ibis.pyspark.connect(session)
        self.scratch, self._links, self.output = links / "scratch", links, output
        self._num_names = 0
        self._kept: list[DataFrame] = []
        self._is_local = str(session.sparkContext.master).startswith("local")

    def _view(self, frame: DataFrame) -> ir.Table:
        self._num_names += 1
        name = f"table_{id(self)}_{self._num_names}"
        frame.createOrReplaceTempView(name)
        return self._connection.table(name)

    def _frame(self, table: ir.Table) -> DataFrame:
        return self._session.sql(self._connection.compile(table))

    def read(self, files: Sequence[str], columns: Mapping[str, Read]) -> ir.Table:
        wanted = [f"{_spark(read)} AS `{name}`" for name, read in columns.items()]
        addresses = literal(files, self._links)
        for file, address in zip(files, addresses, strict=True):
            if not self._is_local and address.startswith((str(self._links), str(self.scratch))):
                raise UserError(
                    f"{file}: Spark on a cluster reads files in place, so their paths and columns must have names of "
                    "letters, digits and _ that differ in more than case; data.engine of DuckDB reads others"
                )
        frame = self._session.read.parquet(*addresses)
        frame = frame.selectExpr(*wanted, "_metadata.file_path AS file_path", "_metadata.row_index AS row")
        return self._view(self._with_shards(frame, addresses))

    def _with_shards(self, frame: DataFrame, files: Sequence[str]) -> DataFrame:
        """Add the shard of each row: the place of its file, whose address Spark provides, among `files`."""
        from pyspark.sql import functions as f  # noqa: PLC0415  (an extra)

        if len(files) == 1:
            return frame.withColumn("shard", f.lit(0).cast("long")).drop("file_path")
        # Spark writes local paths in one of these forms. No file has characters that it would quote.
        forms = [(form + file, shard) for shard, file in enumerate(files) for form in _forms(file)]
        names, places = zip(*forms, strict=True)
        shards = self._session.createDataFrame(pa.table({"file_path": names, "place": pa.array(places, pa.int64())}))
        unknown = f.raise_error(f.concat(f.lit("no shard has the path "), frame.file_path)).cast("long")
        joined = frame.join(f.broadcast(shards), "file_path", "left")
        return joined.withColumn("shard", f.coalesce(joined.place, unknown)).drop("file_path", "place")

    def keep(self, table: ir.Table) -> ir.Table:
        self._kept.append(self._frame(table).persist())
        return self._view(self._kept[-1])

    def forget(self) -> None:
        """Release kept tables, where the session goes on."""
        for frame in self._kept:
            frame.unpersist()

    def add(self, rows: pa.Table) -> ir.Table:
        return self._view(self._session.createDataFrame(rows))

    def map(self, table: ir.Table, function: OnBatches, schema: pa.Schema) -> ir.Table:
        return self._view(self._frame(table).mapInArrow(function, _types(schema)))

    def collect(self, table: ir.Table) -> pa.Table:
        expected = table.schema().to_pyarrow()
        batches = self._frame(table).toArrow().to_batches()
        return pa.Table.from_batches([typed(batch, expected) for batch in batches], expected)

    def stream(self, table: ir.Table) -> Iterator[pa.RecordBatch]:
        expected = table.schema().to_pyarrow()
        folder = rooted(f"{self.output or self.scratch}/parts-{uuid.uuid4().hex}")
        try:
            parts = self._frame(table).mapInArrow(partial(_write_part, folder=folder), _types(_PART)).toArrow()
            for file in parts.sort_by("partition")["file"].to_pylist():
                with _opened(file) as opened, pa.ipc.open_stream(opened) as batches:
                    for batch in batches:
                        yield typed(batch, expected)
        finally:
            remove(folder)

    def number(self, ordered: ir.Table, name: str, *, first: int) -> ir.Table:
        from pyspark.sql import functions as f  # noqa: PLC0415  (an extra)

        frame = self._frame(ordered).persist()
        self._kept.append(frame)
        partition = f.spark_partition_id()
        sizes: dict[int, int] = dict(frame.groupBy(partition.alias("partition")).count().collect())
        begins = np.cumsum([first, *(sizes.get(number, 0) for number in range(max(sizes, default=0)))]).tolist()
        # The lower 33 bits of this id are the place within the partition.
        place = f.monotonically_increasing_id().bitwiseAND((1 << 33) - 1)
        return self._view(frame.withColumn(name, f.get(f.lit(begins), partition).cast("long") + place))

    @property
    def _num_ranges(self) -> int:
        return int(self._session.conf.get("spark.sql.shuffle.partitions") or 1)

    def encode(self, table: ir.Table, contents: Mapping[str, Content], *, index: str) -> ir.Table:
        from pyspark.sql import functions as f  # noqa: PLC0415  (an extra)

        if not contents:
            return table
        frame = self._frame(table)
        for name, (feature, folder) in contents.items():
            content = WorkerContent.of(feature, folder=folder, output=self.output)
            given = frame.where(f.col(name).isNotNull()).select(index, f.col(name).cast("string"))
            named = given.mapInArrow(content.name, _types(NAMED))
            sorted_ = named.repartition(self._num_ranges, "bucket").sortWithinPartitions("digest")
            # Kept, because cutting the rows into ranges reads them twice.
            encoded = sorted_.mapInArrow(content.encode, _types(ENCODED)).persist()
            self._kept.append(encoded)
            with Progress(f"vectors of {feature.key}"):
                problems = encoded.where("problem IS NOT NULL").select("row", "place", "problem").collect()
            for _, place, problem in sorted(problems, key=lambda problem: int(problem["row"])):
                raise UserError(f"{feature.key}: {problem}") if place is None else BadImageError(place, problem)
            vectors = encoded.select(f.col("row").alias(index), f.col("vector").alias(name))
            frame = frame.drop(name).join(vectors, index, "left")
        return self._view(frame)

    def write_ranges(
        self, table: ir.Table, order: Sequence[str], *, write: OnBatches, schema: pa.Schema, what: str, num_rows: int
    ) -> pa.Table:
        ranges = self._frame(table).repartitionByRange(self._num_ranges, order[0]).sortWithinPartitions(*order)
        with Progress(f"{what}: {num_rows:,} rows"):
            return ranges.mapInArrow(write, _types(schema)).toArrow()

    def for_each(self, function: Callable[[Any], Any], values: Iterable[Any]) -> list[Any]:
        given, context = list(values), self._session.sparkContext
        num_tasks = max(min(len(given), 4 * context.defaultParallelism), 1)
        return context.parallelize(given, num_tasks).map(function).collect()


def _write_part(batches: Iterator[pa.RecordBatch], folder: str) -> Iterator[pa.RecordBatch]:
    """Write the rows of a partition, on a worker."""
    from pyspark import TaskContext  # noqa: PLC0415  (an extra)

    first = next(batches, None)
    context = TaskContext.get()
    if first is None or context is None:
        return
    # A repeated task writes another file, and only the one that is returned counts.
    file = f"{folder}/{uuid.uuid4().hex}"
    with open_address(file, "wb") as opened, pa.ipc.new_stream(opened, first.schema) as writer:
        for batch in chain([first], batches):
            writer.write_batch(batch)
    yield pa.record_batch([[context.partitionId()], [file]], schema=_PART)


def _opened(file: str) -> Any:
    try:
        return open_address(file)
    except OSError as error:
        raise UserError(
            f"{file}: a worker wrote it, but it cannot be read here ({error}); expected data.engine.output to be a "
            "folder that the workers and this process reach, such as s3://BUCKET/prepared"
        ) from error


def _types(schema: pa.Schema) -> Any:
    from pyspark.sql.pandas.types import from_arrow_schema  # noqa: PLC0415  (an extra)

    return from_arrow_schema(schema)


def _forms(file: str) -> tuple[str, ...]:
    return ("",) if "://" in file else ("", "file:", "file://")


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
