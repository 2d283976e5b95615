"""Batch retrieval: ranked items for many users, streamed to one Parquet file.

Parts lie in `<out>.parts/` until all are there; a killed command that is started again with the same inputs goes on
with the parts that are missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from recsys.core.errors import UserError, nearest
from recsys.core.schema import Schema
from recsys.data.dataset import PreparedDataset, Requests
from recsys.data.encoding import plain

log = logging.getLogger("recsys")

Rows = npt.NDArray[np.int64]

# Users of one search, and of one part (a row group of the file).
BATCH, PART = 1024, 8192


class Recommender(Protocol):
    """What ranks: a run, or a release.

    Attributes:
        identity: names the model and the data; equal ones rank alike.
        dataset: histories and profiles.
        item_ids: outside ids; results are rows of it.
    """

    identity: str
    dataset: PreparedDataset
    item_ids: pa.Array

    def rank(
        self, requests: Requests, k: int, exclude_seen: bool, given: Mapping[str, pa.Array]
    ) -> tuple[npt.NDArray[np.float32], Rows]:
        """(scores, rows of `item_ids`) [R, k], best first; -inf and -1 where there is no further result.

        Args:
            requests: users, and where their history ends.
            k: results for each.
            exclude_seen: leave out the items of the whole history.
            given: raw values of request features.
        """
        ...


@dataclass(frozen=True)
class Audience:
    """Who gets recommendations.

    Attributes:
        user_ids: in the order of the answers.
        requests: user_idx (-1: unknown) and where the history ends.
        given: raw values of request features, a row for each user.
    """

    user_ids: pa.Array
    requests: Requests
    given: Mapping[str, pa.Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.user_ids)


def choose_users(users: str, dataset: PreparedDataset) -> Audience:
    """The users that `users=` names: `test`, `all`, or those of a Parquet file.

    `test`: history before the test part. Otherwise the whole history.

    Raises:
        UserError: there are no such users, or the file is not what it should be.
    """
    if users == "test":
        requests = dataset.requests("test")
        if not len(requests.user_idx):
            raise UserError("users=test: the data has no test part; users=all ranks for everyone")
        return Audience(dataset.user_ids.take(pa.array(requests.user_idx)), requests)
    if users == "all":
        return Audience(dataset.user_ids, Requests(np.arange(dataset.num_users), dataset.offsets[1:]))
    return _users_of_file(Path(users), dataset)


def _users_of_file(path: Path, dataset: PreparedDataset) -> Audience:
    if not path.is_file():
        raise UserError(
            f"users={path}: expected test, all or a Parquet file with a column user_id; there is no such file"
        )
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error})") from error
    if "user_id" not in table.column_names:
        raise UserError(f"{path}: column 'user_id' is missing{nearest('user_id', table.column_names)}")
    if not len(table):
        raise UserError(f"{path}: no rows")
    ids = plain(table["user_id"])
    if ids.null_count:
        row = int(np.flatnonzero(np.asarray(pc.is_null(ids)))[0])
        raise UserError(f"{path}: column 'user_id' is null in row {row}")
    wanted = dataset.user_ids.type
    is_same = pa.types.is_string(ids.type) if pa.types.is_string(wanted) else pa.types.is_integer(ids.type)
    if not is_same:
        raise UserError(f"{path}: column 'user_id' holds {ids.type}, but the data's users are {wanted}")
    try:
        ids = ids.cast(wanted)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: column 'user_id': {error}") from error
    counts = pc.value_counts(ids)
    if len(counts) < len(ids):
        twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"]
        raise UserError(f"{path}: user {twice.as_py()!r} occurs more than once; expected one row for each user")
    user_idx = np.array(pc.index_in(ids, value_set=dataset.user_ids).cast(pa.int64()).fill_null(-1))
    end = np.where(user_idx >= 0, dataset.offsets[1:][np.maximum(user_idx, 0)], 0)
    return Audience(ids, Requests(user_idx, end), _given(table, dataset.schema))


def _given(table: pa.Table, schema: Schema) -> dict[str, pa.Array]:
    valid = {feature.name for feature in schema.with_role("request")}
    for name in table.column_names:
        if name != "user_id" and name not in valid:
            log.info("users: column '%s' is no request feature, so it is not used%s", name, nearest(name, valid))
    return {name: plain(table[name]) for name in table.column_names if name in valid}


def write_recommendations(
    recommender: Recommender, audience: Audience, k: int, exclude_seen: bool, out: str | Path
) -> int:
    """Rank `k` items for everyone and write `user_id`, `item_ids` and `scores` to the Parquet file `out`.

    Returns:
        The number of users.

    Raises:
        UserError: `k` or `out` cannot be, or another process is writing the same file.
    """
    out = Path(out)
    if k < 1:
        raise UserError(f"k: found {k}, expected at least 1")
    if out.is_dir():
        raise UserError(f"out: {out} is a folder, expected the name of a Parquet file")
    parts = out.with_name(out.name + ".parts")
    try:
        parts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out: cannot write to {out.parent} ({error})") from error
    try:
        with FileLock(parts / ".lock", timeout=0):
            _write_parts(recommender, audience, k, exclude_seen, parts)
            _merge(parts, out)
    except Timeout as error:
        raise UserError(f"out: another process is writing {out}") from error
    shutil.rmtree(parts, ignore_errors=True)
    return len(audience)


def _write_parts(recommender: Recommender, audience: Audience, k: int, exclude_seen: bool, parts: Path) -> None:
    settings = json.dumps([recommender.identity, _digest(audience), k, exclude_seen, PART])
    mark = parts / "settings.json"
    if not mark.exists() or mark.read_text() != settings:
        for leftover in parts.glob("part-*"):
            leftover.unlink()
        _replace(mark, settings.encode())
    columns = (TextColumn("ranking"), BarColumn(), MofNCompleteColumn(), TextColumn("users"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("ranking", total=len(audience))
        for number, begin in enumerate(range(0, len(audience), PART)):
            end = min(begin + PART, len(audience))
            file = parts / f"part-{number:06d}.parquet"
            if not file.exists():
                tables = []
                for first in range(begin, end, BATCH):
                    last = min(first + BATCH, end)
                    tables.append(rank_slice(recommender, audience, slice(first, last), k, exclude_seen))
                    progress.advance(task, last - first)
                aside = parts / f".{file.name}.{uuid.uuid4().hex}"
                pq.write_table(pa.concat_tables(tables), aside)
                os.replace(aside, file)
            progress.update(task, completed=end)


def rank_slice(recommender: Recommender, audience: Audience, rows: slice, k: int, exclude_seen: bool) -> pa.Table:
    """Return user_id, item_ids and scores of some users.

    Args:
        recommender: run or release.
        audience: all users.
        rows: users of the audience to rank for.
        k: items for each.
        exclude_seen: leave out items of the history.
    """
    requests = Requests(*(column[rows] for column in audience.requests))
    given = {name: values[rows] for name, values in audience.given.items()}
    scores, found = recommender.rank(requests, k, exclude_seen, given)
    real = found >= 0
    offsets = pa.array(np.concatenate([[0], np.cumsum(real.sum(1))]).astype(np.int32))
    return pa.table(
        {
            "user_id": audience.user_ids[rows],
            "item_ids": pa.ListArray.from_arrays(offsets, recommender.item_ids.take(pa.array(found[real]))),
            "scores": pa.ListArray.from_arrays(offsets, pa.array(scores[real].astype(np.float32))),
        }
    )


def _merge(parts: Path, out: Path) -> None:
    files = sorted(parts.glob("part-*.parquet"))
    aside = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    try:
        with pq.ParquetWriter(aside, pq.read_schema(files[0])) as writer:
            for file in files:
                writer.write_table(pq.read_table(file))
        os.replace(aside, out)
    finally:
        aside.unlink(missing_ok=True)


def _replace(path: Path, content: bytes) -> None:
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    aside.write_bytes(content)
    os.replace(aside, path)


def _digest(audience: Audience) -> str:
    running = hashlib.sha256()
    for column in (*audience.requests, audience.user_ids, *audience.given.values()):
        values = column if isinstance(column, pa.Array) else pa.array(column)
        for buffer in pa.concat_arrays([values]).buffers():
            running.update(b"\0" if buffer is None else memoryview(buffer))
    running.update(repr(sorted(audience.given)).encode())
    return running.hexdigest()
