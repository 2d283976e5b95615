"""Batch retrieval: ranked items for many users, streamed to one file.

Finished parts are kept in `<out>.parts/`. A killed command that is started again with the same inputs computes only the
missing parts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from omegaconf import DictConfig

from recsys.core.errors import UserError, nearest
from recsys.core.io import atomic_file, atomic_write
from recsys.core.progress import Progress
from recsys.core.schema import Schema
from recsys.core.types import Float32Array
from recsys.data.dataset import PreparedDataset, Requests
from recsys.data.encoding import plain
from recsys.publishing.recommendation_files import check_name, write_parts

log = logging.getLogger("recsys")

Rows = npt.NDArray[np.int64]

# Number of users of one search, and of one part (a row group of the file).
BATCH, PART = 1024, 8192


class Recommender(Protocol):
    """Ranks items with a run or a release.

    Attributes:
        identity: name of model and data; recommenders with equal names rank alike.
        dataset: histories and profiles of the users.
        item_ids: outside ids of the items; results are rows of it.
        data: configuration of the data; it names the columns of a file of users.
    """

    identity: str
    dataset: PreparedDataset
    item_ids: pa.Array
    data: DictConfig | None

    def rank(
        self, requests: Requests, k: int, *, exclude_seen: bool, request_features: Mapping[str, pa.Array]
    ) -> tuple[Float32Array, Rows]:
        """Return scores and rows of `item_ids`, both [R, k], best first; -inf and -1 if there is no further result.

        Args:
            requests: users, and the ends of their histories.
            k: number of results for each user.
            exclude_seen: leave out the items of the whole history.
            request_features: raw values of request features, a row for each request.
        """
        ...


@dataclass(frozen=True)
class Audience:
    """Users that get recommendations.

    Attributes:
        user_ids: outside ids, in the order of the file.
        requests: user_idx (-1 for unknown users) and the ends of the histories.
        request_features: raw values of request features, a row for each user.
    """

    user_ids: pa.Array
    requests: Requests
    request_features: Mapping[str, pa.Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.user_ids)


def choose_users(users: str, dataset: PreparedDataset, *, data: Mapping[str, Any] | None = None) -> Audience:
    """Return the users that `users=` names: `test`, `all`, or those of a file.

    The histories of `test` end before the test part; other histories are whole.

    Args:
        users: test, all or the name of a Parquet, CSV or JSON Lines file with a column of users.
        dataset: data set with the histories.
        data: configuration of the training data, which names the columns of the file.

    Raises:
        UserError: If there are no such users, or the file has no usable column of users.
    """
    if users == "test":
        requests = dataset.requests("test")
        if not len(requests.user_idx):
            raise UserError("users=test: the data has no test part; users=all ranks for everyone")
        return Audience(dataset.user_ids.take(pa.array(requests.user_idx)), requests)
    if users == "all":
        return Audience(dataset.user_ids, Requests(np.arange(dataset.num_users), dataset.offsets[1:]))
    return _users_of_file(Path(users), dataset, data)


def _users_of_file(path: Path, dataset: PreparedDataset, data: Mapping[str, Any] | None) -> Audience:
    if not path.is_file():
        raise UserError(f"users={path}: no such file; expected test, all or a file with a column of users")
    # Reads files as training does; servers, which read none, have not installed its packages.
    from recsys.publishing.table_files import read_table

    table = read_table(path, "users", id_type=dataset.user_ids.type, data=data)
    ids = plain(table["user_id"])
    counts = pc.value_counts(ids)
    if len(counts) < len(ids):
        twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"]
        raise UserError(f"{path}: user {twice.as_py()!r} occurs more than once; expected one row for each user")
    user_idx = np.array(pc.index_in(ids, value_set=dataset.user_ids).cast(pa.int64()).fill_null(-1))
    end = np.where(user_idx >= 0, dataset.offsets[1:][np.maximum(user_idx, 0)], 0)
    return Audience(ids, Requests(user_idx, end), _request_features(table, dataset.schema))


def _request_features(table: pa.Table, schema: Schema) -> dict[str, pa.Array]:
    valid = {feature.name for feature in schema.with_role("request")}
    for name in table.column_names:
        if name != "user_id" and name not in valid:
            log.info("users: column '%s' is not a request feature and is ignored%s", name, nearest(name, valid))
    return {name: plain(table[name]) for name in table.column_names if name in valid}


def write_recommendations(
    recommender: Recommender, audience: Audience, *, k: int, exclude_seen: bool, out: str | Path
) -> int:
    """Rank items for every user and write `user_id`, `item_ids` and `scores` to a file.

    Args:
        recommender: run or release that ranks.
        audience: users.
        k: number of items for each user.
        exclude_seen: leave out the items of the whole history.
        out: name of the file, which says its format; see `recommendation_files`.

    Returns:
        The number of users.

    Raises:
        UserError: If `k` is not positive, `out` cannot be written, or another process is writing it.
    """
    out = Path(out)
    if k < 1:
        raise UserError(f"k: found {k}, expected at least 1")
    if out.is_dir():
        raise UserError(f"out: {out} is a folder, expected the name of a file in it")
    check_name(out)
    parts = out.with_name(out.name + ".parts")
    try:
        parts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out: cannot write to {out.parent} ({error})") from error
    try:
        with FileLock(parts / ".lock", timeout=0):
            _write_parts(recommender, audience, parts=parts, k=k, exclude_seen=exclude_seen)
            write_parts(sorted(parts.glob("part-*.parquet")), out)
    except Timeout as error:
        raise UserError(f"out: another process is writing {out}") from error
    shutil.rmtree(parts, ignore_errors=True)
    return len(audience)


def _write_parts(recommender: Recommender, audience: Audience, *, parts: Path, k: int, exclude_seen: bool) -> None:
    settings = json.dumps([recommender.identity, _digest(audience), k, exclude_seen, PART])
    mark = parts / "settings.json"
    if not mark.exists() or mark.read_text() != settings:
        for leftover in parts.glob("part-*"):
            leftover.unlink()
        atomic_write(mark, settings)
    with Progress("ranking", len(audience), unit="users") as progress:
        for number, begin in enumerate(range(0, len(audience), PART)):
            end = min(begin + PART, len(audience))
            file = parts / f"part-{number:06d}.parquet"
            if file.exists():
                # Ranked by an earlier start, so it says nothing about the speed of this one.
                progress.total = (progress.total or 0) - (end - begin)
            else:
                tables = []
                for first in range(begin, end, BATCH):
                    last = min(first + BATCH, end)
                    some = slice(first, last)
                    tables.append(rank_slice(recommender, audience, rows=some, k=k, exclude_seen=exclude_seen))
                    progress.advance(last - first)
                with atomic_file(file) as aside:
                    pq.write_table(pa.concat_tables(tables), aside)


def rank_slice(recommender: Recommender, audience: Audience, *, rows: slice, k: int, exclude_seen: bool) -> pa.Table:
    """Rank items for some users, and return a table of `user_id`, `item_ids` and `scores`.

    Args:
        recommender: run or release that ranks.
        audience: all users.
        rows: users of the audience to rank for.
        k: number of items for each user.
        exclude_seen: leave out the items of the whole history.
    """
    requests = Requests(*(column[rows] for column in audience.requests))
    features = {name: values[rows] for name, values in audience.request_features.items()}
    scores, found = recommender.rank(requests, k, exclude_seen=exclude_seen, request_features=features)
    real = found >= 0
    offsets = pa.array(np.concatenate([[0], np.cumsum(real.sum(1))]).astype(np.int32))
    return pa.table(
        {
            "user_id": audience.user_ids[rows],
            "item_ids": pa.ListArray.from_arrays(offsets, recommender.item_ids.take(pa.array(found[real]))),
            "scores": pa.ListArray.from_arrays(offsets, pa.array(scores[real].astype(np.float32))),
        }
    )


def _digest(audience: Audience) -> str:
    running = hashlib.sha256()
    for column in (*audience.requests, audience.user_ids, *audience.request_features.values()):
        values = column if isinstance(column, pa.Array) else pa.array(column)
        for buffer in pa.concat_arrays([values]).buffers():
            running.update(b"\0" if buffer is None else memoryview(buffer))
    running.update(repr(sorted(audience.request_features)).encode())
    return running.hexdigest()
