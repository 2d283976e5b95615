"""What every side of the comparison shares: the training histories, and how steps are timed.

Runs in each peer's own interpreter, so it needs numpy and torch alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

WARMUP = 3


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="npz of `training_speed.py`")
    parser.add_argument("--loss", choices=("full", "sampled"), required=True)
    parser.add_argument("--mode", choices=("loop", "fit"), default="loop")
    parser.add_argument("--window", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--same-targets", action="store_true", help="ours only: not a user's first event")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    return given


def histories(path: str) -> tuple[list[np.ndarray], int]:
    """Items of each user's training events, numbered 1..num_items, oldest first; and the number of items."""
    with np.load(path) as data:
        return np.split(data["item_idx"], data["offsets"][1:-1]), int(data["num_items"])


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished the steps that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed_steps(step: Callable[[], int], seconds: float, device: str = "cpu") -> list[float]:
    """Targets per second of each step, after a warm-up; `step` takes the next batch and returns its targets."""
    place = torch.device(device)
    for _ in range(WARMUP):
        step()
    synchronize(place)
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(rates) < 5:
        begin = time.perf_counter()
        targets = step()
        synchronize(place)
        rates.append(targets / (time.perf_counter() - begin))
    return rates


class StepTimer:
    """The same under a Lightning trainer: mix into its `Callback`, and count targets in `count`."""

    def __init__(self, count: Callable[[Any], int], seconds: float) -> None:
        self.count, self.seconds = count, seconds
        self.rates: list[float] = []
        self._begin = self._end = 0.0
        # The index of a batch begins anew with every epoch.
        self._steps = 0

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        now = time.perf_counter()
        self._steps += 1
        if self._steps == WARMUP:
            self._end = now + self.seconds
        if self._steps > WARMUP:
            self.rates.append(self.count(batch) / (now - self._begin))
            if now > self._end and len(self.rates) >= 5:
                trainer.should_stop = True
        self._begin = now


def report(rates: list[float]) -> None:
    """The last line of the output, which `training_speed.py` reads."""
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    print(json.dumps({"targets_per_second": rates, "peak_memory_bytes": memory}))
