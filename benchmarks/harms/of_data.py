"""Harms to the newest day of events, or to all events. Each returns the tables that a candidate is trained on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scene import DAY, Tables

Harm = Callable[[Tables, int], Tables]


def _set(events: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return events.set_column(events.column_names.index(name), name, values)


def _new(events: pa.Table, begin: int) -> np.ndarray:
    return np.asarray(events["timestamp"]) >= begin


def _changed(tables: Tables, name: str, values: np.ndarray) -> Tables:
    events = tables.interactions
    return tables.with_events(_set(events, name, pa.array(values, events[name].type)))


def truncated_day(tables: Tables, begin: int) -> Tables:
    """The export broke off at six in the evening."""
    events = tables.interactions
    return tables.with_events(events.filter(pc.less(events["timestamp"], begin + 18 * 3600)))


def half_lost(tables: Tables, begin: int) -> Tables:
    """Every other event of the day was dropped."""
    events = tables.interactions
    rng = np.random.default_rng(0)
    return tables.with_events(events.filter(pa.array(~_new(events, begin) | (rng.random(len(events)) < 0.5))))


def outage(tables: Tables, begin: int) -> Tables:
    """Nothing arrived between noon and nine."""
    events = tables.interactions
    hour = (np.asarray(events["timestamp"]) - begin) // 3600
    return tables.with_events(events.filter(pa.array((hour < 12) | (hour >= 21))))


def doubled_day(tables: Tables, begin: int) -> Tables:
    """The export ran twice."""
    events = tables.interactions
    return tables.with_events(pa.concat_tables([events, events.filter(pa.array(_new(events, begin)))]))


def partly_doubled(tables: Tables, begin: int) -> Tables:
    """One shard of five was exported twice."""
    events = tables.interactions
    rng = np.random.default_rng(0)
    twice = _new(events, begin) & (rng.random(len(events)) < 0.2)
    return tables.with_events(pa.concat_tables([events, events.filter(pa.array(twice))]))


def milliseconds(tables: Tables, begin: int) -> Tables:
    """The day is written in milliseconds."""
    time = np.asarray(tables.interactions["timestamp"])
    return _changed(tables, "timestamp", np.where(time >= begin, time * 1000, time))


def days_for_seconds(tables: Tables, begin: int) -> Tables:
    """The day is written in days."""
    time = np.asarray(tables.interactions["timestamp"])
    return _changed(tables, "timestamp", np.where(time >= begin, time // DAY, time))


def clock_ahead(tables: Tables, begin: int) -> Tables:
    """A tenth of the day's events have times in the year 2100."""
    time = np.asarray(tables.interactions["timestamp"])
    ahead = (time >= begin) & (np.random.default_rng(0).random(len(time)) < 0.1)
    return _changed(tables, "timestamp", np.where(ahead, 4_102_444_800, time))


def shuffled_items(tables: Tables, begin: int) -> Tables:
    """The items of the day are shuffled among its events: users and popularity stay right, pairs are wrong."""
    items = np.asarray(tables.interactions["item_id"]).copy()
    new = _new(tables.interactions, begin)
    items[new] = np.random.default_rng(0).permutation(items[new])
    return _changed(tables, "item_id", items)


def renamed_items(tables: Tables, begin: int) -> Tables:
    """The items of the day have each other's ids."""
    items = np.asarray(tables.interactions["item_id"])
    ids = np.unique(items)
    other = np.random.default_rng(0).permutation(ids)[np.searchsorted(ids, items)]
    return _changed(tables, "item_id", np.where(_new(tables.interactions, begin), other, items))


def new_user_ids(tables: Tables, begin: int) -> Tables:
    """Users of the day have ids of another system."""
    users = np.asarray(tables.interactions["user_id"])
    return _changed(tables, "user_id", np.where(_new(tables.interactions, begin), users + 10_000_000, users))


