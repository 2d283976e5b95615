"""Attributes of simulated pins and people: names, tags, vectors, profiles and query texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys.core.types import Int64Array
from recsys.data.simulation.world import (
    AGE_GROUPS,
    AGE_SHARES,
    DAY,
    ITEM_STREAM,
    MAX_BOARDS,
    USER_STREAM,
    Boards,
    World,
    WorldSettings,
)

Mask = npt.NDArray[np.bool_]

_ITEMS_PER_BLOCK = 65_536
_COUNTRIES = ("US", "BR", "MX", "DE", "FR", "GB", "CA", "IT", "JP", "IN", "ES", "PL")
_DEVICES = ("ios", "android", "web")
_KINDS = ("ideas", "guide", "looks", "inspiration", "projects", "favorites", "basics", "collection")
_STYLES = (
    *("rustic", "modern", "vintage", "minimalist", "boho", "cozy", "bold", "pastel", "natural", "elegant"),
    *("playful", "classic", "tropical", "nordic", "retro", "romantic", "industrial", "colorful", "simple", "luxury"),
)
_CATEGORIES = {
    "home": "kitchen bathroom bedroom lighting shelves sofas curtains rugs",
    "food": "salads desserts bread soups pasta smoothies grilling breakfast",
    "fashion": "dresses sneakers jackets denim handbags hats jewelry suits",
    "garden": "roses vegetables ponds patios succulents lawns herbs greenhouses",
    "travel": "beaches hiking cities camping trains islands museums deserts",
    "crafts": "knitting origami pottery sewing candles weaving beads printing",
    "beauty": "braids makeup nails skincare perfume haircuts lashes tattoos",
    "wedding": "bouquets invitations cakes venues rings veils favors vows",
    "fitness": "yoga running pilates boxing stretching cycling climbing swimming",
    "art": "watercolor sketching murals sculpture photography calligraphy collage comics",
    "pets": "puppies kittens aquariums parrots rabbits hamsters horses terrariums",
    "kids": "nursery toys birthdays costumes books puzzles playgrounds lunchboxes",
}
# Query texts, made of the words of the item that is then chosen.
_QUERIES = ("{topic}", "{style} {topic}", "{topic} ideas", "{category} {topic}", "{style} {category}")

USERS_SCHEMA = pa.schema(
    {
        "user_id": pa.int64(),
        "country": pa.string(),
        "age_group": pa.string(),
        "device_home": pa.string(),
        "interests": pa.list_(pa.string()),
    }
)
ITEMS_SCHEMA = pa.schema(
    {
        "item_id": pa.int64(),
        "title": pa.string(),
        "category": pa.string(),
        "tags": pa.list_(pa.string()),
        "visual": pa.list_(pa.float32()),
        "born": pa.int64(),
    }
)


def category_names(settings: WorldSettings) -> list[str]:
    """Return the name of each category. Categories beyond the known ones are numbered."""
    known = list(_CATEGORIES)[: settings.num_categories]
    return known + [f"theme{c + 1}" for c in range(len(known), settings.num_categories)]


def topic_names(settings: WorldSettings) -> list[str]:
    """Return the names of the topics, in order."""
    names = []
    for category in category_names(settings):
        known = _CATEGORIES.get(category, "").split()[: settings.topics_per_category]
        names += known + [f"{category}{t + 1}" for t in range(len(known), settings.topics_per_category)]
    return names


def query_pool(settings: WorldSettings) -> pa.Array:
    """Return all query texts, in rows `(topic * NUM_STYLES + style) * per_pair + variant`."""
    categories = category_names(settings)
    return pa.array(
        [
            query.format(topic=topic, style=style, category=categories[t // settings.topics_per_category])
            for t, topic in enumerate(topic_names(settings))
            for style in _STYLES
            for query in _QUERIES
        ]
    )


def draw_users(world: World, block: int, *, first: int, last: int) -> tuple[pa.Table, Boards]:
    """Draw profiles and boards of the users first..last-1, which are one block."""
    rng, num_users = world.settings.rng(USER_STREAM, block), last - first
    age_group = rng.choice(len(AGE_GROUPS), num_users, p=AGE_SHARES)
    boards = Boards.draw(world, age_group, rng=rng)
    country = np.minimum(rng.geometric(0.3, num_users) - 1, len(_COUNTRIES) - 1)
    # Declared interests: most boards of a user, and sometimes a topic that the user never looks at.
    topics = np.concatenate([boards.topic, rng.integers(0, world.settings.num_topics, (num_users, 1))], axis=1)
    declared = (topics >= 0) & (rng.random(topics.shape) < np.array([0.6] * MAX_BOARDS + [0.2]))
    columns = [
        pa.array(np.arange(first, last) + 1),
        words(_COUNTRIES, country, missing=rng.random(num_users) < 0.05),
        words(AGE_GROUPS, age_group, missing=rng.random(num_users) < 0.1),
        words(
            _DEVICES, rng.choice(len(_DEVICES), num_users, p=(0.45, 0.35, 0.2)), missing=rng.random(num_users) < 0.02
        ),
        _word_lists(topic_names(world.settings), topics, present=declared, missing=rng.random(num_users) < 0.1),
    ]
    return pa.Table.from_arrays(columns, schema=USERS_SCHEMA), boards


def item_tables(world: World) -> Iterator[pa.Table]:
    """Yield the items table, ordered by id, block by block."""
    settings, topics = world.settings, world.item_topic
    names, categories = topic_names(settings), category_names(settings)
    centroids = settings.rng(ITEM_STREAM).normal(0.0, 1.0, (settings.num_topics, settings.vector_width))
    vocabulary = [*names, *categories, *_STYLES]
    by_id = np.argsort(world.item_id)
    for begin in range(0, settings.num_items, _ITEMS_PER_BLOCK):
        items = by_id[begin : begin + _ITEMS_PER_BLOCK]
        rng, num_items = settings.rng(ITEM_STREAM, 1 + begin // _ITEMS_PER_BLOCK), len(items)
        topic, style = topics[items], world.style[items]
        category = topic // settings.topics_per_category
        # Tags: topic, category, style and two random words. Each is left out on some items.
        tags = np.stack(
            [topic, len(names) + category, len(names) + len(categories) + style]
            + [rng.integers(0, len(vocabulary), num_items) for _ in range(2)],
            axis=1,
        )
        present = rng.random(tags.shape) < np.array([0.8, 0.6, 0.7, 0.3, 0.15])
        visual = centroids[topic] + rng.normal(0.0, 1.0, (num_items, settings.vector_width))
        has_visual = np.repeat(rng.random((num_items, 1)) >= 0.02, settings.vector_width, axis=1)
        title = pc.binary_join_element_wise(
            words(_STYLES, style),
            words(names, topic),
            words(_KINDS, rng.integers(0, len(_KINDS), num_items)),
            pc.cast(pa.array(world.item_id[items]), pa.string()),
            " ",
        )
        columns = [
            pa.array(world.item_id[items]),
            title,
            words(categories, category, missing=rng.random(num_items) < 0.03),
            _word_lists(vocabulary, tags, present=present, missing=rng.random(num_items) < 0.03),
            _lists(pa.array(visual[has_visual], pa.float32()), has_visual, missing=~has_visual[:, 0]),
            pa.array(world.born[items].astype(np.int64) * DAY + settings.start_seconds),
        ]
        yield pa.Table.from_arrays(columns, schema=ITEMS_SCHEMA)


def coded(values: Sequence[str] | pa.Array, code: Int64Array, *, missing: Mask | None = None) -> pa.Array:
    """Return the words with the codes `code` as a dictionary array, null where `missing`."""
    dictionary = values if isinstance(values, pa.Array) else pa.array(values)
    return pa.DictionaryArray.from_arrays(pa.array(code.astype(np.int32), mask=missing), dictionary)


def words(values: Sequence[str], code: Int64Array, *, missing: Mask | None = None) -> pa.Array:
    """Return the words with the codes `code` as plain strings, null where `missing`."""
    return coded(values, code, missing=missing).cast(pa.string())


def _word_lists(values: Sequence[str], code: npt.NDArray[Any], *, present: Mask, missing: Mask) -> pa.Array:
    """Return a list of words for each row: those of `code` [R, W] where `present`; null where `missing` [R]."""
    present = present & ~missing[:, None]
    return _lists(words(values, code[present]), present, missing=missing)


def _lists(values: pa.Array, present: Mask, *, missing: Mask) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(present.sum(1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(missing))
