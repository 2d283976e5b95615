"""Check that no malformed message breaks a server or is stored.

    python benchmarks/serving_fuzz.py                              # 100,000 malformed requests and events
    python benchmarks/serving_fuzz.py --requests 1000 --large 200 --store STORE --release RELEASE

`serve.py role=all` runs as a process, with users and admin calls. Between the malformed messages (`fuzz_messages.py`)
every connection also sends valid requests for known users, and the answers must not change. Then the server must be
alive and ready, its log without an exception, and its event store and journal of items unchanged, and one valid event
is stored and seen. Then large requests, valid and not (`fuzz_large.py`), are sent one after the other: none may block
the event loop for more than 50 ms (`watched_server.py`) or take the memory of the server above twice what it takes when
idle, and every user who got events is answered. Exits with 1 if any of this fails. A seed always gives the same
messages.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pyarrow.parquet as pq
from fault_cluster import TOKEN
from fuzz_large import LargeMessages
from fuzz_messages import Messages
from fuzz_parts import ANY, REFUSED, Sent, World, post
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from serving_faults import make_releases
from serving_process import call, serving

from recsys.release.manifest import ITEMS
from recsys.release.store import ReleaseStore
from recsys.serving.events import Event, Restored, SQLiteEvents

NUM_USERS = 50
VALID_EVERY = 20
# Rounding differences of a tower that answers several requests together.
TOLERANCE = 1e-4
ANSWER_SECONDS = 60.0
# Timeout for messages that are not HTTP, because a server may wait for the rest of them.
REST_SECONDS = 0.3
LIMITS = {"k": 1000, "batch": 1000, "history": 10_000, "body_bytes": 1 << 20, "cost": 250_000}
# Bars of large requests: ms for which the event loop is blocked, and memory as a multiple of that of an idle server.
LONGEST_BLOCK, MOST_MEMORY = 50.0, 2.0
SHOWN = 10
LONGEST_REFUSAL = 50_000


class Answer(NamedTuple):
    """Answer of the server; status 0: the connection was closed, -1: no answer in time."""

    status: int
    body: bytes
    keeps: bool


@dataclass
class Record:
    """Counts of a run.

    Attributes:
        outcomes: (kind of message, outcome) -> count.
        misses: (reason, message, answer) of each wrong answer.
        num_missed: number of wrong answers to malformed messages.
        valid: number of valid requests.
        wrong: number of valid requests with a wrong answer.
        spans: (begin, end, kind) of each large request, in seconds since 1970.
        blocks: ms for which the event loop was blocked, and computed, and the request and the calls at that time.
        memory: of the server in bytes when it was idle, and at most.
        peaks: what each large request added to the memory, its peak, and that request.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    misses: list[tuple[str, Sent, Answer]] = field(default_factory=list)
    num_missed: int = 0
    valid: int = 0
    wrong: int = 0
    spans: list[tuple[float, float, str]] = field(default_factory=list)
    blocks: list[tuple[float, float, str]] = field(default_factory=list)
    memory: tuple[int, int] = 1, 1
    peaks: list[tuple[int, int, str]] = field(default_factory=list)