def shuffled_training(tables: Tables, begin: int) -> Tables:  # noqa: ARG001
    """The items of half of the events before the last fifth of the time are shuffled, so the training data is wrong."""
    items = np.asarray(tables.interactions["item_id"]).copy()
    time = np.asarray(tables.interactions["timestamp"])
    rng = np.random.default_rng(0)
    hit = (time < np.quantile(time, 0.8)) & (rng.random(len(time)) < 0.5)
    items[hit] = rng.permutation(items[hit])
    return _changed(tables, "item_id", items)


def one_action(tables: Tables, begin: int) -> Tables:
    """All actions of the day are logged as clicks."""
    action = np.asarray(tables.interactions["action"].to_pylist(), object)
    return _changed(tables, "action", np.where(_new(tables.interactions, begin), "click", action))


def null_actions(tables: Tables, begin: int) -> Tables:
    """The day has no actions."""
    action = np.asarray(tables.interactions["action"].to_pylist(), object)
    return _changed(tables, "action", np.where(_new(tables.interactions, begin), None, action))


def empty_catalogue(tables: Tables, begin: int) -> Tables:  # noqa: ARG001
    """Half of the items have lost their category and their tags."""
    items = tables.items
    lost = pa.array(np.random.default_rng(0).random(len(items)) < 0.5)
    for name in ("category", "tags"):
        items = _set(items, name, pc.if_else(lost, pa.scalar(None, items[name].type), items[name].combine_chunks()))
    return Tables(tables.interactions, items, tables.users)


def lost_column(tables: Tables, begin: int) -> Tables:  # noqa: ARG001
    """The catalogue has no visual vectors any more."""
    return Tables(tables.interactions, tables.items.drop_columns(["visual"]), tables.users)


def bot(tables: Tables, begin: int) -> Tables:
    """One user makes a quarter of the day's events."""
    users = np.asarray(tables.interactions["user_id"])
    new = _new(tables.interactions, begin)
    taken = new & (np.random.default_rng(0).random(len(users)) < 0.25)
    return _changed(tables, "user_id", np.where(taken, users[new][0], users))


def promoted_item(tables: Tables, begin: int) -> Tables:
    """A third of the day's events are of ten items."""
    items = np.asarray(tables.interactions["item_id"])
    rng = np.random.default_rng(0)
    taken = _new(tables.interactions, begin) & (rng.random(len(items)) < 0.33)
    return _changed(tables, "item_id", np.where(taken, rng.choice(np.unique(items)[:10], len(items)), items))


def leaked_answers(tables: Tables, begin: int) -> Tables:  # noqa: ARG001
    """Half of the last tenth of the events are copied to a time 20 days earlier."""
    events = tables.interactions
    time = np.asarray(events["timestamp"])
    chosen = (time >= np.quantile(time, 0.9)) & (np.random.default_rng(0).random(len(time)) < 0.5)
    copies = events.filter(pa.array(chosen))
    earlier = pa.array(np.asarray(copies["timestamp"]) - 20 * DAY, events["timestamp"].type)
    return tables.with_events(pa.concat_tables([events, _set(copies, "timestamp", earlier)]))


def shuffled_users(tables: Tables, begin: int) -> Tables:
    """The users of the day have each other's events."""
    users, new = np.asarray(tables.interactions["user_id"]).copy(), _new(tables.interactions, begin)
    users[new] = np.random.default_rng(0).permutation(users[new])
    return _changed(tables, "user_id", users)


def constant_item(tables: Tables, begin: int) -> Tables:
    """One event in six has the first item, as if a default value were written for unknown items."""
    items = np.asarray(tables.interactions["item_id"])
    hit = _new(tables.interactions, begin) & (np.random.default_rng(0).random(len(items)) < 1 / 6)
    return _changed(tables, "item_id", np.where(hit, items[0], items))


