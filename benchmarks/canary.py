"""False alarms and detected losses of the test that judges canaries, on simulated users who come again and again.

    python benchmarks/canary.py                         400 experiments without a difference, 400 with a loss of 5%
    python benchmarks/canary.py --loss 0.1 --share 0.05

Users differ in how often they come (exponential) and in how often they engage (Beta), so answers of one user are alike.
The test looks after every answer, and decides at the first bound that is crossed. An alarm counts whether or not the
test would have promoted before. Exits with 1 if more than 5% of the experiments without a difference raise an alarm,
or if the loss is found in less than 90% of the others.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from recsys.operations.rollout.sequential import Bounds, SequentialTest, Sums

# Concentration of the Beta distribution of the rates of users: a correlation of 1 / 9 within a user.
SPREAD = 8.0


class World(NamedTuple):
    """Simulated traffic: answers, users, share of the canary, and the rate of engagement of the served version."""

    requests: int
    users: int
    share: float
    rate: float


def course(rng: np.random.Generator, world: World, *, loss: float, test: SequentialTest) -> Bounds:
    """Return what the test knows after every answer of one experiment."""
    activity = np.cumsum(rng.exponential(size=world.users))
    is_canary = rng.random(world.users) < world.share
    rates = rng.beta(world.rate * SPREAD, (1 - world.rate) * SPREAD, world.users) * np.where(is_canary, 1 - loss, 1)
    user = np.searchsorted(activity, rng.random(world.requests) * activity[-1]).astype(np.uint16)
    hit = rng.random(world.requests) < rates[user]
    # Answers and engaged answers of the user before each answer.
    order = np.argsort(user, kind="stable")
    first = np.r_[True, user[order][1:] != user[order][:-1]]
    begin = np.maximum.accumulate(np.where(first, np.arange(world.requests), 0))
    n, y = np.empty(world.requests), np.empty(world.requests)
    n[order] = np.arange(world.requests) - begin
    engaged = np.cumsum(hit[order]) - hit[order]
    y[order] = engaged - engaged[begin]
    added = (n == 0, np.ones(world.requests), hit, 2 * n + 1, hit * (2 * y + 1), y + hit * (n + 1))
    arms = [Sums(*(np.cumsum(one * side, dtype=np.float64) for one in added)) for side in _sides(is_canary[user])]
    return test.bounds(*arms)


def _sides(is_canary: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return is_canary, ~is_canary


class Result(NamedTuple):
    """Answers until the alarm and until the promotion of each experiment; infinite if there was none."""

    alarm: np.ndarray
    promotion: np.ndarray


def experiments(world: World, count: int, *, loss: float, test: SequentialTest, seed: int = 0) -> Result:
    """Simulate experiments with a relative loss of engagement."""
    alarm, promotion = np.full(count, np.inf), np.full(count, np.inf)
    for number in range(count):
        bounds = course(np.random.default_rng([seed, number]), world, loss=loss, test=test)
        for found, is_crossed in ((alarm, bounds.upper < 0), (promotion, bounds.lower > -test.margin)):
            if is_crossed.any():
                found[number] = int(np.argmax(is_crossed)) + 1
    return Result(alarm, promotion)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=400)
    parser.add_argument("--requests", type=int, default=250_000)
    parser.add_argument("--users", type=int, default=60_000, help="at most 65,535")
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--rate", type=float, default=0.2, help="share of the answers with engagement")
    parser.add_argument("--loss", type=float, default=0.05)
    parser.add_argument("--margin", type=float, default=0.05)
    parser.add_argument("--alpha", type=float, default=0.05)
    args = parser.parse_args()
    world = World(args.requests, args.users, args.share, args.rate)
    test = SequentialTest(margin=args.margin, alpha=args.alpha)
    table = Table("loss", "alarms", "promoted first", "alarms, 50% and 90% after", "promoted, 50% after", "seconds")
    shares = []
    for loss in (0.0, args.loss):
        began = time.monotonic()
        found = experiments(world, args.experiments, loss=loss, test=test)
        shares.append(float(np.isfinite(found.alarm).mean()))
        late = [f"{np.quantile(found.alarm, q, method='higher'):,.0f}" for q in (0.5, 0.9)]
        table.add_row(
            f"{loss:.0%}",
            f"{shares[-1]:.1%}",
            f"{(found.promotion < found.alarm).mean():.1%}",
            " and ".join(late),
            f"{np.quantile(found.promotion, 0.5, method='higher'):,.0f}",
            f"{time.monotonic() - began:.0f}",
        )
    Console().print(f"{world}, {args.experiments} experiments, margin {test.margin:.0%}, alpha {test.alpha:.0%}")
    Console().print(table)
    return 0 if shares[0] <= 0.05 and shares[1] >= 0.9 else 1


if __name__ == "__main__":
    sys.exit(main())
