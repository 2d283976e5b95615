"""Training on one GPU: targets (real next items, no padding) per second, peak memory, and losses beside the CPU's.

    python benchmarks/gpu.py                                        # 8 minutes at most; prints the table of the results
    RECSYS_PEER_REPLAY=.../bin/python python benchmarks/gpu.py      # with RePlay's SASRec
    python benchmarks/gpu.py --device cpu --users 200 --items 100 --sampled-items 300 --seconds 0

One model on all sides (d = 64, 2 blocks, 2 heads, dropout 0.2), batches of 128 histories, a window of 50. The data are
simulated: popularity of items falls with their rank, lengths of histories are geometric. `bare` is a padded SASRec in
30 lines of torch without logQ, masks or metrics, in bfloat16: what the machine gives to a model of this size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "peers"))
from timing import histories, synchronize
from training_step import BATCH, DIM, build, dataset

HERE = Path(__file__).parent
WINDOW, NEGATIVES, EQUAL_STEPS = 50, 256, 10
# Targets a second, and peak memory in bytes.
Result = tuple[float, int]


def simulate(path: Path, num_users: int, num_items: int) -> None:
    """Write histories as `training_speed.py` exports them."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(1 + rng.geometric(1 / 20, num_users), 200)
    items = 1 + (num_items * rng.random(lengths.sum()) ** 3).astype(np.int64)
    offsets = np.concatenate([[0], lengths.cumsum()])
    np.savez(path, item_idx=items, time=np.arange(len(items)), offsets=offsets, num_items=num_items)


def measure(step: Callable[[], int], device: torch.device, seconds: float) -> Result:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(5):
        step()
    synchronize(device)
    begin, targets, steps = time.perf_counter(), 0, 0
    while steps < 5 or time.perf_counter() - begin < seconds:
        targets += step()
        steps += 1
        if steps % 20 == 0:
            synchronize(device)
    synchronize(device)
    rate = targets / (time.perf_counter() - begin)
    return rate, torch.cuda.max_memory_allocated() if device.type == "cuda" else 0


def ours(data: Path, loss: str, device: torch.device, *, bf16: bool, dropout: bool = True) -> Callable[[], Tensor]:
    """Return the training step of recsys, which returns loss and number of targets."""
    torch.manual_seed(0)
    module, loader = build(dataset(str(data)), loss, WINDOW, False)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    module.to(device).train(dropout)
    optimizer = module.optimizer_factory.optimizer(module.model)
    batches = endless(loader)

    def step() -> Tensor:
        batch = next(batches).to(device)
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            value = module.training_step(batch, 0)
        value.backward()
        optimizer.step()
        step.targets = len(batch.target_idx)  # type: ignore[attr-defined]
        return value.detach()

    return step


def bare(data: Path, loss: str, device: torch.device) -> Callable[[], int]:
    torch.manual_seed(0)
    users, num_items = histories(str(data))
    rng = np.random.default_rng(0)
    table = nn.Embedding(num_items + 1, DIM, padding_idx=0, device=device)
    places = nn.Embedding(WINDOW, DIM, device=device)
    layer = nn.TransformerEncoderLayer(DIM, 2, DIM, 0.2, batch_first=True, norm_first=True, device=device)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    optimizer = torch.optim.Adam([*table.parameters(), *places.parameters(), *encoder.parameters()])
    causal = nn.Transformer.generate_square_subsequent_mask(WINDOW, device=device)

    def step() -> int:
        rows = np.zeros((BATCH, WINDOW + 1), np.int64)
        for row, user in enumerate(rng.integers(len(users), size=BATCH)):
            last = users[user][-WINDOW - 1 :]
            rows[row, : len(last)] = last
        items = torch.from_numpy(rows).to(device)
        seen, labels = items[:, :-1], items[:, 1:]
        is_target = labels > 0
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            states = encoder(table(seen) + places.weight, mask=causal, is_causal=True)[is_target]
            if loss == "full":
                value = F.cross_entropy(F.linear(states, table.weight), labels[is_target])
            else:
                drawn = torch.randint(1, num_items + 1, (NEGATIVES,), device=device)
                positive = (states * table(labels[is_target])).sum(1, keepdim=True)
                logits = torch.cat([positive, F.linear(states, table(drawn))], 1)
                value = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=device))
        value.backward()
        optimizer.step()
        return int(is_target.sum())

    return step


