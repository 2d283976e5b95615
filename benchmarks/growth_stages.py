"""Stages that growth.py measures: the data of each, made in one process, and what another process measures with it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
DIM, NUM_QUERIES, NUM_STEPS, BLOCK = 64, 400, 300, 1_000_000
Values = dict[str, Any]


class Clock:
    """Seconds since the last reading: of the CPU (all threads), and of the wall."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def __call__(self, name: str) -> Values:
        cpu, wall = time.process_time(), time.perf_counter()
        found = {f"{name}_cpu_s": cpu - self._cpu, f"{name}_wall_s": wall - self._wall}
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return found


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def make_events(size: int, folder: Path) -> None:
    from preparation import draw

    draw(folder / "world", size, num_users=max(size // 20, 1), num_items=max(size // 1000, 10))


def prepare_events(size: int, kind: str, folder: Path) -> Values:
    from preparation import DuckDB, ParquetFolder, TemporalSplit, prepare, settings

    clock = Clock()
    prepare(
        ParquetFolder(str(folder / "world")), TemporalSplit(0.8, 0.1), settings=settings(random=True),
        cache=folder / kind, engine=DuckDB(kind),
    )  # fmt: skip
    sizes = {"input_bytes": size_of(folder / "world"), "output_bytes": size_of(folder / kind / "prepared")}
    return clock("prepare") | sizes


def spark(size: int, kind: str, folder: Path) -> Values:
    words = ["--num-events", str(size), "--num-users", str(size // 20), "--num-items", str(size // 100)]
    command = [sys.executable, str(HERE / "spark_cluster.py"), *words]
    places = os.environ | {"TMPDIR": str(folder)}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=places).stdout
    print(output, file=sys.stderr)
    patterns = {
        "prepare_wall_s": r"two workers: ([\d.]+) s",
        "prepare_cpu_s": r", ([\d.]+) CPU s",
        "driver_gib": r"at most ([\d.]+)",
        "equal_files": r"(\d+) of \d+ files",
        "files": r"of (\d+) files",
    }
    found = {name: re.search(pattern, output) for name, pattern in patterns.items()}
    return {name: float(match[1]) for name, match in found.items() if match}


def make_training(size: int, folder: Path) -> None:
    from catalogue_size import composed, open_data, write_events

    write_events(folder / "world", size, size + min(size, BLOCK))
    open_data(composed(folder / "world", "item_tower=ids"))


def train(size: int, kind: str, folder: Path) -> Values:
    from catalogue_size import Steps, composed

    clock = Clock()
    steps = Steps(composed(folder / "world", "item_tower=ids", f"model.dim={DIM}", "item_tower.sharding=replicated"))
    steps.take()
    found = clock("open")
    targets = sum(steps.take() for _ in range(NUM_STEPS))
    return found | clock("steps") | {"steps": NUM_STEPS, "targets": targets}


def evaluate(size: int, kind: str, folder: Path) -> Values:
    import numpy as np
    import torch
    from evaluation_speed import Embeddings, ModelRanker, evaluation, synthetic

    dataset = synthetic(NUM_QUERIES, size, np.random.default_rng(0))
    model = Embeddings(size, DIM)
    clock = Clock()
    ranker = ModelRanker(model, np.arange(1, size + 1))  # type: ignore[arg-type]
    found = clock("encode")
    evaluation(dataset, ranker, torch.randn(NUM_QUERIES, DIM))
    return found | clock("search") | {"users": NUM_QUERIES}


def make_divided(size: int, folder: Path) -> None:
    from sharded_tables import composed, write_events

    from recsys.experiments.assembly import open_data

    write_events(folder / "data", size)
    open_data(composed(folder, "row_wise", 1))


def divide(size: int, kind: str, folder: Path) -> Values:
    from sharded_tables import start

    # A finished run would only be opened.
    shutil.rmtree(folder / "row_wise", ignore_errors=True)
    found = start(int(kind), "train", folder, size, "row_wise")
    return {"process_gib": max(each["peak_gb"] for each in found) * 1e9 / 2**30}


def blocks(size: int) -> Iterator[tuple[Any, Any]]:
    """Yield clustered items and queries near them, a block at a time."""
    from index_throughput import synthetic

    for seed, begin in enumerate(range(0, size, BLOCK)):
        items = min(BLOCK, size - begin)
        yield synthetic(items, DIM, -(-NUM_QUERIES * items // size), seed)


def make_embeddings(size: int, folder: Path) -> None:
    import numpy as np

    from recsys.index import exact_search

    items = np.lib.format.open_memmap(folder / "items.npy", "w+", np.float32, (size, DIM))
    queries, end = [], 0
    for block, asked in blocks(size):
        items[end : end + len(block)] = block
        queries.append(asked)
        end += len(block)
    mixed = np.random.default_rng(0).permutation(np.concatenate(queries))
    np.save(folder / "queries.npy", mixed)
    np.save(folder / "truth.npy", exact_search(items, mixed[len(mixed) // 2 :], k=100)[1])


def index(size: int, kind: str, folder: Path) -> Values:
    import numpy as np
    from index_throughput import BACKENDS, tune

    from recsys.index import save_index

    items = np.load(folder / "items.npy", mmap_mode="r")
    queries, truth = np.load(folder / "queries.npy"), np.load(folder / "truth.npy")
    made, clock = BACKENDS[kind](), Clock()
    made.build(items)
    found = clock("build")
    saved = folder / kind
    saved.mkdir()
    save_index(made, saved)
    found |= {"index_bytes": size_of(saved)}
    clock("save")
    half = len(queries) // 2
    tuning = tune(made, items, queries=queries[:half], recall_target=0.98, k=100)
    found |= clock("tune")
    _, rows = made.search(queries[half:], 100)
    shares = [len(np.intersect1d(one, other)) / len(other) for one, other in zip(rows, truth, strict=True)]
    effort = {"recall": float(np.mean(shares)), "breadth": tuning.chosen.breadth}
    return found | clock("search") | effort | {"queries": len(truth)}


def make_release(size: int, folder: Path) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from recsys.cli.main import main

    root, end = folder / "data", 0
    root.mkdir()
    schema = pa.schema({"item_id": pa.int64(), "look": pa.list_(pa.float32())})
    with pq.ParquetWriter(root / "items.parquet", schema, compression="none") as writer:
        for block, _ in blocks(size):
            offsets = pa.array(np.arange(len(block) + 1, dtype=np.int32) * DIM)
            look = pa.ListArray.from_arrays(offsets, pa.array(block.ravel()))
            writer.write_table(pa.table({"item_id": np.arange(end, end + len(block)), "look": look}, schema=schema))
            end += len(block)
    rng = np.random.default_rng(0)
    events = {"user_id": np.repeat(np.arange(100), 20), "item_id": rng.integers(0, size, 2000)}
    pq.write_table(pa.table(events | {"timestamp": np.tile(np.arange(20), 100)}), root / "interactions.parquet")
    main([
        "train", "data=parquet", f"data.root={root}", f"data.cache={folder / 'cache'}", "split=leave_last_out",
        f"model.dim={DIM}", "user_tower=mean", "item_tower=features", "trainer.max_steps=5",
        "evaluation.baselines=false", "logger=csv",
        "+trainer.enable_progress_bar=false", f"hydra.run.dir={folder / 'run'}",
    ])  # fmt: skip
    main(["index", f"run={folder / 'run'}", f"store={folder / 'store'}", "alias=production"])


def serve(size: int, kind: str, folder: Path) -> Values:
    import numpy as np
    from load_generator import drive
    from serving_process import serving
    from serving_start import pss
    from spark_cluster import processor_seconds

    rng = np.random.default_rng(1)
    bodies = folder / "bodies.jsonl"
    histories = rng.integers(0, size, (2000, 20)).tolist()
    lines = [json.dumps({"history": [{"item_id": item} for item in one], "k": 100}) for one in histories]
    bodies.write_text("\n".join(lines) + "\n")
    options = [f"store={folder / 'store'}", "release=production", f"events={folder / 'events.sqlite'}"]
    begin = time.perf_counter()
    with serving(folder, *options) as (address, server):
        found = {"ready_wall_s": time.perf_counter() - begin, "ready_cpu_s": processor_seconds(server.pid)}
        drive(f"{address}/v1/retrieve", bodies, 32, 2, folder)
        before = processor_seconds(server.pid)
        load = drive(f"{address}/v1/retrieve", bodies, 32, 8, folder)
        spent = processor_seconds(server.pid) - before
        found |= {"requests": load.answered, "requests_cpu_s": spent, "p99_ms": load.p99, "errors": load.errors}
        found |= {"memory_gib": pss(server.pid) / 2**30}
    (version,) = (path for path in (folder / "store").iterdir() if (path / "manifest.json").exists())
    recall = json.loads((version / "manifest.json").read_text())["index"].get("recall")
    return found | {"release_bytes": size_of(version), "recall": recall}


class Stage(NamedTuple):
    """Measured stage.

    Attributes:
        sizes: numbers of events or items.
        make: function (size, folder) that makes the data of all kinds.
        measure: function (size, kind, folder) that returns what it measured.
        kinds: variants.
    """

    sizes: tuple[int, ...]
    make: Callable[[int, Path], None] | None
    measure: Callable[[int, str, Path], Values]
    kinds: tuple[str, ...] = ("",)


M = 1_000_000
STAGES = {
    "preparation": Stage((M, 10 * M, 50 * M, 100 * M), make_events, prepare_events, ("3GB", "1GB")),
    "spark": Stage((M // 5, M, 10 * M), None, spark),
    "training": Stage((M, 5 * M, 20 * M), make_training, train),
    "evaluation": Stage((M, 5 * M, 20 * M), None, evaluate),
    "divided": Stage((M, 2 * M, 4 * M), make_divided, divide, ("1", "2", "4")),
    "index": Stage((M, 4 * M, 10 * M), make_embeddings, index, ("ivf_flat", "ivf_sq8", "ivf_pq_fastscan", "hnsw")),
    "serving": Stage((M, 4 * M, 10 * M), make_release, serve),
}
