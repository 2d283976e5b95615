"""Weights of the items of a simulated world if the individual popularity of new items is unknown.

A model can learn the topic of a new item from its content, and knows its age. It cannot know how popular the item will
be within its topic, how fast it will age, or whether it will be a trend. This is what the best such model can reach:
each new item has the mean of what remains possible, given that it has had no training event so far.
"""

from __future__ import annotations

import numpy as np

from recsys.core.columns import ragged_positions
from recsys.core.types import Float32Array, Float64Array, Int64Array
from recsys.data.dataset import PreparedDataset
from recsys.data.simulation.world import World, age_curve

# Size of the sample of half-lives, and of the Zipf weights of a topic.
_SAMPLE = 256


def unknown_popularity(
    world: World, dataset: PreparedDataset, *, position: Int64Array, days: Int64Array, weights: Float32Array
) -> Float32Array:
    """Return the weights of items on days, float32 [D, N], with the expected weight of each item without training.

    The Zipf weight z of a new item is drawn from those of its topic. With x expected training events of an item of
    weight 1, the probability of none is exp(-z x), so the expected weight is sum z exp(-z x) / sum exp(-z x).

    Args:
        world: the world.
        dataset: data set whose training events count.
        position: int64 [dataset.num_items], position of each item_idx (from 1) in the world's order.
        days: int64 [D], days of the weights.
        weights: float32 [D, N], true weights.
    """
    new = position[dataset.train_count[1:] == 0]
    curve = _mean_curve(world)
    trend = _mean_trend(world)
    exposure = _exposure(world, dataset, position=position, new=new, curve=curve * trend.mean())
    zipf = np.empty(len(new))
    topic = world.item_topic[new]
    for number in np.unique(topic):
        drawn = world.zipf[world.topic_start[number] : world.topic_start[number + 1]].astype(np.float64)
        drawn = drawn[:: max(1, len(drawn) // _SAMPLE)]
        rows = topic == number
        none = np.exp(-np.outer(exposure[rows], drawn))
        zipf[rows] = none @ drawn / none.sum(1)
    found = weights.copy()
    for row, day in enumerate(days):
        age = day - world.born[new].astype(np.int64)
        found[row, new] = zipf * curve[np.maximum(age, 0)] * trend[day] * (age >= 0)
    return found


def _mean_curve(world: World) -> Float64Array:
    """Return the mean interest in an item by its age in days, float64 [2 * days]."""
    half_life = world.half_life[:: max(1, len(world.half_life) // _SAMPLE)]
    ages = np.arange(2 * world.settings.days, dtype=np.float32)
    return np.asarray(age_curve(ages[:, None], half_life[None]).mean(1, dtype=np.float64))


def _mean_trend(world: World) -> Float64Array:
    """Return the mean factor of trends on each day, float64 [days]."""
    days = np.arange(world.settings.days)[:, None]
    factor = world.boost * np.exp(-0.5 * ((days - world.peak) / world.width) ** 2)
    return np.asarray(1 + factor.sum(1, dtype=np.float64) / len(world.zipf))


def _exposure(
    world: World, dataset: PreparedDataset, *, position: Int64Array, new: Int64Array, curve: Float64Array
) -> Float64Array:
    """Return the number of training events that an item of Zipf weight 1 would have had in the place of each item."""
    begin, num_days = dataset.offsets[:-1], world.settings.days
    trained = ragged_positions(begin, dataset.train_end - begin)
    topic = world.item_topic[position[np.asarray(dataset.item_idx[trained]) - 1]]
    day = world.day_of(np.asarray(dataset.time[trained]) - world.settings.start_seconds)
    counts = np.zeros((num_days, world.settings.num_topics))
    np.add.at(counts, (day, topic), 1)
    exposure = np.zeros(len(new))
    for today in np.flatnonzero(counts.any(1)):
        total = np.add.reduceat(world.item_weights(int(today)), world.topic_start[:-1], dtype=np.float64)
        age = today - world.born[new].astype(np.int64)
        rate = (counts[today] / total)[world.item_topic[new]]
        exposure += rate * curve[np.maximum(age, 0)] * (age >= 0)
    return exposure
