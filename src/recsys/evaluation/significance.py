"""Is one run better than another? Paired tests over users, from the files `per_user.parquet` of two runs.

Shapes: U users, M metrics, B bootstrap samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.core.errors import UserError, nearest
from recsys.core.types import Float64Array

# Weights of users that are in memory at once.
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Comparison:
    """Mean difference of a metric over users, the second run less the first.

    Attributes:
        metric: such as `recall@10`.
        first, second: the runs' means.
        difference: second - first.
        low, high: 95% interval of the difference.
        p_value: two-sided, of no difference.
        num_users: users that both files have a value for.
    """

    metric: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float
    num_users: int


@dataclass(frozen=True)
class Mean:
    """Mean of a metric over users.

    Attributes:
        metric: such as `recall@10` or `tail/recall@10`.
        mean: over users.
        low, high: its 95% interval.
        num_users: users that have a value.
    """

    metric: str
    mean: float
    low: float
    high: float
    num_users: int


def means(path: Path, metrics: Sequence[str], num_samples: int = 2_000, seed: int = 0) -> list[Mean]:
    """Means and bootstrap intervals of columns of a file `per_user.parquet`; slices that no user is of are left out.

    Raises:
        UserError: as in `compare_runs`.
    """
    _, values = _read(path, metrics)
    return [
        Mean(metrics[column], mean, low, high, num_users=int(rows.sum()))
        for columns, rows in _same_users(values)
        for column, (mean, low, high, _) in zip(
            columns, paired_bootstrap(values[rows][:, columns], num_samples, seed), strict=True
        )
    ]


def compare_runs(
    first: Path, second: Path, metrics: Sequence[str], num_samples: int = 10_000, seed: int = 0
) -> list[Comparison]:
    """Paired bootstrap of two files `per_user.parquet` of the same users.

    A metric of a slice is compared over the users that are of it in both; where there are none, it is left out.

    Args:
        first: the file of one run; rows may be in any order.
        second: the file of the other, whose gain is measured.
        metrics: columns to compare.
        num_samples: bootstrap samples, B.
        seed: of the samples, which all metrics of the same users share.

    Raises:
        UserError: a file cannot be read, lacks a column, holds a user twice or a null where there is no slice, or the
            users differ.
    """
    first_users, first_values = _read(first, metrics)
    second_users, second_values = _read(second, metrics)
    if first_users.type != second_users.type:
        raise UserError(f"{second}: column 'user_id' is {second_users.type}, expected {first_users.type} as in {first}")
    places = pc.index_in(first_users, value_set=second_users)
    missing = places.null_count
    if missing or len(first_users) != len(second_users):
        common = len(first_users) - missing
        raise UserError(
            f"{second}: {len(second_users)} users, {common} of them among the {len(first_users)} of {first}; "
            "expected the same users (the same data, split and exclude_seen)"
        )
    second_values = second_values[places.to_numpy(zero_copy_only=False).astype(np.int64)]
    differences = second_values - first_values
    return [
        Comparison(
            metrics[column],
            float(first_values[rows, column].mean()),
            float(second_values[rows, column].mean()),
            *drawn,
            num_users=int(rows.sum()),
        )
        for columns, rows in _same_users(differences)
        for column, drawn in zip(
            columns, paired_bootstrap(differences[rows][:, columns], num_samples, seed), strict=True
        )
    ]


def bootstrap_means(values: Float64Array, num_samples: int, seed: int = 0) -> Float64Array:
    """Means over B bootstrap samples of users; [B, M]. A sample is the same for all columns.

    Args:
        values: of each user and metric, [U, M].
        num_samples: B.
        seed: of the samples.
    """
    num_users = len(values)
    if not num_users:
        raise UserError("paired bootstrap: no users; expected at least one")
    if num_samples < 1:
        raise UserError(f"paired bootstrap: {num_samples} samples; expected at least one")
    rng = np.random.default_rng(seed)
    # A user whose metrics agree in both runs adds nothing to a sum, so only how many of the others are drawn matters,
    # and then which of them. With one held-out item, nine users in ten agree.
    rows = values[values.any(axis=1)]
    height = max(1, _BLOCK_BYTES // (8 * num_users))
    means = np.zeros((num_samples, values.shape[1]))
    for begin in range(0, num_samples, height) if len(rows) else ():
        block = means[begin : begin + height]
        num_drawn = rng.binomial(num_users, len(rows) / num_users, len(block))
        drawn = rng.integers(0, len(rows), num_drawn.sum())
        drawn += np.repeat(np.arange(len(block)) * len(rows), num_drawn)
        draws = np.bincount(drawn, minlength=len(block) * len(rows)).reshape(len(block), len(rows))
        np.matmul(draws.astype(np.float64), rows, out=block)
    means /= num_users
    return means


def paired_bootstrap(
    differences: Float64Array, num_samples: int = 10_000, seed: int = 0
) -> list[tuple[float, float, float, float]]:
    """Mean, lower and upper end of the 95% percentile interval, and two-sided p-value for each column.

    The p-value is twice the share of samples whose mean lies on the other side of zero or on it, with one sample added
    so that it is never zero (Davison and Hinkley 1997).

    Args:
        differences: of each user and metric, [U, M].
        num_samples: B.
        seed: of the samples.
    """
    means = bootstrap_means(differences, num_samples, seed)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    tail = np.minimum((means <= 0).sum(0), (means >= 0).sum(0))
    p_values = np.minimum(1.0, 2 * (tail + 1) / (num_samples + 1))
    columns = (differences.mean(0), low, high, p_values)
    return [(float(d), float(lo), float(hi), float(p)) for d, lo, hi, p in zip(*columns, strict=True)]


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values corrected for several comparisons (Holm 1979): reject where they are below the level.

    The i-th smallest of m is multiplied by m - i (i from 0), and none is below its predecessor.
    """
    corrected, largest = {}, 0.0
    for place, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}


def _same_users(values: Float64Array) -> list[tuple[list[int], npt.NDArray[np.bool_]]]:
    """Neighbouring columns of [U, M] that hold values for the same rows, and these; columns of nan alone fall out."""
    present = ~np.isnan(values)
    groups: list[tuple[list[int], npt.NDArray[np.bool_]]] = []
    for column in np.flatnonzero(present.any(axis=0)).tolist():
        rows = present[:, column]
        if groups and np.array_equal(groups[-1][1], rows):
            groups[-1][0].append(column)
        else:
            groups.append(([column], rows))
    return groups


def _read(path: Path, metrics: Sequence[str]) -> tuple[pa.Array, Float64Array]:
    """user_id [U] and the metrics [U, M] of a file; nan for users that are not of a slice."""
    try:
        names = pq.read_schema(path).names
        if unknown := [name for name in ("user_id", *metrics) if name not in names]:
            raise UserError(f"{path}: no column '{unknown[0]}'{nearest(unknown[0], names)}")
        table = pq.read_table(path, columns=["user_id", *metrics])
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error})") from error
    for name in table.column_names:
        if table.column(name).null_count and "/" not in name:
            raise UserError(f"{path}: column '{name}' holds {table.column(name).null_count} nulls; expected none")
    users = table.column("user_id").combine_chunks()
    if repeated := len(users) - len(users.unique()):
        raise UserError(f"{path}: {repeated} rows repeat a user_id; expected one row for each user")
    values = np.empty((len(users), len(metrics)))
    for number, name in enumerate(metrics):
        column = table.column(name)
        if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
            raise UserError(f"{path}: column '{name}' is {column.type}, expected numbers")
        values[:, number] = column.to_numpy()
    return users, values