def dates_for_times(tables: Tables, begin: int) -> Tables:
    """Times of the day are cut to its midnight."""
    time = np.asarray(tables.interactions["timestamp"])
    return _changed(tables, "timestamp", np.where(time >= begin, time // DAY * DAY, time))


def zone_behind(tables: Tables, begin: int) -> Tables:
    """Times of the day are of a zone eight hours behind."""
    time = np.asarray(tables.interactions["timestamp"])
    return _changed(tables, "timestamp", np.where(time >= begin, time - 8 * 3600, time))


def lost_category(tables: Tables, begin: int) -> Tables:
    """The day has no events of a quarter of the items."""
    items, new = np.asarray(tables.interactions["item_id"]), _new(tables.interactions, begin)
    lost = np.random.default_rng(0).choice(np.unique(items), len(np.unique(items)) // 4, replace=False)
    return tables.with_events(tables.interactions.filter(pa.array(~(new & np.isin(items, lost)))))


def lost_users(tables: Tables, begin: int) -> Tables:
    """The day has no events of half of the users."""
    users, new = np.asarray(tables.interactions["user_id"]), _new(tables.interactions, begin)
    return tables.with_events(tables.interactions.filter(pa.array(~(new & (users % 2 == 0)))))


def lost_newcomers(tables: Tables, begin: int) -> Tables:
    """The day has no events of users who were not there before."""
    users, new = np.asarray(tables.interactions["user_id"]), _new(tables.interactions, begin)
    return tables.with_events(tables.interactions.filter(pa.array(~new | np.isin(users, users[~new]))))


def lost_action(tables: Tables, begin: int) -> Tables:
    """The day has no events of the most frequent action."""
    action = np.asarray(tables.interactions["action"].to_pylist(), object)
    names, counts = np.unique(action.astype(str), return_counts=True)
    kept = ~(_new(tables.interactions, begin) & (action == names[np.argmax(counts)]))
    return tables.with_events(tables.interactions.filter(pa.array(kept)))


def lost_past(tables: Tables, begin: int) -> Tables:
    """Events of all days but the last ten before the day are gone."""
    time = np.asarray(tables.interactions["timestamp"])
    return tables.with_events(tables.interactions.filter(pa.array(time >= begin - 10 * DAY)))


def few_users(tables: Tables, begin: int) -> Tables:
    """Nine users in ten have lost their events before the day."""
    users, new = np.asarray(tables.interactions["user_id"]), _new(tables.interactions, begin)
    return tables.with_events(tables.interactions.filter(pa.array(new | (users % 10 == 0))))


def shuffled_catalogue(tables: Tables, begin: int) -> Tables:  # noqa: ARG001
    """Each item has the features of another."""
    rows = pa.array(np.random.default_rng(0).permutation(len(tables.items)))
    items = tables.items.take(rows)
    return Tables(tables.interactions, _set(items, "item_id", tables.items["item_id"]), tables.users)


def half_catalogue(tables: Tables, begin: int) -> Tables:  # noqa: ARG001
    """The catalogue has lost every other item; their events are there."""
    kept = pa.array(np.arange(len(tables.items)) % 2 == 0)
    return Tables(tables.interactions, tables.items.filter(kept), tables.users)


# Harm -> gates; at least one of them must stop it.
HARMS: dict[Harm, tuple[str, ...]] = {
    truncated_day: ("volume", "gaps"),
    half_lost: ("volume", "activity"),
    outage: ("volume", "gaps"),
    doubled_day: ("duplicates", "volume"),
    partly_doubled: ("duplicates",),
    milliseconds: ("clock", "gaps"),
    days_for_seconds: ("gaps",),
    clock_ahead: ("clock",),
    shuffled_items: ("predictable",),
    renamed_items: ("items", "predictable"),
    new_user_ids: ("unseen",),
    shuffled_training: ("not_worse",),
    one_action: ("labels",),
    null_actions: ("nulls",),
    empty_catalogue: ("nulls",),
    lost_column: ("nulls",),
    bot: ("duplicates",),
    promoted_item: ("items",),
    leaked_answers: ("repeats",),
    shuffled_users: ("predictable",),
    constant_item: ("items",),
    dates_for_times: ("gaps",),
    zone_behind: ("gaps", "volume"),
    lost_category: ("items", "volume"),
    lost_users: ("volume",),
    lost_newcomers: ("unseen",),
    lost_action: ("labels",),
    lost_past: ("not_worse", "fresh"),
    few_users: ("not_worse", "volume"),
    shuffled_catalogue: ("not_worse", "nulls"),
    half_catalogue: ("nulls", "size"),
}
