"""Probabilistic model of the simulated pins: items, their probabilities over time, and the boards of users.

Every probability that decides the next item is a closed formula of this module. The generator draws from it and the
oracle ranks by it, so the best reachable recall is exact and not the estimate of another model:

    P(i | u, t) = (1 - explore) * sum_b board_b(u, t) * p_t(i | topic of b) + explore * sum_c p_t(c) * p_t(i | c)

`p_t(i | topic)` is a Zipf weight x an age curve (0 before birth) x a trend. An event keeps the board of the event
before it with probability `stay(gap)`; otherwise its board is drawn from the user's drifting interests.

Shapes: U users, B boards a user, N items in the order of their topics, T topics, D days.
"""

from __future__ import annotations

import dataclasses
import datetime
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recsys.core.errors import UserError
from recsys.core.types import Float32Array, Float64Array, Int64Array

DAY = 86_400
MAX_BOARDS = 6
NUM_STYLES = 20
AGE_GROUPS = ("13-17", "18-24", "25-34", "35-44", "45-54", "55+")
AGE_SHARES = (0.08, 0.24, 0.28, 0.18, 0.12, 0.10)

# First part of every seed, so that no two kinds of draw share a stream.
WORLD_STREAM, LENGTH_STREAM, USER_STREAM, EVENT_STREAM, ITEM_STREAM = range(5)

_ZIPF_EXPONENT, _ZIPF_SHIFT = 1.1, 3.0
_OLD_ITEM_INTEREST = 0.03
_BOARD_MEMORY = 1.0 * DAY
_INTEREST_CYCLE = 60.0 * DAY


@dataclass(frozen=True)
class WorldSettings:
    """Size and character of a world. Equal settings give equal data.

    Attributes:
        num_users, num_items, num_events: exact sizes; a few users have no event.
        num_categories, topics_per_category: categories are coarse and visible, topics are fine and hidden.
        days, start: length of the period, and its first day as an ISO date.
        seed: seed of all draws.
        explore: share of events outside the user's boards.
        drift: how strongly interests in boards rise and fall; 0 keeps them constant.
        stickiness: probability that an event keeps the board of the event just before it.
        search_share: share of events that come from a search, with a query text.
        interest_share: share of the other events that come from an opened interest (a category); 0 for no such column.
        vector_width: width of the visual vector.
    """

    num_users: int = 3_000
    num_items: int = 2_000
    num_events: int = 60_000
    num_categories: int = 10
    topics_per_category: int = 6
    days: int = 90
    start: str = "2024-01-01"
    seed: int = 0
    explore: float = 0.1
    drift: float = 1.0
    stickiness: float = 0.7
    search_share: float = 0.25
    interest_share: float = 0.0
    vector_width: int = 16

    def __post_init__(self) -> None:
        for name in ("num_users", "num_events", "num_categories", "topics_per_category", "vector_width"):
            _require(name, getattr(self, name), low=1)
        _require("days", self.days, low=1, high=36_500)
        _require("num_items", self.num_items, low=self.num_topics)
        _require("seed", self.seed, low=0)
        _require("drift", self.drift, low=0)
        for name in ("explore", "stickiness", "search_share", "interest_share"):
            _require(name, getattr(self, name), low=0, high=1)
        try:
            datetime.date.fromisoformat(self.start)
        except (TypeError, ValueError) as error:
            raise UserError(f"data.start={self.start}: expected a date such as 2024-01-01") from error

    @property
    def num_topics(self) -> int:
        """Number of topics of all categories."""
        return self.num_categories * self.topics_per_category

    @property
    def start_seconds(self) -> int:
        """Unix time of the first second."""
        return (datetime.date.fromisoformat(self.start) - datetime.date(1970, 1, 1)).days * DAY

    def rng(self, stream: int, block: int = 0) -> np.random.Generator:
        """Return the generator of one block of one kind of draw. It does not depend on the size of shards."""
        return np.random.default_rng([self.seed, stream, block])


def _require(name: str, value: float, *, low: float, high: float | None = None) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or value < low
        or (high is not None and value > high)
    ):
        expected = f"at least {low}" if high is None else f"from {low} to {high}"
        raise UserError(f"data.{name}={value}: expected a number {expected}")


