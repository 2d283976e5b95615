"""How well each estimator knows the probabilities of targets, against its memory; and recall of models that use it.

    python benchmarks/frequency_estimation.py                                       a Zipf stream
    python benchmarks/frequency_estimation.py --root DIR --split leave_last_out     targets of epochs on real data
    python benchmarks/frequency_estimation.py --root DIR --train frequency=exact frequency=count_min,frequency.width=512

The last one trains a small model with each variant. Errors are of log Q, in nats: weighted by Q (what an in-batch
candidate meets), unweighted over the items of the stream (what rare items meet), and the bias of the first. Recall is
on the test part, with coverage.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from recsys.core.schema import TimeResolution
from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.loaders import TrainingLoader
from recsys.data.preparation.prepare import prepare
from recsys.data.preparation.settings import DataSettings
from recsys.data.preparation.splits import GivenSplit, LeaveLastOutSplit, Split, TemporalSplit
from recsys.data.sources import ParquetFolder
from recsys.experiments.conf_files import CONF
from recsys.experiments.train import train
from recsys.training.frequency import (
    CountMinFrequency,
    ExactFrequency,
    Frequency,
    StreamingFrequency,
    target_probabilities,
)

SPLITS: dict[str, Callable[[], Split]] = {
    "temporal": TemporalSplit,
    "leave_last_out": LeaveLastOutSplit,
    "given": GivenSplit,
}
SHOWN = ("test/recall@10", "test/recall@100", "test/tail/recall@100", "test/coverage@10")


class Stream(NamedTuple):
    """Targets of one step after another, and how probable each item is as one; float64 [N + 1]."""

    steps: Iterable[Tensor]
    probabilities: Tensor


def zipf(num_items: int, num_steps: int, num_targets: int) -> Stream:
    weights = 1.0 / torch.arange(1, num_items + 1, dtype=torch.float64)
    probabilities = torch.cat([torch.zeros(1, dtype=torch.float64), weights / weights.sum()])
    cumulative = probabilities.cumsum(0)
    # Ids are scattered, as they are where they are not numbered by popularity.
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(num_items)])

    def steps() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(1)
        for _ in range(num_steps):
            points = torch.rand(num_targets, dtype=torch.float64, generator=generator)
            yield order[torch.searchsorted(cumulative, points).clamp_(1, num_items)]

    scattered = torch.zeros_like(probabilities)
    scattered[order] = probabilities
    return Stream(steps(), scattered)


def epochs(root: Path, split: str, time: TimeResolution, cache: Path, num_epochs: int, batch_size: int) -> Stream:
    settings = DataSettings(time_resolution=time)
    dataset = prepare(ParquetFolder(str(root)), SPLITS[split](), settings=settings, cache=cache)
    loader = TrainingLoader(BatchBuilder(dataset, 50), batch_size, seed=0)
    steps = (batch.target_idx for _ in range(num_epochs) for batch in loader)
    return Stream(steps, target_probabilities(dataset, predict_first=True))


def estimators(probabilities: Tensor, powers: Iterable[int]) -> Iterator[tuple[str, Frequency]]:
    """Each kind at each memory: 2^power bytes."""
    yield "exact", ExactFrequency(probabilities)
    for power in powers:
        for num_hashes, rate in itertools.product((1, 2), (0.01, 0.05)):
            size = 2**power // 8 // num_hashes
            yield f"streaming, {num_hashes} x {size}, rate {rate}", StreamingFrequency(size, num_hashes, rate=rate)
        for depth in (1, 2, 4):
            size = 2**power // 4 // depth
            yield f"count-min, {depth} x {size}", CountMinFrequency(size, depth)


def num_bytes(frequency: Frequency) -> int:
    assert isinstance(frequency, torch.nn.Module)
    return sum(b.numel() * b.element_size() for b in frequency.buffers() if b.dim() > 0)


def measure(stream: Stream, powers: Iterable[int]) -> None:
    known = list(estimators(stream.probabilities, powers))
    num_targets = num_steps = 0
    for targets in stream.steps:
        num_steps, num_targets = num_steps + 1, num_targets + len(targets)
        for _, frequency in known:
            frequency.update(targets)
    items = stream.probabilities.nonzero().flatten()
    q = stream.probabilities[items]
    print(f"{len(items):,} items, {num_targets:,} targets in {num_steps:,} steps\n")
    print("| estimator | memory, KiB | error, by Q | bias, by Q | error, by item |\n|---|---|---|---|---|")
    for name, frequency in known:
        found = frequency.probability(items).double().clamp(min=1e-12)
        error = (found / q).log()
        values = (float(q @ error.abs()), float(q @ error), float(error.abs().mean()))
        print(
            f"| {name} | {num_bytes(frequency) / 1024:,.0f} | " + " | ".join(f"{value:.3f}" for value in values) + " |"
        )


def compare(root: Path, split: str, time: str, cache: Path, variants: list[str], overrides: list[str]) -> None:
    print("| variant | " + " | ".join(SHOWN) + " |\n|---|" + "---|" * len(SHOWN))
    for variant in variants:
        settings = [f"data.root={root}", f"data.time={time}", f"data.cache={cache}", f"split={split}", "logger=csv"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            chosen = ["data=parquet", "negatives=in_batch", *settings, *overrides, *variant.split(",")]
            config = compose("train", overrides=chosen)
        with tempfile.TemporaryDirectory() as folder:
            metrics = train(config, Path(folder) / "run").metrics
        print(f"| `{variant}` | " + " | ".join(f"{metrics[name]:.4f}" for name in SHOWN) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-items", type=int, default=100_000, help="of the Zipf stream")
    parser.add_argument("--num-steps", type=int, default=2000, help="of the Zipf stream")
    parser.add_argument("--num-targets", type=int, default=1024, help="of a step of the Zipf stream")
    parser.add_argument("--powers", type=int, nargs="+", default=[14, 16, 18, 20, 22], help="memory: 2^POWER bytes")
    parser.add_argument("--root", type=Path, help="folder with interactions.parquet, instead of the Zipf stream")
    parser.add_argument("--split", choices=sorted(SPLITS), default="temporal")
    parser.add_argument("--time", choices=["seconds", "day", "order", "none"], default="seconds")
    parser.add_argument("--cache", type=Path, default=Path(".cache/recsys"))
    parser.add_argument("--num-epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--train", nargs="+", metavar="OVERRIDES", help="variants to train: KEY=VALUE,KEY=VALUE")
    parser.add_argument("--overrides", nargs="*", default=[], help="of all variants that are trained")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.train and args.root is None:
        parser.error("--train needs --root")
    if args.train:
        compare(args.root, args.split, args.time, args.cache, args.train, args.overrides)
    elif args.root is not None:
        measure(
            epochs(args.root, args.split, TimeResolution(args.time), args.cache, args.num_epochs, args.batch_size),
            args.powers,
        )
    else:
        measure(zipf(args.num_items, args.num_steps, args.num_targets), args.powers)


if __name__ == "__main__":
    main()
