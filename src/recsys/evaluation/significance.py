"""Paired significance tests over users, from the files `per_user.parquet` of two runs.

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

# Bytes of the bootstrap weights that are in memory at once.
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Comparison:
    """Mean difference of a metric over users, the second run minus the first.

    Attributes:
        metric: name such as `recall@10`.
        first: mean of the first run.
        second: mean of the second run.
        difference: second - first.
        low: lower end of the 95% interval of the difference.
        high: upper end of the interval.
        p_value: two-sided p-value of no difference.
        num_users: users for whom both files have a value.
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
        metric: name such as `recall@10` or `tail/recall@10`.
        mean: mean over users.
        low: lower end of its 95% interval.
        high: upper end of the interval.
        num_users: users that have a value.
    """

    metric: str
    mean: float
    low: float
    high: float
    num_users: int


def means(path: Path, metrics: Sequence[str], *, num_samples: int = 2_000, seed: int = 0) -> list[Mean]:
    """Return means and bootstrap intervals of columns of a file `per_user.parquet`. Slices without users are left out.

    Raises:
        UserError: If the file cannot be read; see `compare_runs`.
    """
    _, values = _read(path, metrics)
    return [
        Mean(metrics[column], mean, low, high, num_users=int(rows.sum()))
        for columns, rows in _same_users(values)
        for column, (mean, low, high, _) in zip(
            columns, paired_bootstrap(values[rows][:, columns], num_samples, seed=seed), strict=True
        )
    ]


def compare_runs(
    first: Path, second: Path, *, metrics: Sequence[str], num_samples: int = 10_000, seed: int = 0
) -> list[Comparison]:
    """Compare two files `per_user.parquet` of the same users by a paired bootstrap.

    A metric of a slice is compared over the users that are in the slice in both files, and left out if there are none.

    Args:
        first: file of the first run; rows may be in any order.
        second: file of the second run, whose gain is measured.
        metrics: columns to compare.
        num_samples: number of bootstrap samples, B.
        seed: seed of the samples, which all metrics of the same users share.

    Raises:
        UserError: If a file cannot be read, lacks a column, repeats a user or holds a null outside the slices, or if
            the users differ.
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
            columns, paired_bootstrap(differences[rows][:, columns], num_samples, seed=seed), strict=True
        )
    ]


def bootstrap_means(values: Float64Array, num_samples: int, *, seed: int = 0) -> Float64Array:
    """Return the means over B bootstrap samples of users, [B, M]. All columns share the samples.

    Args:
        values: [U, M], value of each user and metric.
        num_samples: number of samples, B.
        seed: seed of the samples.
    """
    num_users = len(values)
    if not num_users:
        raise UserError("paired bootstrap: no users; expected at least one")
    if num_samples < 1:
        raise UserError(f"paired bootstrap: {num_samples} samples; expected at least one")
    rng = np.random.default_rng(seed)
    # A user with a difference of zero adds nothing to a sum. So it is enough to draw the number of the other users in a
    # sample, and then which of them. With one held-out item, nine users in ten have a difference of zero.
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
    differences: Float64Array, num_samples: int = 10_000, *, seed: int = 0
) -> list[tuple[float, float, float, float]]:
    """Return the mean, lower and upper end of the 95% percentile interval, and two-sided p-value of each column.

    The p-value is twice the share of samples whose mean lies on the other side of zero or on it, with one sample added
    so that it is never zero (Davison and Hinkley 1997).

    Args:
        differences: [U, M], difference of each user and metric.
        num_samples: number of samples, B.
        seed: seed of the samples.
    """
    means = bootstrap_means(differences, num_samples, seed=seed)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    tail = np.minimum((means <= 0).sum(0), (means >= 0).sum(0))
    p_values = np.minimum(1.0, 2 * (tail + 1) / (num_samples + 1))
    columns = (differences.mean(0), low, high, p_values)
    return [(float(d), float(lo), float(hi), float(p)) for d, lo, hi, p in zip(*columns, strict=True)]


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values corrected for several comparisons (Holm 1979), to be compared with the level as they are.

    The i-th smallest of m is multiplied by m - i (i from 0), and none is below its predecessor.
    """
    corrected, largest = {}, 0.0
    for place, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}


def _same_users(values: Float64Array) -> list[tuple[list[int], npt.NDArray[np.bool_]]]:
    """Return groups of adjacent columns of [U, M] with values in the same rows, and these rows; drop columns of nan."""
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