@dataclass(frozen=True)
class World:
    """Topics and items, and their probabilities on each day.

    Attributes:
        settings: settings of the world.
        topic_share: float32 [T], popularity of topics; topic t belongs to category t // topics_per_category.
        heat: float32 [T, D], factor of the popularity of a topic on a day.
        category_share: float32 [A, C], share of each category in the interests of an age group.
        topic_start: int64 [T+1], items of topic t are `topic_start[t]:topic_start[t+1]`, most popular first.
        item_id: int64 [N], outside ids.
        style: int64 [N], code of a word that titles, tags and queries share.
        born: float32 [N], day of birth, a whole number, negative before the period.
        zipf, half_life: float32 [N], Zipf weight, and half-life of the age curve in days.
        trending: int64 [M], items with a trend.
        peak, width, boost: float32 [M], day of the peak, width in days and height of each trend.
    """

    settings: WorldSettings
    topic_share: Float32Array
    heat: Float32Array
    category_share: Float32Array
    topic_start: Int64Array
    item_id: Int64Array
    style: Int64Array
    born: Float32Array
    zipf: Float32Array
    half_life: Float32Array
    trending: Int64Array
    peak: Float32Array
    width: Float32Array
    boost: Float32Array

    @classmethod
    def build(cls, settings: WorldSettings) -> World:
        """Draw the world of the settings."""
        rng = settings.rng(WORLD_STREAM)
        num_topics, num_items, days = settings.num_topics, settings.num_items, settings.days
        share = rng.permutation(1.0 / (np.arange(num_topics) + 5.0) ** 0.7)
        share /= share.sum()
        fashion = (
            _bumps(np.arange(days), peak=rng.uniform(0, days, num_topics), width=rng.uniform(4, 12, num_topics))
            * rng.choice([0.0, 2.0], num_topics, p=[0.6, 0.4])[:, None]
        )
        liking = np.exp(rng.normal(0.0, 0.8, (len(AGE_GROUPS), settings.num_categories)))
        liking *= share.reshape(settings.num_categories, -1).sum(1)

        sizes = 1 + rng.multinomial(num_items - num_topics, share)
        topic_start = np.concatenate([[0], np.cumsum(sizes)])
        rank = np.arange(num_items) - np.repeat(topic_start[:-1], sizes)
        born = rng.integers(-days, days, num_items)
        # One item of each topic exists from the beginning, so no topic is ever empty.
        born[topic_start[1:] - 1] = -days
        evergreen = rng.random(num_items) < 0.25
        half_life = rng.lognormal(np.log(30.0), 0.5, num_items) * np.where(evergreen, 10.0, 1.0)
        trending = np.flatnonzero(rng.random(num_items) < 0.15)
        num_trends = len(trending)
        return cls(
            settings=settings,
            topic_share=share.astype(np.float32),
            heat=(1.0 + fashion).astype(np.float32),
            category_share=(liking / liking.sum(1, keepdims=True)).astype(np.float32),
            topic_start=topic_start,
            item_id=rng.permutation(num_items) + 1,
            style=rng.integers(0, NUM_STYLES, num_items),
            born=born.astype(np.float32),
            zipf=((rank + 1 + _ZIPF_SHIFT) ** -_ZIPF_EXPONENT).astype(np.float32),
            half_life=half_life.astype(np.float32),
            trending=trending,
            peak=rng.uniform(0, days, num_trends).astype(np.float32),
            width=rng.uniform(2, 6, num_trends).astype(np.float32),
            boost=rng.uniform(3, 12, num_trends).astype(np.float32),
        )

    @property
    def item_topic(self) -> Int64Array:
        """Topic of each item, int64 [N]."""
        return np.repeat(np.arange(self.settings.num_topics), np.diff(self.topic_start))

    def day_of(self, seconds: Int64Array) -> Int64Array:
        """Return the day of seconds since the start."""
        return np.minimum(seconds // DAY, self.settings.days - 1)

    def topic_probability(self, day: int) -> Float64Array:
        """Return the probabilities of topics of events outside the user's boards, float64 [T], with sum 1."""
        weight = self.topic_share.astype(np.float64) * self.heat[:, day]
        return np.asarray(weight / weight.sum())

    def item_weights(self, day: int) -> Float32Array:
        """Return Zipf weight x age curve x trend, not normalised, 0 before birth; float32 [N]."""
        weight = age_curve(np.maximum(np.float32(day) - self.born, 0), self.half_life)
        weight *= self.zipf
        weight[self.trending] *= 1 + self.boost * np.exp(-0.5 * ((day - self.peak) / self.width) ** 2)
        weight *= self.born <= day
        return weight

    def item_probability(self, day: int) -> Float32Array:
        """Return p_t(i | topic of i), float32 [N], with sum 1 within each topic."""
        return np.asarray(self.within_topics(self.item_weights(day)[None])[0])

    def within_topics(self, weights: Float32Array) -> Float32Array:
        """Return weights [D, N] of items on days divided by their sums within topics, float32 [D, N]."""
        totals = np.add.reduceat(weights, self.topic_start[:-1], axis=1, dtype=np.float64)
        return np.asarray(weights / np.repeat(totals, np.diff(self.topic_start), axis=1), np.float32)

    def save(self, path: Path) -> None:
        """Write all arrays into one `.npz` file."""
        np.savez(path, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "settings"})

    @classmethod
    def load(cls, path: Path, settings: WorldSettings) -> World:
        """Read the arrays that `save` wrote."""
        with np.load(path) as arrays:
            return cls(settings=settings, **{name: arrays[name] for name in arrays.files})


