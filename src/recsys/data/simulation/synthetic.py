"""Generator of simulated pins: writes a world as the tables of the data contract, at any size.

    <root>/interactions.parquet/part-00000.parquet ...   items.parquet   users.parquet
    <root>/truth/   hidden from readers of the tables: settings, world, boards, and the board of every event

Each block of users has its own random stream, and a shard holds whole blocks. So memory depends on the size of a shard
and not on the size of the data, and the size of a shard changes no value.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.core.errors import UserError
from recsys.core.progress import Progress
from recsys.core.types import Int64Array
from recsys.data.simulation import pins
from recsys.data.simulation.world import (
    DAY,
    EVENT_STREAM,
    LENGTH_STREAM,
    MAX_BOARDS,
    NUM_STYLES,
    Boards,
    World,
    WorldSettings,
    pick,
    stay,
)
from recsys.data.sources.files import Tables, build_once

__all__ = ["Synthetic", "WorldSettings", "generate"]

# Increase this number if the same settings would give other values: it is part of the names in the cache.
_VERSION = 1
_USERS_PER_BLOCK = 1024
_EVENTS_PER_SHARD = 2_000_000
_SURFACES = ("home", "search", "related")
_ACTIONS = ("save", "click", "closeup", "hide")


@dataclass(frozen=True)
class Synthetic(WorldSettings):
    """Source of simulated pins. They are generated once for each combination of settings."""

    def folder(self, cache: Path) -> Path:
        """Return the folder of the data, where the oracle finds the truth."""
        content = json.dumps([_VERSION, dataclasses.asdict(self)], sort_keys=True)
        return cache / "synthetic" / hashlib.sha256(content.encode()).hexdigest()[:16]

    def tables(self, cache: Path) -> Tables:
        """Return the paths of the tables, generated if they do not exist."""
        root = self.folder(cache)
        build_once(root, functools.partial(_write, settings=self))
        shards = sorted(str(path) for path in (root / "interactions.parquet").iterdir())
        return Tables(tuple(shards), (str(root / "items.parquet"),), (str(root / "users.parquet"),))


def generate(root: Path, settings: WorldSettings) -> None:
    """Write the world of `settings` into the folder `root`, which appears only when it is complete.

    Raises:
        UserError: If `root` exists, or the period has no room for the number of events.
    """
    if not build_once(root, functools.partial(_write, settings=settings)):
        raise UserError(f"{root}: already exists; expected a folder that does not exist")


def _write(root: Path, settings: WorldSettings) -> None:
    world = World.build(settings)
    lengths = _history_lengths(settings)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    truth = root / "truth"
    truth.mkdir()
    (truth / "settings.json").write_text(json.dumps(dataclasses.asdict(settings), indent=2) + "\n")
    world.save(truth / "world.npz")
    np.save(truth / "offsets.npy", offsets)
    with pq.ParquetWriter(root / "items.parquet", pins.ITEMS_SCHEMA, store_schema=False) as items_file:
        for table in pins.item_tables(world):
            items_file.write_table(table)

    shape = (settings.num_users, MAX_BOARDS)
    boards = Boards(
        topic=_create(truth / "boards.topic.npy", np.int32, shape),
        size=_create(truth / "boards.size.npy", np.float32, shape),
        phase=_create(truth / "boards.phase.npy", np.float32, shape),
        cycle=_create(truth / "boards.cycle.npy", np.float32, shape),
    )
    event_seconds = _create(truth / "events.seconds.npy", np.int64, (settings.num_events,))
    event_board = _create(truth / "events.board.npy", np.int8, (settings.num_events,))
    shards = root / "interactions.parquet"
    shards.mkdir()
    queries = pins.query_pool(settings)
    with (
        Progress("simulating pins", settings.num_events, unit="events") as progress,
        pq.ParquetWriter(root / "users.parquet", pins.USERS_SCHEMA, store_schema=False) as users_file,
    ):
        for number, (first, last) in enumerate(_shard_bounds(lengths)):
            blocks, profiles = [], []
            for begin in range(first, last, _USERS_PER_BLOCK):
                block, end = begin // _USERS_PER_BLOCK, min(begin + _USERS_PER_BLOCK, last)
                rows, events = slice(begin, end), slice(offsets[begin], offsets[end])
                users, block_boards = pins.draw_users(world, block, first=begin, last=end)
                profiles.append(users)
                for field in dataclasses.fields(Boards):
                    getattr(boards, field.name)[rows] = getattr(block_boards, field.name)
                drawn = _draw_events(world, block, boards=block_boards, lengths=lengths[rows])
                event_seconds[events], event_board[events] = drawn["seconds"], drawn["board"]
                blocks.append(drawn)
            columns = {name: np.concatenate([block.pop(name) for block in blocks]) for name in list(blocks[0])}
            user_id = np.repeat(np.arange(first, last) + 1, lengths[first:last])
            users_file.write_table(pa.concat_tables(profiles))
            if len(user_id):
                file = shards / f"part-{number:05d}.parquet"
                _write_shard(file, world, queries=queries, user_id=user_id, columns=columns)
            progress.advance(offsets[last] - offsets[first])


def _create(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def _history_lengths(settings: WorldSettings) -> Int64Array:
    """Return the number of events of each user: heavy-tailed, with exact sum; 2% of users have none, 3% have one."""
    rng = settings.rng(LENGTH_STREAM)
    activity = rng.lognormal(0.0, 0.75, settings.num_users)
    special = rng.random(settings.num_users)
    once = (special >= 0.02) & (special < 0.05)
    activity[special < 0.05] = 0
    if not activity.any():
        activity[:] = 1
        once[:] = False
    share = np.cumsum(activity) / activity.sum()
    rest = settings.num_events - int(once.sum())
    if rest < 0:
        once[:], rest = False, settings.num_events
    lengths: Int64Array = np.diff(np.rint(share * rest).astype(np.int64), prepend=0) + once
    room = settings.days * DAY // 20
    if lengths.max() > room:
        raise UserError(
            f"data.num_events={settings.num_events}: a user would have {lengths.max()} events, expected at most {room} "
            f"in {settings.days} days; ask for more users or days"
        )
    return lengths


def _shard_bounds(lengths: Int64Array) -> Iterator[tuple[int, int]]:
    """Yield the first and last user (exclusive) of each shard, which holds whole blocks."""
    first = events = 0
    for begin in range(0, len(lengths), _USERS_PER_BLOCK):
        events += int(lengths[begin : begin + _USERS_PER_BLOCK].sum())
        last = min(begin + _USERS_PER_BLOCK, len(lengths))
        if events >= _EVENTS_PER_SHARD or last == len(lengths):
            yield first, last
            first, events = last, 0


def _draw_events(world: World, block: int, *, boards: Boards, lengths: Int64Array) -> dict[str, npt.NDArray[Any]]:
    """Draw times and boards of the events of a block, and the random numbers that decide the rest."""
    settings, rng = world.settings, world.settings.rng(EVENT_STREAM, block)
    num_users, num_events = len(lengths), int(lengths.sum())
    user = np.repeat(np.arange(num_users), lengths)
    joined = np.where(rng.random(num_users) < 0.65, 0.0, rng.random(num_users)) * 0.95 * settings.days

    # Sittings of about four events, mostly in the evening.
    num_sittings = np.maximum(np.rint(lengths / 4), 1).astype(np.int64)
    sitting_end = np.cumsum(num_sittings)
    owner = np.repeat(np.arange(num_users), num_sittings)
    day = np.floor(joined[owner] + (settings.days - joined[owner]) * rng.random(len(owner)))
    start = (day * DAY + rng.triangular(6 * 3600, 20.5 * 3600, 24 * 3600, len(owner))).astype(np.int64)
    start = np.minimum(start, settings.days * DAY - 7200)
    sitting = np.floor(rng.random(num_events) * num_sittings[user]).astype(np.int64)
    seconds = start[(sitting_end - num_sittings)[user] + sitting] + np.minimum(
        rng.exponential(600, num_events), 3600
    ).astype(np.int64)

    # Order by user and time, with at most one event of a user in a second.
    base = user * (4 * settings.days * DAY)
    place = np.arange(num_events)
    seconds = np.maximum.accumulate(np.sort(base + seconds) - place) + place - base

    first = np.ones(num_events, bool)
    first[1:] = user[1:] != user[:-1]
    gap = np.diff(seconds, prepend=0)
    anew = first | (rng.random(num_events) >= stay(settings, np.maximum(gap, 0)))
    turns = np.flatnonzero(anew)
    chosen = pick(boards.interest(world, user[turns], seconds=seconds[turns]), rng.random(num_events)[turns])
    board = chosen[np.cumsum(anew) - 1]
    return {
        "seconds": seconds,
        "board": board.astype(np.int8),
        "topic": boards.topic[user, board],
        "explores": rng.random(num_events) < settings.explore,
        "u_topic": rng.random(num_events),
        "u_item": rng.random(num_events),
        "u_surface": rng.random(num_events, dtype=np.float32),
        "u_query": rng.random(num_events, dtype=np.float32),
        "u_action": rng.random(num_events, dtype=np.float32),
        "dwell": rng.lognormal(2.3, 0.8, num_events).astype(np.float32),
        "no_dwell": rng.random(num_events, dtype=np.float32) < 0.05,
    }


def _draw_items(world: World, columns: dict[str, npt.NDArray[Any]]) -> Int64Array:
    """Draw the item of each event, day by day, from the cumulated weights of its topic."""
    topic, explores = columns["topic"].astype(np.int64), columns["explores"]
    day = world.day_of(columns["seconds"]).astype(np.uint16)
    order = np.argsort(day, kind="stable")
    bounds = np.searchsorted(day[order], np.arange(world.settings.days + 1))
    item = np.empty(len(day), np.int64)
    upper = np.zeros(world.settings.num_items + 1)
    for today in range(world.settings.days):
        events = order[bounds[today] : bounds[today + 1]]
        if not len(events):
            continue
        about, wandering = topic[events], explores[events]
        topic_upper = np.cumsum(world.topic_probability(today))
        drawn = np.searchsorted(topic_upper, columns["u_topic"][events[wandering]] * topic_upper[-1], side="right")
        about[wandering] = np.minimum(drawn, len(topic_upper) - 1)
        np.cumsum(world.item_weights(today), dtype=np.float64, out=upper[1:])
        low, high = upper[world.topic_start[about]], upper[world.topic_start[about + 1]]
        # Strictly below `high` even after rounding, so that the item belongs to the topic and exists on that day.
        target = np.minimum(low + columns["u_item"][events] * (high - low), np.nextafter(high, 0))
        # Sorted targets keep the binary search in the cache.
        ascending = np.argsort(target)
        item[events[ascending]] = np.searchsorted(upper, target[ascending], side="right") - 1
    return item


def _write_shard(
    path: Path, world: World, *, queries: pa.Array, user_id: Int64Array, columns: dict[str, npt.NDArray[Any]]
) -> None:
    settings = world.settings
    item = _draw_items(world, columns)
    # The surface depends on neither item nor board, so it does not help a model to beat the oracle.
    is_search = columns["u_surface"] < settings.search_share
    is_related = columns["u_surface"] > 1 - 0.2 * (1 - settings.search_share)
    per_pair = len(queries) // (settings.num_topics * NUM_STYLES)
    pair = world.item_topic[item] * NUM_STYLES + world.style[item]
    query = pair * per_pair + (columns["u_query"] * per_pair).astype(np.int64)
    # save, click, closeup, hide: items outside a user's boards are rarely saved and often hidden.
    limits = np.where(columns["explores"][:, None], [0.1, 0.3, 0.8], [0.45, 0.7, 0.99]).astype(np.float32)
    action = (columns["u_action"][:, None] >= limits).sum(1)
    dwell = columns["dwell"] * np.array([2.0, 1.5, 1.0, 0.3], np.float32)[action]
    table = {
        "user_id": user_id,
        "item_id": world.item_id[item],
        "timestamp": columns["seconds"] + settings.start_seconds,
        "surface": pins.coded(_SURFACES, is_search + 2 * is_related),
        "query": pins.coded(queries, np.minimum(query, len(queries) - 1), missing=~is_search),
        "action": pins.coded(_ACTIONS, action),
        "dwell": pa.array(dwell, mask=columns["no_dwell"]),
    }
    if settings.interest_share:
        # The random number of the query is free on events without one.
        opened = ~is_search & (columns["u_query"] < settings.interest_share)
        category = world.item_topic[item] // settings.topics_per_category
        table["interest"] = pins.coded(pins.category_names(settings), category, missing=~opened)
    words = [name for name in ("surface", "query", "action", "interest") if name in table]
    pq.write_table(pa.table(table), path, use_dictionary=words, store_schema=False)