def replay(data: Path, loss: str, device: torch.device, seconds: float) -> Result | None:
    python = os.environ.get("RECSYS_PEER_REPLAY")
    if python is None:
        return None
    command = [python, str(HERE / "peers/replay_sasrec.py"), "--data", str(data), "--loss", loss]
    command += ["--device", device.type, "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"replay: failed\n{done.stderr}", file=sys.stderr)
        return None
    found = json.loads(done.stdout.splitlines()[-1])
    return float(np.median(found["targets_per_second"])), int(found["peak_memory_bytes"])


def endless(loader: object) -> Iterator[object]:
    while True:
        yield from loader  # type: ignore[misc]


def differences(data: Path, device: torch.device) -> tuple[float, float]:
    """Return the largest relative difference of the loss from float32 on the CPU, of float32 and bfloat16."""
    curves = []
    for place, bf16 in ((torch.device("cpu"), False), (device, False), (device, True)):
        step = ours(data, "full", place, bf16=bf16, dropout=False)
        curves.append(np.array([float(step()) for _ in range(EQUAL_STEPS)]))
    first, *others = curves
    single, lower = (float(np.abs(curve / first - 1).max()) for curve in others)
    return single, lower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=12_000)
    parser.add_argument("--sampled-items", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="of timed steps, for each figure")
    parser.add_argument("--minutes", type=float, default=7.0, help="after which nothing more is measured")
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU: torch.cuda.is_available() is false; --device cpu measures the CPU")
    end = time.monotonic() + 60 * given.minutes
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if device.type == 'cuda' else 'cpu'}")
    if "RECSYS_PEER_REPLAY" not in os.environ:
        print("replay: skipped, RECSYS_PEER_REPLAY does not name the Python of an environment that has it")
    with tempfile.TemporaryDirectory() as folder:
        print("| what | recsys, float32 | recsys, bf16 | bare loop of torch, bf16 | RePlay's SASRec |")
        print("|---|---|---|---|---|")
        for loss, title, items in (
            ("full", "full softmax", given.items),
            ("sampled", "sampled negatives", given.sampled_items),
        ):
            data = Path(folder) / f"{loss}.npz"
            simulate(data, given.users, items)

            def own(bf16: bool, data: Path = data, loss: str = loss) -> Result:
                step = ours(data, loss, device, bf16=bf16)
                return measure(lambda: (step(), step.targets)[1], device, given.seconds)  # type: ignore[attr-defined]

            sides: list[Callable[[], Result | None]] = [
                lambda: own(False),
                lambda: own(True),
                lambda: measure(bare(data, loss, device), device, given.seconds),  # noqa: B023
                lambda: replay(data, loss, device, given.seconds),  # noqa: B023
            ]
            found = [side() if time.monotonic() < end else None for side in sides]
            rates = [f"{result[0]:,.0f}" if result else "not measured" for result in found]
            memory = [f"{result[1] / 2**20:,.0f} MiB" if result else "not measured" for result in found]
            print(f"| {title}, targets/s | {' | '.join(rates)} |", flush=True)
            print(f"| {title}, peak memory | {' | '.join(memory)} |", flush=True)
        single, lower = differences(Path(folder) / "full.npz", device)
        print(f"| largest difference of a loss from the CPU's, {EQUAL_STEPS} steps | {single:.1e} | {lower:.1e} | | |")


if __name__ == "__main__":
    main()
