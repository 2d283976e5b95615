"""Oracle of a simulated world: items scored by the probabilities that drew the events.

The oracle reads the world, the boards of the users, the board of each user's last event before the part, and the times
of the events in the part. It scores items by their expected number of events at those times.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recsys.core.columns import load_array, ragged_positions
from recsys.core.errors import UserError
from recsys.core.schema import TimeResolution
from recsys.core.types import Float32Array, Float64Array, Int64Array
from recsys.data.dataset import Part, PreparedDataset, Requests
from recsys.data.simulation.unknown_popularity import unknown_popularity
from recsys.data.simulation.world import Boards, World, WorldSettings, stay

_SCORES_PER_BLOCK = 32_000_000


class Moments(NamedTuple):
    """Events to predict: request r, of user `user[r]`, has those at `seconds[begin[r]:begin[r + 1]]`, by time."""

    user: Int64Array
    begin: Int64Array
    seconds: Int64Array


class Truth:
    """Hidden state of a generated folder, read from `<root>/truth`."""

    def __init__(self, root: Path) -> None:
        folder = root / "truth"
        try:
            self.settings = WorldSettings(**json.loads((folder / "settings.json").read_text()))
            self.world = World.load(folder / "world.npz", self.settings)
            self.offsets: Int64Array = np.load(folder / "offsets.npy")
            self._boards = [load_array(folder / f"boards.{name}.npy") for name in ("topic", "size", "phase", "cycle")]
            self._seconds = load_array(folder / "events.seconds.npy")
            self._board = load_array(folder / "events.board.npy")
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{folder}: not the truth of a simulated world ({error})") from error

    def boards(self, users: Int64Array) -> Boards:
        """Return the boards of `users`, which count from 0."""
        return Boards(*(np.asarray(column[users]) for column in self._boards))

    def expected(self, moments: Moments, days: Int64Array) -> Float64Array:
        """Return the expected number of events by topic and day, float64 [R, T, len(days)].

        Args:
            moments: events to predict.
            days: every day of the moments, ascending.
        """
        settings, num_requests = self.settings, len(moments.user)
        counts = np.diff(moments.begin)
        boards = self.boards(moments.user)
        row = np.repeat(np.arange(num_requests), counts)
        interest = boards.interest(self.world, row, seconds=moments.seconds)
        state, last = self._state(moments)
        probability = np.empty_like(interest)
        # The board is a Markov chain: one step for the first event of every request, then for the second, ...
        for step in range(int(counts.max(initial=0))):
            active = np.flatnonzero(counts > step)
            at = moments.begin[active] + step
            keep = np.where(last[active] < 0, 0.0, stay(settings, np.maximum(moments.seconds[at] - last[active], 0)))
            state[active] = keep[:, None] * state[active] + (1 - keep)[:, None] * interest[at]
            probability[at] = state[active]
            last[active] = moments.seconds[at]

        day = np.searchsorted(days, self.world.day_of(moments.seconds))
        mass = np.zeros((num_requests, settings.num_topics, len(days)))
        topic = boards.topic[row]
        event, board = np.nonzero(topic >= 0)
        np.add.at(
            mass,
            (row[event], topic[event, board], day[event]),
            (1 - settings.explore) * probability[event, board],
        )
        outside = np.zeros((num_requests, len(days)))
        np.add.at(outside, (row, day), settings.explore)
        return mass + outside[:, None, :] * np.stack([self.world.topic_probability(int(d)) for d in days], axis=1)

    def _state(self, moments: Moments) -> tuple[Float64Array, Int64Array]:
        """Return the board of the last event before the moments, one-hot [R, B], and its time, -1 if there is none."""
        state = np.zeros((len(moments.user), self._boards[0].shape[1]))
        last = np.full(len(moments.user), -1, np.int64)
        for request, user in enumerate(moments.user):
            begin, end = self.offsets[user], self.offsets[user + 1]
            before = np.searchsorted(self._seconds[begin:end], moments.seconds[moments.begin[request]])
            if before:
                state[request, self._board[begin + before - 1]] = 1.0
                last[request] = self._seconds[begin + before - 1]
        return state, last


class Scores(NamedTuple):
    """Scores of an oracle for R requests by item_idx, float32 [R, N + 1]; -inf for items that a model cannot know.

    Attributes:
        requests: the requests, as positions in the data set.
        best: expected number of events of each item in the part.
        no_popularity: the same if nothing is known about the popularity of a new item but that it has no training
            event, see `unknown_popularity`; None if the data has no new items.
    """

    requests: Requests
    best: Float32Array
    no_popularity: Float32Array | None


def oracle_scores(
    root: Path, dataset: PreparedDataset, *, part: Part, max_users: int = 5_000, seed: int = 0
) -> Iterator[Scores]:
    """Yield the scores of the requests of a part, in blocks of requests. Items of the history are not left out.

    Args:
        root: generated folder that `dataset` was prepared from.
        dataset: data set prepared with `data.time=seconds`.
        part: `val` or `test`.
        max_users: maximum number of users. If the part has more, a sample is drawn.
        seed: seed of the sample.

    Raises:
        UserError: If `root` has no truth, or `dataset` was not prepared from it.
    """
    truth = Truth(root)
    world, num_items, num_known = truth.world, truth.settings.num_items, dataset.meta.num_known
    users = dataset.requests(part).user_idx
    if len(users) > max_users:
        users = np.sort(np.random.default_rng(seed).choice(users, max_users, replace=False))
    user_ids, item_ids = (
        np.asarray(ids.to_numpy(zero_copy_only=False)) for ids in (dataset.user_ids, dataset.item_ids)
    )
    _check(root, dataset, settings=truth.settings, user_ids=user_ids, item_ids=item_ids)

    # Position of each known item in the world's order of items, in the order of item_idx.
    position = np.argsort(world.item_id)[item_ids - 1]
    known = position[:num_known]
    part_begin, part_end = (bounds[users] for bounds in dataset.part_bounds(part))
    seconds = dataset.time[ragged_positions(part_begin, part_end - part_begin)] - truth.settings.start_seconds
    days = np.unique(world.day_of(seconds))
    weights = [np.stack([world.item_weights(int(day)) for day in days])] if len(days) else []
    if weights and (dataset.train_count[1:] == 0).any():
        weights.append(unknown_popularity(world, dataset, position=position, days=days, weights=weights[0]))
    likely = [world.within_topics(each) for each in weights]
    per_block = max(1, _SCORES_PER_BLOCK // max(num_items, truth.settings.num_topics * len(days)))
    for first in range(0, len(users), per_block):
        chunk = slice(first, first + per_block)
        begin, end = part_begin[chunk], part_end[chunk]
        moments = Moments(
            user=user_ids[users[chunk]] - 1,
            begin=np.concatenate([[0], np.cumsum(end - begin)]),
            seconds=dataset.time[ragged_positions(begin, end - begin)] - truth.settings.start_seconds,
        )
        mass = truth.expected(moments, days).astype(np.float32)
        found = []
        for each in likely:
            scores = np.empty((len(begin), num_items), np.float32)
            for topic in range(truth.settings.num_topics):
                items = slice(world.topic_start[topic], world.topic_start[topic + 1])
                scores[:, items] = mass[:, topic] @ each[:, items]
            by_index = np.full((len(begin), dataset.num_items + 1), -np.inf, np.float32)
            by_index[:, 1 : num_known + 1] = scores[:, known]
            found.append(by_index)
        yield Scores(Requests(users[chunk], begin), found[0], found[1] if len(found) > 1 else None)


def _check(
    root: Path, dataset: PreparedDataset, *, settings: WorldSettings, user_ids: Int64Array, item_ids: Int64Array
) -> None:
    if dataset.meta.time_resolution is not TimeResolution.SECONDS:
        raise UserError(f"{dataset.path}: prepared with data.time={dataset.meta.time_resolution}, expected seconds")
    for name, ids, num in (("user_id", user_ids, settings.num_users), ("item_id", item_ids, settings.num_items)):
        if ids.dtype.kind != "i" or (len(ids) and (ids.min() < 1 or ids.max() > num)):
            raise UserError(f"{dataset.path}: {name}s do not belong to {root}, expected whole numbers from 1 to {num}")