class Connection:
    """Connection for one message at a time; opened again if it was closed."""

    def __init__(self, host: str, port: int) -> None:
        self._place = host, port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, data: bytes, patience: float, *, has_body: bool = True) -> Answer:
        """Send bytes, and read one answer."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(*self._place, limit=1 << 20)
        assert self._reader is not None
        self._writer.write(data)
        try:
            answer = await asyncio.wait_for(self._read(self._reader, has_body), patience)
        except TimeoutError:
            answer = Answer(-1, b"", False)
        except (ConnectionError, asyncio.IncompleteReadError):
            answer = Answer(0, b"", False)
        if not answer.keeps:
            await self.close()
        return answer

    async def _read(self, reader: asyncio.StreamReader, has_body: bool) -> Answer:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split(None, 2)[1])
            if status >= 200:
                break
        lines = [line.partition(b":") for line in head.lower().split(b"\r\n")[1:]]
        headers = {name: value.strip() for name, _, value in lines}
        body = b""
        if has_body and status != 304:
            size = headers.get(b"content-length")
            body = await reader.read() if size is None else await reader.readexactly(int(size))
            if size is None:
                return Answer(status, body, False)
        return Answer(status, body, headers.get(b"connection") != b"close")

    async def close(self) -> None:
        """Close the connection."""
        if self._writer is not None:
            self._writer.close()
            with suppress(ConnectionError):
                await self._writer.wait_closed()
        self._reader = self._writer = None


def judge(sent: Sent, answer: Answer) -> str | None:
    """Return the fault of an answer, or None."""
    if answer.status >= 500:
        return "5xx"
    if answer.status >= 400 and len(answer.body) > LONGEST_REFUSAL:
        return "long refusal"
    if sent.must == ANY:
        # Messages that happen to be valid events are never sent, so nothing may be stored.
        return "taken" if 200 <= answer.status < 300 and b"stored" in answer.body else None
    if answer.status == -1:
        return "no answer"
    if answer.status == 0:
        return "closed"
    if sent.must == REFUSED:
        if not 400 <= answer.status < 500:
            return "taken"
        if answer.body or not sent.data.startswith(b"HEAD"):
            return None if _says_why(answer.body) else "4xx without a reason"
    return None


def _says_why(body: bytes) -> bool:
    try:
        detail = json.loads(body)["error"]
        return bool(detail["code"]) and bool(detail["message"])
    except (ValueError, TypeError, KeyError):
        # uvicorn itself refuses messages that are not HTTP.
        return body == b"Invalid HTTP request received."


async def fuzz(
    place: tuple[str, int], messages: Messages, *, expected: dict[int, Any], count: int, record: Record
) -> None:
    """Send the messages of one connection."""
    connection, right = Connection(*place), Connection(*place)
    users = sorted(expected)
    for number in range(count):
        sent = messages.draw()
        patience = REST_SECONDS if sent.must == ANY else ANSWER_SECONDS
        answer = await connection.send(sent.data, patience, has_body=not sent.data.startswith(b"HEAD"))
        if sent.must == ANY:
            await connection.close()
        wrong = judge(sent, answer)
        said = {0: "closed", -1: "waits"}.get(answer.status, f"{answer.status // 100}xx")
        record.outcomes[sent.kind, said] += 1
        if wrong is not None:
            record.num_missed += 1
            record.misses.append((wrong, sent, answer))
        if number % VALID_EVERY == 0:
            user = users[number // VALID_EVERY % len(users)]
            body = json.dumps({"user_id": user, "k": 10}).encode()
            found = await right.send(post(b"/v1/retrieve", body), ANSWER_SECONDS)
            record.valid += 1
            record.wrong += not (found.status == 200 and _is_same(json.loads(found.body), expected[user]))
    await connection.close()
    await right.close()


def _is_same(found: Any, expected: Any) -> bool:
    scores = [np.array([item["score"] for item in one["items"]]) for one in (found, expected)]
    same = all(found[name] == expected[name] for name in ("version", "history_length", "unknown_items"))
    return same and scores[0].shape == scores[1].shape and np.allclose(*scores, atol=TOLERANCE)


def contents(events: Path, journal: Path) -> list[Any]:
    """Return everything that the server has stored."""
    with closing(sqlite3.connect(f"file:{events}?mode=ro", uri=True)) as file:
        tables = [
            file.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall()
            for name in ("histories", "profiles", "restored")
        ]
    return [*tables, journal.read_bytes() if journal.exists() else None]


def store_users(path: Path, item_ids: list[Any]) -> None:
    """Store users with random histories."""
    rng, store = np.random.default_rng(0), SQLiteEvents(path)
    users = []
    for user in range(NUM_USERS):
        chosen = rng.integers(0, len(item_ids), 20)
        users.append(Restored(user, [Event(item_ids[row], 1_600_000_000 + at) for at, row in enumerate(chosen)], {}))
    store.restore(users, "fuzz", done=1)
    store.close()


def measure(args: argparse.Namespace, store: Path, *, name: str, folder: Path) -> tuple[Record, list[tuple[str, bool]]]:
    """Return the counts of a run, and the conditions at its end."""
    release, manifest = ReleaseStore(store).open(name)
    items = pq.read_table(release / ITEMS)
    item_ids = items["item_id"].slice(0, 500).to_pylist()
    column = next((name for name in items.column_names if name not in ("item_id", "item_idx")), "item_id")
    world = World(manifest.version, manifest.dim, item_ids, column, TOKEN, **LIMITS)
    events, journal = folder / "events.sqlite", folder / "changes.journal"
    store_users(events, item_ids)
    options = [
        f"store={store.absolute()}",
        f"release={name}",
        f"events={events}",
        f"changes={journal}",
        f"admin_token={TOKEN}",
    ]
    options += [f"limits.{limit}={value}" for limit, value in LIMITS.items()]
    record = Record()
    beats = folder / "blocks.jsonl"
    script = (str(Path(__file__).with_name("watched_server.py")), str(beats))
    with serving(folder, *options, script=script) as (address, server):
        retrieve = f"{address}/v1/retrieve"
        expected = {user: call(retrieve, {"user_id": user, "k": 10}) for user in range(NUM_USERS)}
        before, versions = contents(events, journal), call(f"{address}/v1/version")
        asyncio.run(_fuzz_all(args, address, world=world, expected=expected, record=record))
        alive = server.poll() is None
        ends = [("the server is alive", alive)]
        if alive:
            failed = [
                line for line in _metrics(address) if line.startswith("recsys_requests_total") and 'status="5' in line
            ]
            ends += [
                ("ready, and serves the same versions", call(f"{address}/v1/version") == versions),
                ("no 5xx in its metrics", not failed),
                ("events and items are unchanged", contents(events, journal) == before),
            ]
            # A new user, because the history of a known user may already be as long as the tower reads.
            stored = call(f"{address}/v1/events", {"user_id": "somebody new", "item_id": item_ids[0]})
            longer = call(retrieve, {"user_id": "somebody new", "k": 10})["history_length"] == 1
            ends.append(
                ("a valid event is stored and seen", stored == {"stored": 1, "repeated": 0, "dropped": 0} and longer)
            )
            idle = memory(server.pid, "VmRSS")
            large = LargeMessages(world, args.seed)
            touched = asyncio.run(send_large(address, large, count=args.large, pid=server.pid, record=record))
            record.memory = idle, max((peak for _, peak, _ in record.peaks), default=idle)
            answers = [call(retrieve, {"user_id": user, "k": 10}) for user in touched]
            ends.append((f"{len(answers)} users with large events are answered", True))
    record.blocks = blocks(beats, record.spans)
    log = (folder / "server.log").read_text(errors="replace")
    ends.append(("no exception in its log", "Traceback" not in log and '"level": "error"' not in log))
    if not ends[-1][1]:
        print(log[-5000:], file=sys.stderr)
    return record, ends


async def _fuzz_all(
    args: argparse.Namespace, address: str, *, world: World, expected: dict[int, Any], record: Record
) -> None:
    parts = urlsplit(address)
    place = str(parts.hostname), int(parts.port or 0)
    share = -(-args.requests // args.connections)
    seeds = [args.seed * 10_000 + number for number in range(args.connections)]
    await asyncio.gather(
        *(fuzz(place, Messages(world, seed), expected=expected, count=share, record=record) for seed in seeds)
    )


async def send_large(address: str, messages: LargeMessages, *, count: int, pid: int, record: Record) -> list[str]:
    """Send large requests one after the other, and return the users whose events the server acknowledged."""
    parts = urlsplit(address)
    connection, touched = Connection(str(parts.hostname), int(parts.port or 0)), set[str]()
    for _ in range(count):
        # The kernel counts the peak of the memory from here on.
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        before = memory(pid, "VmRSS")
        sent, begin = messages.draw(), time.time()
        answer = await connection.send(sent.data, REST_SECONDS if sent.must == ANY else ANSWER_SECONDS)
        if sent.must == ANY:
            # The answers to the other requests of the connection are not read.
            await connection.close()
        text = f"{sent.kind}: {sent.data[:160]!r}"
        record.spans.append((begin, time.time(), text))
        peak = memory(pid, "VmHWM")
        record.peaks.append((peak - before, peak, text))
        wrong = judge(sent, answer)
        record.outcomes[sent.kind, {0: "closed", -1: "waits"}.get(answer.status, f"{answer.status // 100}xx")] += 1
        if wrong is not None:
            record.num_missed += 1
            record.misses.append((wrong, sent, answer))
        if answer.status == 200 and b" /v1/events " in sent.data[:20]:
            posted = json.loads(sent.data.partition(b"\r\n\r\n")[2])
            touched.update(event["user_id"] for event in (posted if isinstance(posted, list) else [posted]))
    await connection.close()
    return sorted(touched, key=str)


def memory(pid: int, name: str) -> int:
    """Return a size of a process in bytes, as /proc/PID/status names it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def blocks(path: Path, spans: list[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Return the blocks that the watch has reported, longest first, each with the large request of that time."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        told = json.loads(line)
        kinds = [kind for begin, end, kind in spans if begin - 0.005 <= told["at"] <= end + 0.005]
        kind = kinds[-1] if kinds else "malformed messages, or the start"
        found.append((told["blocked"], told["computed"], f"{kind} in {told['stack']}"))
    return sorted(found, reverse=True)


def _metrics(address: str) -> list[str]:
    with urllib.request.urlopen(f"{address}/metrics", timeout=30) as answer:
        text: str = answer.read().decode()
    return text.splitlines()


def report(record: Record, ends: list[tuple[str, bool]], *, seconds: float, console: Console) -> bool:
    """Print the counts, and return whether everything was right."""
    said = ["2xx", "4xx", "closed", "waits", "3xx", "5xx"]
    table = Table("malformed", *said)
    for kind in sorted({kind for kind, _ in record.outcomes}):
        table.add_row(kind, *(f"{record.outcomes[kind, what] or ''}" for what in said))
    total = sum(record.outcomes.values())
    table.add_row(
        "all", *(str(sum(n for (_, what), n in record.outcomes.items() if what == one) or "") for one in said)
    )
    console.print(table)
    console.print(f"{total:,} malformed messages in {seconds:.0f} s; {record.num_missed} answered wrong")
    console.print(f"{record.valid:,} valid requests between them; {record.wrong} answered wrong or not at all")
    for what, holds in ends:
        console.print(f"{'yes' if holds else 'NO ':<4}{what}")
    longest = max((max(block[:2]) for block in record.blocks), default=0.0)
    console.print(f"longest block of the event loop {longest:.0f} ms (bar {LONGEST_BLOCK:g})")
    grown = record.memory[1] / record.memory[0]
    console.print(
        f"memory at most {grown:.2f} x that of {record.memory[0] / 1e6:.0f} MB when idle (bar {MOST_MEMORY:g})"
    )
    for blocked, computed, kind in record.blocks[:SHOWN] if longest > LONGEST_BLOCK else ():
        console.print(escape(f"blocked for {blocked:.0f} ms, computed for {computed:.0f} ms: {kind}"), style="red")
    for added, peak, kind in sorted(record.peaks, reverse=True)[:SHOWN] if grown > MOST_MEMORY else ():
        console.print(escape(f"{added / 1e6:.0f} MB more, {peak / 1e6:.0f} MB: {kind}"), style="red")
    for what, sent, answer in record.misses[:SHOWN]:
        shown = f"{what}: {sent.kind}: {sent.data[:300]!r} -> {answer.status} {answer.body[:200]!r}"
        console.print(escape(shown), style="red")
    is_light = longest <= LONGEST_BLOCK and grown <= MOST_MEMORY
    return is_light and not record.num_missed and not record.wrong and all(holds for _, holds in ends)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--requests", type=int, default=100_000)
    add("--large", type=int, default=2000, help="number of large requests")
    add("--connections", type=int, default=16)
    add("--seed", type=int, default=0)
    add("--store", type=Path, help="of releases; without it a small one is made")
    add("--release", default="production", help="version or alias")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store, release = args.store, args.release
        if store is None:
            made, versions = make_releases(folder)
            store, release = Path(made), versions[0]
        begin = time.monotonic()
        record, ends = measure(args, store, name=release, folder=folder)
        return (
            0
            if report(record, ends, seconds=time.monotonic() - begin, console=Console(width=120, soft_wrap=True))
            else 1
        )


if __name__ == "__main__":
    sys.exit(main())