@dataclass(frozen=True)
class Boards:
    """Boards of some users: topic (-1: none), size, and phase and length of the cycle of the interest; all [U, B]."""

    topic: npt.NDArray[np.int32]
    size: Float32Array
    phase: Float32Array
    cycle: Float32Array

    @classmethod
    def draw(cls, world: World, age_group: Int64Array, *, rng: np.random.Generator) -> Boards:
        """Draw boards for users of the given age groups: half of them in one category, on distinct topics."""
        settings, num_users = world.settings, len(age_group)
        shape = (num_users, MAX_BOARDS)
        category = pick(world.category_share[age_group][:, None, :], rng.random(shape))
        category = np.where(rng.random(shape) < 0.5, category[:, :1], category)
        within = world.topic_share.reshape(settings.num_categories, -1)
        topic = category * settings.topics_per_category + pick(within[category], rng.random(shape))
        absent = np.arange(MAX_BOARDS) >= rng.integers(2, MAX_BOARDS + 1, num_users)[:, None]
        for b in range(1, MAX_BOARDS):
            absent[:, b] |= (topic[:, :b] == topic[:, b : b + 1]).any(1)
        size = np.where(absent, 0.0, rng.gamma(1.5, size=shape) + 0.05)
        return cls(
            topic=np.where(absent, -1, topic).astype(np.int32),
            size=size.astype(np.float32),
            phase=rng.random(shape, dtype=np.float32),
            cycle=(_INTEREST_CYCLE * rng.uniform(0.6, 1.4, shape)).astype(np.float32),
        )

    def interest(self, world: World, users: Int64Array, *, seconds: Int64Array) -> Float64Array:
        """Return w_b(u, t), the probability of each board if the user does not stay; float64 [E, B], rows sum to 1."""
        topic = self.topic[users]
        wave = np.sin(2 * np.pi * (seconds[:, None] / self.cycle[users] + self.phase[users]))
        weight = self.size[users] * np.exp(world.settings.drift * wave)
        weight *= world.heat[topic, world.day_of(seconds)[:, None]]
        return np.asarray(weight / weight.sum(1, keepdims=True))


def age_curve(age: Float32Array, half_life: Float32Array) -> Float32Array:
    """Return the interest in items of an age in days, float32, from 1 at birth down to that in old items."""
    curve: Float32Array = np.exp2(-age / half_life)
    curve *= 1 - _OLD_ITEM_INTEREST
    curve += _OLD_ITEM_INTEREST
    return curve


def stay(settings: WorldSettings, gap: Int64Array) -> Float64Array:
    """Return the probability that an event `gap` seconds after another keeps its board. It halves each day."""
    return np.asarray(settings.stickiness * np.exp2(-gap / _BOARD_MEMORY))


def _bumps(day: Int64Array, *, peak: Float64Array, width: Float64Array) -> Float64Array:
    return np.asarray(np.exp(-0.5 * ((day - peak[:, None]) / width[:, None]) ** 2))


def pick(weight: npt.NDArray[np.floating], u: Float64Array) -> Int64Array:
    """Return indices drawn from `weight` along its last axis by uniform numbers `u`, which broadcast over the others.

    An index of weight 0 is never drawn.
    """
    upper = np.cumsum(weight, axis=-1, dtype=np.float64)
    total = upper[..., -1:]
    # The target stays below the total even after rounding.
    target = np.minimum(u[..., None] * total, np.nextafter(total, 0))
    return np.asarray((upper <= target).sum(-1), np.int64)
