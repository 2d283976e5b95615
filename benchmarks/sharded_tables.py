"""An id table that two processes share, at size: five steps, checkpoints, resumption, and the memory of evaluation.

    python benchmarks/sharded_tables.py steps --out runs/sharded               a table of 20 million x 64
    python benchmarks/sharded_tables.py evaluation --out runs/sharded          4 million items, replicated and divided
    python benchmarks/sharded_tables.py release --out runs/sharded             4 million items, divided, to a release

`steps` trains the same five steps by one process and by two, and again from a checkpoint of the third step by two and
by one. It prints the rows that each process holds, the largest relative difference of the losses, and the largest
difference of all rows, from those of one process. Rules of Adagrad divide by the size of the gradient, so they turn
rounding in tiny gradients into larger differences. It needs the size of the table four times on the disk, and twice in
memory.

`evaluation` trains ten steps with two processes and evaluates on all items, with replicated and with divided tables. It
prints the largest resident memory of each process, and the largest difference of a metric from that of one process.

`release` lets two processes write a divided, untrained table as a checkpoint, and makes a release of it. It prints the
largest memory of the process that did: anonymous pages, and all resident ones, of which the system can write those of
files to the disk and take them away.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from omegaconf import DictConfig

from recsys.experiments.assembly import open_data

DIM, STEPS, STOP = 64, 5, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["steps", "evaluation", "release", "process", "train", "table", "index"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--items", type=int, default=None)
    parser.add_argument("--rule", default="sgd", choices=["sgd", "adagrad", "rowwise_adagrad"])
    parser.add_argument("--name", default="")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if arguments.what == "steps":
        measure_steps(out, arguments.items or 20_000_000, arguments.rule)
    elif arguments.what == "evaluation":
        measure_evaluation(out, arguments.items or 4_000_000)
    elif arguments.what == "release":
        measure_release(out, arguments.items or 4_000_000)
    elif arguments.what == "table":
        write_table(out)
    elif arguments.what == "index":
        make_release(out)
    elif arguments.what == "process":
        process(out, arguments.items, arguments.name, arguments.rule)
    else:
        train_run(out, arguments.name)


def start(world: int, what: str, out: Path, items: int, name: str, *more: str) -> list[dict[str, Any]]:
    """Run a step of the benchmark in several processes, and return what each reports."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    words = [sys.executable, __file__, what, "--out", str(out), "--items", str(items), "--name", name, *more]
    workers = []
    for rank in range(world):
        places = {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(world), "GLOBAL_RANK": str(rank)}
        places |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        workers.append(subprocess.Popen(words, env=os.environ | places, stdout=subprocess.DEVNULL))
    assert [worker.wait() for worker in workers] == [0] * world, name
    return [json.loads((out / f"{name}-{rank}.json").read_text()) for rank in range(world)]


def report(out: Path, name: str, **values: Any) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rank = os.environ["LOCAL_RANK"]
    (out / f"{name}-{rank}.json").write_text(json.dumps(values | {"peak_gb": round(peak / 1e9, 2)}))


def measure_steps(out: Path, items: int, rule: str) -> None:
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    print(f"| {items:,} x {DIM} | rows held | loss | rows | peak memory, GB | s |\n|---|---|---|---|---|---|")
    for name, world in (("one", 1), ("two", 2), ("two-from-checkpoint", 2), ("one-from-checkpoint", 1)):
        begin = time.monotonic()
        found = start(world, "process", out, items, name, "--rule", rule)
        held = ", ".join(f"{each['rows'] / items:.1%}" for each in found)
        loss, rows = (max(each[key] for each in found) for key in ("loss_difference", "row_difference"))
        peaks = ", ".join(str(each["peak_gb"]) for each in found)
        seconds = time.monotonic() - begin
        print(f"| {name} | {held} | {loss:.1e} | {rows:.1e} | {peaks} | {seconds:.0f} |", flush=True)


