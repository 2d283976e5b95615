"""Plans for sizes beyond what was measured, from the laws of growth_report.py and figures of other benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Laws = Mapping[tuple[str, str, str], Callable[..., float]]
# The machine of the plans. Half of its time and 80% of its memory are used: assumptions, not measurements.
CORES, MEMORY, DISK, BUSY, FULL = 64, 512.0, 8192.0, 0.5, 0.8
# Hours that a stage may take before it is given more machines.
PATIENCE = 12.0
PROCESSES = 8
GIB = 2**30
# Measured by other benchmarks, see the page: seconds to fill Milvus with 200,000 items, bytes of a gateway for each
# item, bytes of a history of 200 events on a Valkey server.
MILVUS_ITEMS, MILVUS_SECONDS, GATEWAY_BYTES, HISTORY_BYTES = 200_000, (70, 130), 24, 7588
EMBEDDING_BYTES = 256
EVALUATED = 10_000
INDEX = "ivf_pq_fastscan"


class Scale(NamedTuple):
    """Size of a plan, counts in millions."""

    name: str
    events: float
    items: float
    users: float
    requests: float


SCALES = (
    Scale("1 billion events, 100 million items", 1e3, 100.0, 50.0, 2_000),
    Scale("100 billion events, 1 billion items", 1e5, 1e3, 1e3, 20_000),
)


class Row(NamedTuple):
    """Line of the plan: what is planned, its value for a scale, and where it comes from."""

    what: str
    value: str
    source: str


def short(value: float) -> str:
    if math.isnan(value):
        return "not measured"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def unknown(n: float, p: float = 1) -> float:
    """Stand for the law of a stage that was not measured."""
    return math.nan


def hours(cpu_hours: float, most: int | None = None) -> str:
    """Return CPU hours, and the hours on as many machines as finish in time, `most` at the most."""
    if math.isnan(cpu_hours):
        return "not measured"
    count = min(max(1, math.ceil(cpu_hours / (CORES * BUSY * PATIENCE))), most or 10**9)
    wall = cpu_hours / (CORES * BUSY * count)
    return f"{short(cpu_hours)} CPU hours: {f'{wall:.1f} h' if wall >= 1 else f'{wall * 60:.1f} min'} on {count}"


def gib(size: float, part: str = "") -> str:
    """Return a size, and how many machines hold it if their parts have a name."""
    if math.isnan(size):
        return "not measured"
    return f"{short(size)} GiB" + (f" ({part}: {math.ceil(size / (MEMORY * FULL))})" if part else "")


def processes(law: Callable[..., float], items: float) -> int | None:
    """Return the least number of processes, eight on a machine, whose parts fit; None if no number does."""
    return next((p for p in (PROCESSES << k for k in range(10)) if PROCESSES * law(items, p) <= MEMORY * FULL), None)


def plan(laws: Laws, targets: float, scale: Scale) -> list[Row]:
    """Return the lines of a plan.

    Args:
        laws: laws by stage, kind and quantity.
        targets: measured targets of a training step.
        scale: size of the plan.
    """
    events, items = scale.events, scale.items

    def law(stage: str, quantity: str, kind: str = "") -> Callable[..., float]:
        return laws.get((stage, kind, quantity), unknown)

    duckdb, spark = law("preparation", "CPU s", "3GB")(events) / 3600, law("spark", "CPU s")(events) / 3600
    disk = sum(law("preparation", name, "3GB")(events) for name in ("input, GiB", "prepared, GiB"))
    # Below the limit of DuckDB most of the growth is DuckDB's own, so the smaller limit shows that of the rest.
    memory = law("preparation", "peak, GiB", "1GB")(events)
    driver = law("spark", "driver, GiB")(events)
    epoch = events * 1e6 / targets * law("training", "CPU ms a step")(items) / 3.6e6
    divided = law("divided", "peak of a process, GiB")
    count = processes(divided, items)
    alone = law("training", "peak, GiB")(items)
    parts = f"{gib(divided(items, count or 1e9))}, {f'{count} processes' if count else 'any number of processes'}"
    ranking = EVALUATED * law("evaluation", "CPU ms a user")(items) / 3.6e6
    build = law("index", "build, CPU s", INDEX)(items) / 3600
    build_memory = law("index", "peak, GiB", INDEX)(items)
    stored = law("index", "file, GiB", INDEX)(items) + items * 1e6 * EMBEDDING_BYTES / GIB
    cost = law("serving", "CPU ms a request")(items)
    served = law("serving", "memory, GiB")(items)
    made = law("serving", "training and release, peak, GiB")(items)
    rate = CORES * BUSY / cost * 1e3
    servers = math.nan if math.isnan(rate) else math.ceil(scale.requests / rate)
    fill = [items * 1e6 / MILVUS_ITEMS * seconds / 3600 for seconds in MILVUS_SECONDS]
    histories = scale.users * 1e6 * HISTORY_BYTES / GIB
    ids = items * 1e6 * GATEWAY_BYTES / GIB
    fits = "one machine" if memory <= MEMORY * FULL and disk <= DISK * FULL else "more than one machine has"
    prepared = f"{gib(memory)} and {gib(disk)}" + ("" if math.isnan(memory) else f": {fits}")
    law_of = "law of {}".format
    return [
        Row("preparation with DuckDB", hours(duckdb, most=1), law_of("preparation")),
        Row("its memory and disk", prepared, law_of("preparation")),
        Row("preparation with Spark", hours(spark), law_of("spark")),
        Row("memory of its driver", gib(driver), law_of("spark")),
        Row("training, one epoch", hours(epoch), law_of("training")),
        Row("memory of a process, replicated tables", gib(alone), law_of("training")),
        Row("memory of a process, divided tables", parts, law_of("divided")),
        Row(f"exact evaluation of {EVALUATED:,} users", hours(ranking), law_of("evaluation")),
        Row(f"index {INDEX}", f"{hours(build)}; {gib(build_memory)}", law_of("index")),
        Row("index and embeddings on the disk", gib(stored), law_of("index")),
        Row("memory to train and release items with vectors", gib(made), law_of("serving")),
        Row("memory of a server of all items", gib(served, "parts"), law_of("serving")),
        Row("machines for these requests", short(servers), law_of("serving")),
        Row("filling Milvus, one writer", f"{short(fill[0])} to {short(fill[1])} h", "`milvus_index.py`"),
        Row("memory of a gateway for ids", gib(ids), "[Milvus](serving.md#milvus)"),
        Row("Valkey, 200 events a user", gib(histories, "nodes"), "`event_bytes.py`"),
    ]  # fmt: skip


def reached(law: Callable[[float], float], bar: float) -> float:
    """Return the size in millions at which a law reaches a bar; infinite beyond 10^15."""
    low, high = 0.0, 1e9
    if not law(high) >= bar:
        return math.nan if math.isnan(law(high)) else math.inf
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if law(middle) < bar else (low, middle)
    return high


def limits(laws: Laws, targets: float) -> list[tuple[str, str, float, str]]:
    """Return what reaches its bar at which size: (what, unit, millions, remedy), least part of the first plan first."""
    memory, day = MEMORY * FULL, 24 * CORES * BUSY * 3600

    def law(stage: str, quantity: str, kind: str = "") -> Callable[..., float]:
        return laws.get((stage, kind, quantity), unknown)

    divided, step = law("divided", "peak of a process, GiB"), law("training", "CPU ms a step")
    replicated = law("training", "peak, GiB")
    found = [
        ("DuckDB: memory", "events", reached(law("preparation", "peak, GiB", "1GB"), memory), "`engine=spark`"),
        ("DuckDB: a day", "events", reached(law("preparation", "CPU s", "3GB"), day), "`engine=spark`"),
        (
            f"training with replicated tables: {PROCESSES} processes on a machine", "items",
            reached(lambda n: PROCESSES * replicated(n), memory),
            "`item_tower.sharding=row_wise`",
        ),
        (
            f"training with tables divided among any number: {PROCESSES} processes on a machine", "items",
            reached(lambda n: PROCESSES * divided(n, 1e9), memory), "fewer processes with more threads",
        ),
        (
            "an epoch over 10 events an item: a day of one machine", "items",
            reached(lambda n: n * 1e7 / targets * step(n) / 1e3, day), "more machines",
        ),
        (
            "building the index: memory", "items", reached(law("index", "peak, GiB", INDEX), memory), "Milvus",
        ),
        (
            "building the index: a day", "items", reached(law("index", "build, CPU s", INDEX), day), "Milvus",
        ),
        (
            "filling Milvus: a day of one writer", "items",
            86400 / MILVUS_SECONDS[1] * MILVUS_ITEMS / 1e6, "none yet: one process writes",
        ),
        (
            "training and release of items with vectors: memory", "items",
            reached(law("serving", "training and release, peak, GiB"), memory), "Milvus takes the index only",
        ),
        ("a server of all items: memory", "items", reached(law("serving", "memory, GiB"), memory), "parts"),
        ("a gateway: memory for ids of items", "items", memory * GIB / GATEWAY_BYTES / 1e6, "none yet"),
        ("one Valkey node: histories", "users", memory * GIB / HISTORY_BYTES / 1e6, "`valkey-cluster://`"),
    ]  # fmt: skip
    known = (one for one in found if not math.isnan(one[2]))
    return sorted(known, key=lambda one: one[2] / part(SCALES[0], one[1]))


def part(scale: Scale, unit: str) -> float:
    return {"events": scale.events, "items": scale.items, "users": scale.users}.get(unit, scale.users + scale.items)


def plans(laws: Laws, lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the table of the plans, and that of the limits."""
    training = [line for line in lines if line["stage"] == "training" and "stopped" not in line]
    targets = sum(line["targets"] for line in training) / sum(line["steps"] for line in training)
    columns = [plan(laws, targets, scale) for scale in SCALES]
    head = ["what", *(scale.name for scale in SCALES), "from"]
    table = [row(*head), "|---" * len(head) + "|"]
    table.append(row("users, requests/s", *(f"{s.users:,.0f} million, {s.requests:,.0f}" for s in SCALES), "assumed"))
    table += [row(each[0].what, *(one.value for one in each), each[0].source) for each in zip(*columns, strict=True)]
    words = [row("limit", "is reached at", *(scale.name for scale in SCALES), "then"), "|---" * 5 + "|"]
    for what, unit, size, remedy in limits(laws, targets):
        states = ["holds" if part(scale, unit) <= size else "breaks" for scale in SCALES]
        at = f"{short(size)} million {unit}" if math.isfinite(size) else "never"
        words.append(row(what, at, *states, remedy))
    return {"plans": "\n".join(table), "limits": "\n".join(words)}