def process(out: Path, items: int, name: str, rule: str) -> None:
    """Train five steps and compare them with those of one process."""
    import lightning as L
    from lightning.pytorch.strategies import DDPStrategy

    from recsys.core.schema import Schema, TimeResolution
    from recsys.data.batches.datamodule import RetrievalData
    from recsys.data.dataset import Meta, PreparedDataset
    from recsys.models.encoders import MeanPooling
    from recsys.models.items import ItemTower
    from recsys.models.sharded_table import sharded_tables
    from recsys.models.towers import UserTower
    from recsys.models.two_tower import TwoTower
    from recsys.training.checkpoints import AtomicCheckpointIO
    from recsys.training.frequency import ExactFrequency, target_probabilities
    from recsys.training.losses import SampledSoftmax
    from recsys.training.module import RetrievalModule
    from recsys.training.negatives import MixedNegatives, SamplerInputs
    from recsys.training.optimizers import AdamW

    rng = np.random.default_rng(0)
    users, length = 400, 40
    events = rng.integers(1, items + 1, users * length).astype(np.int32)
    offsets = np.arange(users + 1, dtype=np.int64) * length
    counts = np.bincount(events, minlength=items + 1).astype(np.int64)
    meta = Meta(
        fingerprint="synthetic", time_resolution=TimeResolution.SECONDS, num_users=users, num_events=len(events),
        num_trained=items, num_seen=items, num_known=items, num_items=items, settings={},
    )  # fmt: skip
    dataset = PreparedDataset(
        Path(), meta, Schema(()), events, np.tile(np.arange(length, dtype=np.int64) * 86_400, users), offsets,
        offsets[1:], offsets[1:], counts, np.zeros(items + 1, bool), {},
    )  # fmt: skip
    L.seed_everything(0, verbose=False)
    model = TwoTower(
        UserTower(MeanPooling(DIM, dropout=0.0), DIM, sizes=dataset.sizes, unknown_rate=0.0),
        ItemTower(DIM, dataset.sizes, use_features=False, sharding="row_wise"),
    )
    corpus = torch.arange(1, items + 1)
    frequency = ExactFrequency(target_probabilities(dataset, True))
    negatives = MixedNegatives(SamplerInputs(frequency.probabilities, corpus, frequency), 256)
    module = RetrievalModule(
        model, SampledSoftmax(), negatives=negatives, optimizer=AdamW(1e-3, 0.01, fused=rule), corpus=corpus, seed=0
    )
    losses: list[float] = []

    class Record(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, _: Any, outputs: Any, *__: Any) -> None:
            loss = outputs["loss"].detach().clone()
            dist.all_reduce(loss)
            losses.append(float(loss) / trainer.world_size)
            if name == "two" and trainer.global_step == STOP:
                trainer.save_checkpoint(out / "checkpoints/stop.ckpt")

    trainer = L.Trainer(
        accelerator="cpu", devices=int(os.environ["WORLD_SIZE"]), max_steps=STEPS, logger=False,
        strategy=DDPStrategy(process_group_backend="gloo", find_unused_parameters=True, broadcast_buffers=False),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        use_distributed_sampler=False, default_root_dir=str(out), callbacks=[Record()], plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    resumed = out / "checkpoints/stop.ckpt" if name.endswith("checkpoint") else None
    trainer.fit(module, RetrievalData(dataset, batch_size=64), ckpt_path=resumed, weights_only=True)
    (table,) = sharded_tables(model).values()
    shape = (items + 1, DIM)
    file = out / "one.f32"
    if name == "one":
        file.unlink(missing_ok=True)
        (out / "one-losses.json").write_text(json.dumps(losses))
        with file.open("wb") as opened:
            opened.truncate(4 * shape[0] * shape[1])
    reference = torch.from_file(str(file), shared=True, size=shape[0] * shape[1]).view(shape)
    difference, block = 0.0, 1 << 20
    for begin in range(0, len(table.weight), block):
        own = table.weight[begin : begin + block]
        other = reference[table.begin + begin : table.begin + begin + len(own)]
        if name == "one":
            other.copy_(own)
        difference = max(difference, float((own - other).abs().max()))
    expected = json.loads((out / "one-losses.json").read_text())[-len(losses) :]
    loss = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
    assert len(losses) == (STEPS - STOP if resumed else STEPS)
    report(out, name, rows=len(table.weight), loss_difference=loss, row_difference=difference)


def write_events(root: Path, items: int) -> None:
    """Write users of 5,000 events that see each item once, and validation and test events of the head."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    length = 5_000
    users = -(-items // length)
    item = np.concatenate([rng.permutation(items), rng.integers(0, items, users * length - items)]).reshape(
        users, length
    )
    item = np.concatenate([item, rng.integers(0, 1000, (users, 2))], axis=1).astype(np.int64)
    user = np.repeat(np.arange(users, dtype=np.int64), length + 2)
    table = {"user_id": user, "item_id": item.ravel(), "timestamp": np.tile(np.arange(length + 2), users)}
    pq.write_table(pa.table(table), root / "interactions.parquet")


def measure_evaluation(out: Path, items: int) -> None:
    if not (out / "data/interactions.parquet").exists():
        write_events(out / "data", items)
    print(f"| {items:,} items, two processes | peak memory of each, GB | s |\n|---|---|---|")
    peaks = {}
    for name in ("replicated", "row_wise"):
        shutil.rmtree(out / name, ignore_errors=True)
        begin = time.monotonic()
        found = start(2, "train", out, items, name)
        peaks[name] = max(each["peak_gb"] for each in found)
        print(f"| {name} | {', '.join(str(each['peak_gb']) for each in found)} | {time.monotonic() - begin:.0f} |")
    print(f"\nlargest peak: {peaks['row_wise'] / peaks['replicated']:.0%} of that with replicated tables", flush=True)
    (found,) = start(1, "train", out, items, "one")
    print(f"largest difference of {found['metrics']} metrics from one process: {found['difference']:.1e}")


def train_run(out: Path, name: str) -> None:
    from recsys.data.batches.loaders import RequestLoader
    from recsys.evaluation.metrics import RetrievalMetrics
    from recsys.evaluation.ranking import ModelRanker, evaluate
    from recsys.experiments.train import train
    from recsys.experiments.trained_run import load_run

    if name == "one":
        run = load_run(out / "row_wise")
        metrics = RetrievalMetrics(run.dataset, len(run.corpus))
        batches = RequestLoader(run.builder, run.dataset.requests("test"))
        values = evaluate(
            ModelRanker(run.model, run.corpus), run.dataset, part="test", batches=batches, metrics=metrics
        )
        stored = {n.removeprefix("test/"): v for n, v in run.metrics.items() if n.startswith("test/")}
        report(out, name, metrics=len(stored), difference=max(abs(values[n] - v) for n, v in stored.items()))
        return
    train(composed(out, name, int(os.environ["WORLD_SIZE"])), out / name)
    report(out, name)


def measure_release(out: Path, items: int) -> None:
    if not (out / "data/interactions.parquet").exists():
        write_events(out / "data", items)
    shutil.rmtree(out / "untrained", ignore_errors=True)
    shutil.rmtree(out / "store", ignore_errors=True)
    open_data(composed(out, "row_wise", 2))
    start(2, "table", out, items, "table")
    (found,) = start(1, "index", out, items, "index")
    print(f"table of {items * DIM * 4 / 1e9:.2f} GB: {found}")


def write_table(out: Path) -> None:
    """Write the run folder of an untrained model, with the rows of this process."""
    from omegaconf import OmegaConf

    from recsys.experiments.assembly import build_towers
    from recsys.models.sharded_table import NO_UPDATES, build_tables
    from recsys.training.sharded_checkpoints import KEY, save_tables

    dist.init_process_group("gloo", rank=int(os.environ["LOCAL_RANK"]))
    config, run = composed(out, "row_wise", 2), out / "untrained"
    dataset = open_data(config)
    model = build_towers(config, dataset)
    build_tables(model, NO_UPDATES, device=torch.device("cpu"))
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    tables = save_tables(model, run / "checkpoints", step=1)
    if dist.get_rank() == 0:
        weights = {f"model.{name}": value for name, value in model.state_dict().items()}
        torch.save({"state_dict": weights, "global_step": 1, KEY: tables}, run / "checkpoints/best.ckpt")
        (run / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True).replace("???", "null"))
        (run / "metrics.json").write_text("{}")
        state = {"status": "finished", "dataset_fingerprint": dataset.meta.fingerprint, "git_commit": None}
        (run / "run.json").write_text(json.dumps(state))
    report(out, "table")


def make_release(out: Path) -> None:
    """Make a release, and report the largest anonymous memory before and during it."""
    from recsys.experiments.trained_run import load_run
    from recsys.index import Exact
    from recsys.publishing.promote import promote
    from recsys.release.store import ReleaseStore

    largest, is_over = [0], threading.Event()

    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    def watch() -> None:
        while not is_over.wait(0.05):
            largest[0] = max(largest[0], anonymous())

    torch.set_num_threads(1)
    before = anonymous()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        promote(load_run(out / "untrained"), Exact(), store=ReleaseStore(out / "store"), model="benchmark")
    finally:
        is_over.set()
        watcher.join()
    report(out, "index", anonymous_gb=round(largest[0] / 1e6, 2), before_gb=round(before / 1e6, 2))


def composed(out: Path, sharding: str, world: int) -> DictConfig:
    """Return the configuration of ten steps on the events of `write_events`, and of their evaluation."""
    from hydra import compose, initialize_config_dir

    conf = Path(__file__).parents[1] / "conf"
    with initialize_config_dir(str(conf), version_base="1.3"):
        return compose(
            "train",
            [
                "data=parquet", f"data.root={out}/data", f"data.cache={out}/cache", "split=leave_last_out",
                "user_tower=mean", "item_tower=ids", "model.dim=64", "trainer=ddp", f"trainer.devices={world}",
                f"item_tower.sharding={sharding}", "trainer.max_steps=10", "batch_size=64",
                "evaluation.baselines=false", "logger=csv", "+trainer.enable_progress_bar=false",
            ],
        )  # fmt: skip


if __name__ == "__main__":
    main()
